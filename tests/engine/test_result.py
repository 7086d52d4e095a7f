"""Verdicts: j' <= j and a' >= a, against dense and both controls."""

from __future__ import annotations

from typing import Any

import pytest

from lth_sparse.engine import EarlyStop, LevelRecord, TicketResult
from lth_sparse.errors import ArgumentError, RunError


def record(index: int, accuracy: float, step: int | None, control: str | None = None, **metrics: float) -> LevelRecord:
    stop = None if step is None else EarlyStop(step, {"val_loss": 1.0, "test_acc": accuracy})
    return LevelRecord(
        index=index,
        density=0.8**index,
        seconds=1.0,
        metrics={"test_acc": accuracy, **metrics},
        early_stop=stop,
        history=[],
        counts={},
        control=control,
    )


def result(
    levels: list[tuple[float, int | None]], controls: dict[tuple[int, str], float] | None = None
) -> TicketResult:
    records = [record(k, accuracy, step) for k, (accuracy, step) in enumerate(levels)]
    made = {key: record(key[0], accuracy, 100, key[1]) for key, accuracy in (controls or {}).items()}
    return TicketResult([], records, made, {})


def both(level: int, accuracy: float) -> dict[tuple[int, str], float]:
    return {(level, "reinit"): accuracy, (level, "shuffled"): accuracy}


@pytest.mark.parametrize(
    ("levels", "controls", "kind", "level"),
    [
        ([(0.9, 100), (0.9, 100), (0.91, 90)], both(2, 0.8), "winning", 2),
        ([(0.9, 100), (0.9, 100), (0.8, 90)], both(1, 0.8), "winning", 1),
        ([(0.9, 100), (0.9, 110)], both(1, 0.8), "matching", 1),
        ([(0.9, 100), (0.9, 100)], None, "matching", 1),
        ([(0.9, 100), (0.9, 100)], {(1, "reinit"): 0.8}, "matching", 1),
        ([(0.9, 100), (0.92, 100)], {(1, "reinit"): 0.8, (1, "shuffled"): 0.92}, "matching", 1),
        ([(0.9, 100), (0.89, 100), (0.88, 100)], both(2, 0.1), "not", 2),
        ([(0.9, None), (0.95, None)], both(1, 0.8), "matching", 1),
        ([(0.9, 100), (0.9, 100), (0.9, 100)], both(1, 0.8), "winning", 1),
    ],
)
def test_kind_and_level(levels: Any, controls: Any, kind: str, level: int) -> None:
    verdict = result(levels, controls).verdict()
    assert (verdict.kind, verdict.level) == (kind, level)
    assert verdict.density == pytest.approx(0.8**level)


def test_tolerance_forgives_a_little_accuracy_but_not_a_control() -> None:
    levels, controls = [(0.9, 100), (0.895, 100)], both(1, 0.88)
    assert result(levels, controls).verdict().kind == "not"
    assert result(levels, controls).verdict(tolerance=0.01).kind == "winning"
    assert result(levels, controls).verdict(tolerance=0.02).kind == "matching"


def test_rows_tell_every_level() -> None:
    rows = result([(0.9, 100), (0.9, 110)], both(1, 0.8)).verdict().rows
    assert [row["kind"] for row in rows] == ["dense", "matching"]
    assert rows[1]["controls"] == {"reinit": 0.8, "shuffled": 0.8}


@pytest.mark.parametrize(
    ("levels", "controls", "words"),
    [
        ([(0.9, 100), (0.9, 100)], both(1, 0.8), "is a winning ticket"),
        ([(0.9, 100), (0.9, 110)], both(1, 0.8), "it learns later than the dense network"),
        ([(0.9, 100), (0.9, 100)], None, "not compared with the random reinitialisation and the shuffled mask"),
        ([(0.9, 100), (0.9, 100)], both(1, 0.95), "a control does as well"),
        ([(0.9, None), (0.9, None)], None, "nothing is known of its speed"),
        ([(0.9, 100), (0.8, 100)], None, "No level matches the dense network"),
    ],
)
def test_text_says_why(levels: Any, controls: Any, words: str) -> None:
    assert words in str(result(levels, controls).verdict())


def test_accuracy_is_that_of_the_early_stop_else_the_final_one() -> None:
    at_stop = record(0, 0.5, 10, f1=0.3)
    assert at_stop.accuracy() == 0.5
    assert at_stop.accuracy("f1") == 0.3
    assert at_stop.accuracy("auc") is None


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ArgumentError, match=r"metric: expected one that train recorded \(test_acc, val_loss\), got 'acc'"
    ):
        result([(0.9, 1), (0.9, 1)]).verdict(metric="acc")


def test_nothing_to_judge() -> None:
    with pytest.raises(ArgumentError, match="levels: expected at least one pruned level"):
        result([(0.9, 1)]).verdict()


def test_no_ticket_yet() -> None:
    with pytest.raises(RunError, match="no level has finished"):
        _ = TicketResult([], [], {}, {}).ticket


def test_records_of_a_real_search(search: Any) -> None:
    found = search(levels=2, controls=("reinit", "shuffled"))
    dense, last = found.levels[0], found.levels[-1]
    assert dense.counts["fc.weight"] == (1728, 1728)
    assert last.counts["fc.weight"] == (847, 1728)
    assert dense.layers == []
    assert {row["name"] for row in last.layers} == {"conv", "fc", "out"}
    assert last.early_stop is not None
    assert found.verdict().kind in ("winning", "matching", "not")

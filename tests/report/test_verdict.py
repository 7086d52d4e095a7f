"""Winning, matching or not: the judgement follows its rules and says what it does not show."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lth_sparse.engine import LevelRecord
from lth_sparse.report import Training, judge, summarise, trainings_of
from lth_sparse.report.verdict import candidate

MakeSearch = Callable[..., list[Training]]
WORSE = {"reinit": 0.80, "shuffled": 0.75}


def test_accurate_quick_and_better_than_controls_wins(search: MakeSearch) -> None:
    verdict = judge(summarise(search([0.90, 0.91, 0.91], WORSE)))
    assert (verdict.kind, verdict.level) == ("winning", 2)
    assert verdict.density == pytest.approx(0.64)
    assert "winning ticket with 64.0% of the weights" in verdict.title


def test_rows_are_dense_ticket_and_its_controls(search: MakeSearch) -> None:
    rows = judge(summarise(search([0.90, 0.91], WORSE))).rows
    assert [row.label for row in rows] == ["dense", "ticket", "random reinitialisation", "shuffled mask"]


@pytest.mark.parametrize(("kind", "words"), [("reinit", "random reinitialisation"), ("shuffled", "shuffled mask")])
def test_a_control_that_does_as_well_is_said_plainly(search: MakeSearch, kind: str, words: str) -> None:
    verdict = judge(summarise(search([0.90, 0.91], {**WORSE, kind: 0.91})))
    assert verdict.kind == "matching"
    assert f"The {words} does as well as the ticket: this run is no evidence" in verdict.text


def test_without_controls_nothing_wins(search: MakeSearch) -> None:
    verdict = judge(summarise(search([0.90, 0.91])))
    assert verdict.kind == "matching"
    assert "No control was trained" in verdict.text


@pytest.mark.parametrize(("only", "missing"), [("reinit", "shuffled mask"), ("shuffled", "random reinitialisation")])
def test_one_control_alone_is_not_enough_to_win(search: MakeSearch, only: str, missing: str) -> None:
    verdict = judge(summarise(search([0.90, 0.91], {only: WORSE[only]})))
    assert verdict.kind == "matching"
    assert f"The {missing} was not trained at this level" in verdict.text


def test_slower_learning_does_not_win(search: MakeSearch) -> None:
    verdict = judge(summarise(search([0.90, 0.91], WORSE, steps=[100, 150])))
    assert verdict.kind == "matching"
    assert "later than the dense network's" in verdict.text


def test_less_accurate_at_every_level_is_no_ticket(search: MakeSearch) -> None:
    verdict = judge(summarise(search([0.90, 0.85, 0.80], WORSE)))
    assert (verdict.kind, verdict.level) == ("not", 2)


def test_smallest_matching_level_is_named_and_the_worse_last_one_mentioned(search: MakeSearch) -> None:
    verdict = judge(summarise(search([0.90, 0.91, 0.90, 0.70], WORSE)))
    assert (verdict.kind, verdict.level) == ("matching", 2)
    assert "At the last level, with 51.2% left, accuracy is lower than dense" in verdict.text


def test_the_spread_of_the_dense_seeds_counts_as_equal(search: MakeSearch) -> None:
    summary = summarise(search([0.900, 0.8995, 0.898]))
    verdict = judge(summary)
    assert verdict.margin == pytest.approx(0.001)
    assert verdict.level == 1


def test_sampling_error_of_the_test_images_counts_as_equal(search: MakeSearch) -> None:
    summary = summarise(search([0.90, 0.89], WORSE, seeds=1))
    assert judge(summary).kind == "not"
    verdict = judge(summary, images=500)
    assert verdict.margin == pytest.approx((0.9 * 0.1 / 500) ** 0.5)
    assert verdict.kind == "winning"


def test_candidate_is_the_smallest_level_as_accurate_and_as_quick_as_dense(search: MakeSearch) -> None:
    summary = summarise(search([0.90, 0.91, 0.91, 0.91, 0.80], steps=[100, 90, 80, 150, 50]))
    assert candidate(summary) == 2


@pytest.mark.parametrize("accuracies", [[], [0.9], [0.9, 0.8]])
def test_without_such_a_level_there_is_no_candidate(search: MakeSearch, accuracies: list[float]) -> None:
    assert candidate(summarise(search(accuracies))) is None


def test_a_winning_level_before_the_last_is_named_with_what_became_of_the_last(
    search: MakeSearch, record: Callable[..., LevelRecord]
) -> None:
    trainings = search([0.90, 0.91, 0.91], WORSE, steps=[100, 90, 150])
    for kind in WORSE:
        trainings += trainings_of(0, [], {(1, kind): record(1, 0.8, control=kind)})
    verdict = judge(summarise(trainings))
    assert (verdict.kind, verdict.level) == ("winning", 1)
    assert "above every control of that size, though only at iteration 150" in verdict.text
    assert [(row.level, row.control) for row in verdict.rows] == [
        (0, None),
        (1, None),
        (1, "reinit"),
        (1, "shuffled"),
        (2, None),
        (2, "reinit"),
        (2, "shuffled"),
    ]


def test_one_seed_is_called_one_seed(search: MakeSearch) -> None:
    assert "One seed says nothing about chance" in judge(summarise(search([0.90, 0.91], WORSE, seeds=1))).text


@pytest.mark.parametrize("accuracies", [[], [0.9]])
def test_nothing_to_compare_gives_no_verdict(search: MakeSearch, accuracies: list[float]) -> None:
    verdict = judge(summarise(search(accuracies)))
    assert (verdict.kind, verdict.level, verdict.rows) == ("none", None, ())

"""The benchmark of conversions: what it makes of ledgers over seeds, and one run of it that is over in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lth_sparse.benchmarks.conversion import Row, Settings, across, grid, main, verdict


def entry(name: str, ratio: float, lost: float | None, padded: float = 100.0) -> dict[str, Any]:
    span = {"median": ratio, "low": ratio, "high": ratio}
    ratios = {"csr": span, "auto": span, "dense": span}
    return {
        "name": name,
        "density": 0.05,
        "points_lost": lost,
        "retrained": [] if lost is None else [0.98 - lost / 100],
        "work": {"padded": padded},
        "time": {"step_ratios": ratios, "forward_ratios": ratios},
    }


def ledgers(*seeds: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """name -> (step against CSR, points lost), seed by seed."""
    usual = {"dense": (0.5, None), "csr": (1.0, 0.0), "auto": (1.1, 0.0)}
    return [{"entries": [entry(name, *figures) for name, figures in {**usual, **seed}.items()]} for seed in seeds]


def test_figures_are_means_over_the_seeds_with_all_of_them_kept() -> None:
    rows = across(ledgers({"vectors": (1.2, 0.2)}, {"vectors": (1.4, 0.6)}))
    row = rows[-1]
    assert (row.name, row.losses, row.csr) == ("vectors", (0.2, 0.6), (1.2, 1.4))
    assert row.loss == pytest.approx(0.4)
    assert "0.40 [+0.20, +0.60]" in grid(rows, 2).rows[-1][4]
    assert rows[0].losses == ()


def test_entries_that_a_seed_lacks_are_left_out() -> None:
    rows = across(ledgers({"vectors": (1.2, 0.2), "drop": (1.3, 0.0)}, {"vectors": (1.4, 0.6)}))
    assert [row.name for row in rows] == ["dense", "csr", "auto", "vectors"]


def test_a_conversion_holds_when_it_is_faster_in_every_seed_and_accurate_on_average() -> None:
    holds, text = verdict(across(ledgers({"vectors": (1.2, 0.2)}, {"vectors": (1.4, 0.6)})))
    assert holds
    assert text.startswith("Holds: vectors loses +0.40 points")


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        (({"vectors": (0.9, 0.2)}, {"vectors": (1.4, 0.2)}), "No conversion is faster in every seed"),
        (({"vectors": (1.01, 0.2)}, {"vectors": (1.4, 0.2)}), "No conversion is faster in every seed"),
        (({"vectors": (1.2, 0.9)}, {"vectors": (1.4, 0.4)}), "vectors loses least, 0.65 points"),
        (({"vectors": (0.8, 0.1), "refill": (2.0, 3.0)},) * 2, "vectors, takes 1.25 of CSR's step for 1.00"),
    ],
)
def test_otherwise_it_says_what_stands_against_it(
    seeds: tuple[dict[str, tuple[float, float]], ...], words: str
) -> None:
    holds, text = verdict(across(ledgers(*seeds)))
    assert not holds
    assert words in text


def test_a_ticket_that_has_not_learnt_decides_nothing() -> None:
    books = ledgers({"refill": (3.0, 0.0)})
    for book in books:
        for one in book["entries"]:
            one["retrained"] = [0.1]
    holds, text = verdict(across(books))
    assert not holds
    assert text.startswith("Not decided: the ticket itself reaches 10.0%")


def test_baselines_are_never_the_answer() -> None:
    assert not verdict(across(ledgers({}, {})))[0]


def test_a_row_is_faster_only_where_every_seed_is() -> None:
    row = Row("x", 0.1, (0.0,), (0.98,), (1.2, 1.02), (1.0,), (1.0,), (1.0,), 1.0)
    assert not row.faster


def test_the_whole_of_it_runs_and_is_not_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lth_sparse.benchmarks.conversion.DENSITY", 0.85)
    words = ["lenet", "--output", str(tmp_path), "--seeds", "1", "--iterations", "2", "--seconds", "0"]
    assert main([*words, "--methods", "cover:4x1,refill", "--no-aware"]) == 0
    first = capsys.readouterr().out
    assert "refill" in first
    ledger = tmp_path / "seed_0" / "ledger.json"
    stamp = ledger.stat().st_mtime_ns
    assert json.loads((tmp_path / "summary.json").read_text())["verdict"] in first
    assert main([*words, "--methods", "cover:4x1,refill", "--no-aware"]) == 0
    assert ledger.stat().st_mtime_ns == stamp
    assert capsys.readouterr().out == first


def test_the_budget_is_the_quick_one_on_digits() -> None:
    preset = Settings("lenet", Path("x"), iterations=7).preset()
    assert (preset.dataset, preset.iterations, preset.evaluate_every) == ("digits", 7, 7)
    assert Settings("lenet", Path("x")).preset().iterations == 1500
    assert Settings("lenet", Path("x"), prunings=2).preset().rates["fc*"] == pytest.approx(1 - 0.8**2)

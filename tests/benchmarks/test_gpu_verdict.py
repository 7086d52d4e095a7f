"""What the rows of the GPU suite become: a table, goals met or missed, plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lth_sparse.benchmarks.gpu.cases import CASES, Case
from lth_sparse.benchmarks.gpu.measuring import COLUMNS, case_columns
from lth_sparse.benchmarks.gpu.plots import draw
from lth_sparse.benchmarks.gpu.table import HEADER, lines
from lth_sparse.benchmarks.gpu.verdict import RATIOS, break_even, fits, verdict


def row(case: Case, provider: str = "ours", mode: str = "forward", ratio: float = 2.0, **more: Any) -> dict[str, Any]:
    found = {**case_columns(case), "provider": provider, "mode": mode, "status": "ok", "ratio": ratio}
    found |= {"median_us": 100.0 / ratio, "per_live": ratio * case.density, "error_ratio": 1.0, "error": 1e-3}
    return {name: (found | more).get(name, "") for name in COLUMNS}


def of(goal: str) -> list[Case]:
    return [case for case in CASES if case.goal == goal]


def met(goal: str, ratio: float = 20.0, **more: Any) -> list[dict[str, Any]]:
    found = []
    for case in of(goal):
        for mode in case.modes:
            found += [row(case, provider, mode, ratio, **more) for provider in ("ours", "planner")]
            found += [row(case, provider, mode, 1.0) for provider in ("dense", "masked dense")]
    return found


@pytest.mark.parametrize(
    ("slow", "density"),
    [
        ({0.1: 0.5, 0.2: 0.75, 0.4: 1.25}, 0.3),
        ({0.1: 0.5, 0.2: 0.75}, 0.2),  # as far as was measured
        ({0.1: 1.5, 0.2: 2.0}, 0.0),
        ({}, None),
    ],
)
def test_break_even_is_where_the_curve_crosses_dense(slow: dict[float, float], density: float | None) -> None:
    case = of("G1")[0]
    rows = [row(case, ratio=1 / time, density=share) for share, time in slow.items()]
    assert break_even(rows, "forward") == (None if density is None else pytest.approx(density))
    assert break_even(rows, "step") is None


@pytest.mark.parametrize("goal", ["G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G10"])
def test_a_goal_is_met_missed_or_open(goal: str) -> None:
    (good,) = verdict(met(goal))
    assert good.startswith(f"{goal} met: ")
    slow = [one | {"median_us": 1000.0} if one["provider"] == "planner" else one for one in met(goal, 0.2)]
    (bad,) = verdict(slow)
    assert bad.startswith(f"{goal} missed: ")
    (nothing,) = verdict([one | {"status": "failed: no luck"} for one in met(goal)])
    assert nothing.startswith(f"{goal} open: ")
    assert verdict([]) == []


def test_memory_counts_against_the_density() -> None:
    case = of("G11")[0]
    assert verdict([row(case, mode="memory", ratio=9.5)])[0].startswith("G11 met")  # 1.05 d
    assert verdict([row(case, mode="memory", ratio=5.0)])[0].startswith("G11 missed")


def test_an_inexact_float32_layer_misses_its_goal() -> None:
    assert verdict(met("G7", error_ratio=3.0))[0].startswith("G7 missed")


def test_wrong_rows_meet_no_goal() -> None:
    rows = met("G4")
    rows.append(row(of("G4")[0], mode="step", status="wrong: error 1, dense torch 0"))
    (line,) = verdict(rows)
    assert line.startswith("G4 missed")
    assert line.endswith("1 rows are wrong")


def test_every_goal_for_ratios_has_its_cases() -> None:
    for goal, mode, words, _ in RATIOS:
        assert any(fits(words, case.name) and mode in case.modes for case in of(goal)), (goal, words, mode)


def test_the_table_has_ours_beside_dense_and_the_peers() -> None:
    case = CASES[0]
    rows = [
        row(case, "dense", ratio=1.0), row(case, "ours", share=0.5), row(case, "torch BSR", ratio=0.5),
        row(case, "masked dense") | {"median_us": "", "status": "failed: no luck"},
        row(case, "masked dense", "step") | {"median_us": "", "status": "failed: no luck"},
    ]  # fmt: skip
    first, trouble = lines(rows)
    assert first.split()[1:] == ["forward", "100.0", "50.0", "2.00", "50%", "1.00", "torch", "BSR", "200.0"]
    assert trouble.strip() == f"{case.name}: masked dense, forward step: failed: no luck"
    assert len(HEADER.split()) == 9


def test_of_two_ways_to_run_ours_the_faster_one_counts() -> None:
    case = of("G8")[0]
    (line,) = lines([row(case, "dense", ratio=1.0), row(case, "ours"), row(case, "ours contiguous", ratio=4.0)])
    assert "25.0" in line.split()
    assert line.endswith("ours 50.0")


def test_memory_is_a_line_of_bytes() -> None:
    rows = [
        row(of("G11")[0], name, "memory", bytes=count, median_us="") for name, count in (("dense", 40), ("ours", 4))
    ]
    (line,) = lines(rows)
    assert "dense 40 bytes, ours 4 bytes" in line


def test_plots_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    rows = [
        row(case, provider, mode, 0.1 / case.density + 0.5)
        for case in CASES
        for mode in case.modes
        for provider in ("dense", "ours")
        if case.goal in ("G1", "G2", "G8")
    ]
    assert [path.name for path in draw(rows, tmp_path)] == ["gpu-break-even.svg", "gpu-ratio.svg"]
    text = (tmp_path / "gpu-break-even.svg").read_text()
    assert "bsr 64x64" in text
    assert "dense time / ours" in text
    assert draw([row(CASES[0], "dense")], tmp_path) == []

"""Cells, and the three ways to show them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import pytest
from rich.console import Console

from lth_sparse.engine import LevelRecord
from lth_sparse.report import Training, summarise, trainings_of
from lth_sparse.report.tables import Grid, plain_text, rich_table, seed_grid, summary_grid

MakeRecord = Callable[..., LevelRecord]
MakeSearch = Callable[..., list[Training]]


def rendered(grid: Grid, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(rich_table(grid))
    return stream.getvalue()


def test_seed_grid_shows_every_figure_of_a_training(record: MakeRecord) -> None:
    trainings = trainings_of(0, [record(0, seconds=10.0), record(1, 0.9625, step=1500, seconds=4.0)], {})
    assert seed_grid(trainings, "Seed 0").rows[1] == (
        "1",
        "80.0%",
        "1,500",
        "96.25%",
        "96.25%",
        "4.0",
        "2.50x",
        "2 csr, 1 dense",
    )


def test_what_was_not_measured_is_a_dash(record: MakeRecord) -> None:
    (row,) = seed_grid(trainings_of(0, [record(0, None, step=None, seconds=math.nan)], {}), "").rows
    assert row == ("0 dense", "100.0%", "-", "-", "-", "-", "-", "-")


def test_summary_shows_minimum_and_maximum(search: MakeSearch) -> None:
    assert summary_grid(summarise(search([0.9])), "").rows[0][3] == "90.00% [89.90, 90.10]"


def test_one_seed_shows_no_range(search: MakeSearch) -> None:
    assert summary_grid(summarise(search([0.9], seeds=1)), "").rows[0][3] == "90.00%"


def test_controls_come_last(search: MakeSearch) -> None:
    rows = summary_grid(summarise(search([0.9, 0.9], {"shuffled": 0.8, "reinit": 0.8})), "").rows
    assert [row[0] for row in rows] == ["0 dense", "1", "1 random reinitialisation", "1 shuffled mask"]


def test_brackets_survive_rich_markup(search: MakeSearch) -> None:
    grid = summary_grid(summarise(search([0.9])), "All")
    assert "[89.90, 90.10]" in rendered(grid, 200)
    assert "[minimum, maximum]" in rendered(grid, 200)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_figure_is_cut_off(search: MakeSearch, width: int) -> None:
    grid = summary_grid(summarise(search([0.9, 0.9], {"reinit": 0.8})), "")
    text = rendered(grid if grid.width <= width else grid.narrow(), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_plain_text_columns_line_up() -> None:
    text = plain_text(Grid("T", ("name", "n"), (("a", "1"), ("long", "1,000"))))
    assert text.splitlines() == ["T", "name      n", "a         1", "long  1,000"]

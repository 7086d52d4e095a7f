"""Tables of a run as plain cells, shown by rich in a terminal, as aligned text in a log, or by the HTML page.

A `Grid` holds finished strings, so all three show the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lth_sparse.engine.controls import CONTROLS
from lth_sparse.report.summary import LevelSummary, Statistic, Summary, Training, control_name
from lth_sparse.report.verdict import Verdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "Grid",
    "percent_cell",
    "percent_spread",
    "plain_text",
    "rich_table",
    "seconds_cell",
    "seed_grid",
    "show",
    "summary_grid",
    "verdict_grid",
]

MISSING = "-"
HEADERS = (
    "level",
    "weights left",
    "early-stop iteration",
    "test acc. there",
    "test acc. at end",
    "training seconds",
    "speed-up",
)


@dataclass(frozen=True)
class Grid:
    """A title, column headers, and rows of finished cells; the first `left` columns are words, the rest are figures."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    @property
    def width(self) -> int:
        """Characters of its widest row in a terminal."""
        lines = (self.headers, *self.rows)
        return sum(max(len(line[column]) for line in lines) + 3 for column in range(len(self.headers)))

    def narrow(self) -> Grid:
        """The same for few columns: minimum and maximum below the mean, the controls by their short names."""

        def short(cell: str) -> str:
            for kind, name in CONTROLS.items():
                cell = cell.replace(name, kind)
            return cell.replace(" [", "\n[")

        return Grid(self.title, self.headers, tuple(tuple(map(short, row)) for row in self.rows), self.left)


def seed_grid(trainings: Iterable[Training], title: str) -> Grid:
    """One row per training of one seed, controls at the end."""
    rows = tuple(
        (
            _name(training.level, training.control),
            percent_cell(training.density),
            _count(training.early_stop),
            percent_cell(training.early_accuracy, 2),
            percent_cell(training.accuracy, 2),
            seconds_cell(training.seconds),
            _times(training.speedup),
            _layouts(training.layouts),
        )
        for training in trainings
    )
    return Grid(title, (*HEADERS, "layouts"), rows)


def summary_grid(summary: Summary, title: str) -> Grid:
    """One row per level, then one per control: mean over the seeds, with minimum and maximum."""
    return Grid(title + _over(len(summary.seeds)), HEADERS, _summary_rows((*summary.levels, *summary.controls)))


def verdict_grid(verdict: Verdict, title: str) -> Grid:
    """Dense, the judged ticket and its controls, one below the other."""
    seeds = max((row.seconds.count for row in verdict.rows if row.seconds is not None), default=1)
    return Grid(title + _over(seeds), HEADERS, _summary_rows(verdict.rows))


def _over(seeds: int) -> str:
    return f" (mean over {seeds} seeds [minimum, maximum])" if seeds > 1 else ""


def show(console: Console, grid: Grid) -> None:
    """A table that fits the terminal; aligned text, never wrapped, for anything else."""
    if console.is_terminal:
        console.print(rich_table(grid if grid.width <= console.width else grid.narrow()))
    else:
        console.print(plain_text(grid) + "\n", markup=False, highlight=False, soft_wrap=True)


def rich_table(grid: Grid) -> Table:
    """The grid as a rich table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = Text(grid.title, style="bold") if grid.title else None
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    # Text, not str: a cell such as "[96.2, 97.1]" must not be read as markup.
    for position, header in enumerate(grid.headers):
        first = position < grid.left
        word = max(map(len, header.split()))  # a header wraps between its words, never inside one
        table.add_column(Text(header), justify="left" if first else "right", no_wrap=first, min_width=word)
    for row in grid.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def plain_text(grid: Grid) -> str:
    """The grid as aligned text, two spaces between columns."""
    lines = [grid.headers, *grid.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(grid.headers))]
    text = [grid.title] if grid.title else []
    for line in lines:
        cells = [
            cell.ljust(width) if column < grid.left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def _summary_rows(levels: Iterable[LevelSummary]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            _name(level.level, level.control),
            percent_cell(level.density),
            _spread(level.early_stop, lambda value: f"{value:,.0f}"),
            percent_spread(level.early_accuracy),
            percent_spread(level.accuracy),
            _spread(level.seconds, _short),
            _spread(level.speedup, lambda value: f"{value:.2f}", "x"),
        )
        for level in levels
    )


def percent_spread(statistic: Statistic | None) -> str:
    """Shares as "96.70% [96.20, 97.10]"."""
    return _spread(statistic, lambda value: f"{100.0 * value:.2f}", "%")


def _spread(statistic: Statistic | None, show: Callable[[float], str], unit: str = "") -> str:
    """ "96.70% [96.20, 97.10]"; without the bracket for a single seed."""
    if statistic is None:
        return MISSING
    mean = show(statistic.mean) + unit
    return mean if statistic.count == 1 else f"{mean} [{show(statistic.minimum)}, {show(statistic.maximum)}]"


def _name(level: int, control: str | None) -> str:
    if control is not None:
        return f"{level} {control_name(control)}"
    return f"{level} dense" if level == 0 else str(level)


def percent_cell(share: float | None, digits: int = 1) -> str:
    """0.967 -> "96.7%"; "-" for None."""
    return MISSING if share is None else f"{100.0 * share:.{digits}f}%"


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def _short(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100.0 else f"{seconds:.1f}" if seconds >= 1.0 else f"{seconds:.2f}"


def seconds_cell(seconds: float | None) -> str:
    """Three significant figures or all before the point; "-" for None."""
    return MISSING if seconds is None else _short(seconds)


def _times(factor: float | None) -> str:
    return MISSING if factor is None else f"{factor:.2f}x"


def _layouts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {layout}" for layout, count in sorted(counts.items())) or MISSING

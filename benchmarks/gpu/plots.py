"""Plots of the suite's rows: break-even curves, and the ratio to dense torch by density.

python -m lth_sparse.benchmarks.gpu.plots gpu.csv DIRECTORY
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..measure import read_csv
from ..plots import _figure as figure_of
from ..plots import _plain_ticks as plain_ticks
from ..plots import _shared_labels as shared_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

Row = Mapping[str, Any]
#: Okabe and Ito's colours and a marker for each storage, told apart without colours too.
COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#e69f00", "#a0528a", "#56b4e9", "#4d4d4d")
MARKERS = "osD^vPX"


def draw(rows: Sequence[Row], directory: Path) -> list[Path]:
    """``gpu-break-even.svg`` (4096^2, all modes) and ``gpu-ratio.svg`` (every layer), of what rows there are."""
    directory.mkdir(parents=True, exist_ok=True)
    timed = [row for row in rows if row["status"] == "ok" and row["provider"].startswith("ours") and row["ratio"]]
    written = []
    square = [row for row in timed if row["goal"] in ("G1", "G2") and "-square-" in row["case"]]
    for name, chosen, panel in (
        ("gpu-break-even.svg", square, _mode),
        ("gpu-ratio.svg", timed, _shape),
    ):
        if chosen:
            written.append(_curves(chosen, directory / name, panel))
    return written


def _mode(row: Row) -> str:
    return str(row["mode"])


def _shape(row: Row) -> str:
    label = str(row["case"]).removeprefix(f"{row['goal']}-").split(f"-{row['layout'].replace(' ', '-')}")[0]
    return f"{label}, {row['dtype']}, {row['mode']}"


def _storage(row: Row) -> str:
    return " ".join(filter(None, (row["layout"], row["block"], str(row["provider"]).removeprefix("ours"))))


def _curves(rows: Sequence[Row], path: Path, panel: Any) -> Path:
    """One panel for each value of ``panel``, one line for each way to store the weight; above 1 ours is faster."""
    panels = list(dict.fromkeys(panel(row) for row in rows))
    kinds = sorted({_storage(row) for row in rows})
    with figure_of(len(panels), path) as (figure, grid):
        for axes, name in zip(grid, panels, strict=False):
            mine = [row for row in rows if panel(row) == name]
            axes.axhline(1.0, color="#4d4d4d", linewidth=0.8)
            for kind in kinds:
                _line(axes, kinds.index(kind), kind, [row for row in mine if _storage(row) == kind])
            axes.set(xscale="log", yscale="log", title=name)
            axes.invert_xaxis()
            plain_ticks(axes, sorted({float(row["density"]) for row in mine}, reverse=True))
            axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
        shared_labels(figure, grid, "share of weights kept", "dense time / ours")
    return path


def _line(axes: Axes, index: int, label: str, rows: Sequence[Row]) -> None:
    if not rows:
        return
    points = sorted({float(row["density"]): float(row["ratio"]) for row in rows}.items(), reverse=True)
    style: Any = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
    axes.plot([x for x, _ in points], [y for _, y in points], label=label, markersize=4, linewidth=1.4, **style)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m lth_sparse.benchmarks.gpu.plots gpu.csv DIRECTORY")
    for done in draw(read_csv(Path(sys.argv[1])), Path(sys.argv[2])):
        print(done)

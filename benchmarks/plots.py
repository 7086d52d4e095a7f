"""Plots of what was measured: speed-up against density, and the roofline.

    python -m lth_sparse.benchmarks.plots results.csv DIRECTORY      # plots of a file that --csv wrote

Colours are Okabe and Ito's, distinct to colour-blind eyes; every series has its own marker as well.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .measure import read_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, str]

OURS = "lth_sparse "
#: Colour and marker of each candidate; the library's own layouts are the dark ones.
STYLES = {
    "lth_sparse csr": ("#0072b2", "o"),
    "lth_sparse bsr-4x1": ("#d55e00", "s"),
    "lth_sparse bsr-16x16": ("#007a5a", "^"),
    "torch CSR": ("#e69f00", "v"),
    "scipy CSR": ("#a0528a", "D"),
    "torch BSR 16x16": ("#56b4e9", "P"),
}
OTHER = ("#4d4d4d", "x")
PANEL = (3.3, 2.9)
COLUMNS = 3


def speedup_plot(rows: Sequence[Row], path: Path, mode: str | None = None) -> Path:
    """One panel for each case and number of threads: dense time over each candidate's, against the density.

    `mode` is the longest one measured unless given. The dotted line is 1 / density, the limit of skipped arithmetic.
    """
    mode = mode or longest_mode(rows)
    points = [row for row in rows if row["mode"] == mode and row["candidate"] in STYLES]
    panels = list(dict.fromkeys((row["case"], row["threads"]) for row in points))
    with _figure(len(panels), path) as (figure, grid):
        for axes, (case, threads) in zip(grid, panels, strict=False):
            mine = [row for row in points if (row["case"], row["threads"]) == (case, threads)]
            densities = sorted({float(row["density"]) for row in mine}, reverse=True)
            axes.plot(densities, [1 / d for d in densities], ":", color="#4d4d4d", label="1 / density")
            axes.axhline(1.0, color="#4d4d4d", linewidth=0.8)
            for candidate in STYLES:
                _ratio_line(axes, candidate, [row for row in mine if row["candidate"] == candidate])
            axes.set(xscale="log", yscale="log", title=f"{case}, {_threads(threads)}")
            axes.invert_xaxis()
            _plain_ticks(axes, densities)
            axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
        _shared_labels(figure, grid, "share of weights kept", f"dense time / time ({mode})")
    return path


def roofline_plot(rows: Sequence[Row], path: Path, mode: str | None = None) -> Path:
    """One panel for each number of threads: live GFLOP/s against operations per byte that must move at least.

    The roof is the lower of the multiply-add peak and intensity times the rate of reading memory, both measured in the
    same run. Activations in a cache can lie above the slope: memory is then not what bounds them.
    """
    mode = mode or longest_mode(rows)
    points = [
        row for row in rows if row["mode"] == mode and (row["candidate"] in STYLES or row["candidate"] == "dense")
    ]
    panels = list(dict.fromkeys(row["threads"] for row in points))
    with _figure(len(panels), path, (4.6, 3.6)) as (figure, grid):
        for axes, threads in zip(grid, panels, strict=False):
            mine = [row for row in points if row["threads"] == threads]
            peak, bandwidth = (float(mine[0][name]) for name in ("fma_peak_gflops", "read_gbytes"))
            intensities = [float(row["flops_per_byte"]) for row in mine]
            low, high = min(intensities) / 1.5, max(max(intensities), peak / bandwidth) * 1.5
            knee = peak / bandwidth
            axes.plot([low, knee, high], [low * bandwidth, peak, peak], color="#4d4d4d", linewidth=1.2)
            axes.annotate(f"{peak:.0f} GFLOP/s", (high, peak), ha="right", va="bottom", fontsize=8)
            middle = math.sqrt(low * knee)
            axes.annotate(f"{bandwidth:.0f} GB/s ", (middle, middle * bandwidth), ha="right", va="bottom", fontsize=8)
            for candidate in ("dense", *STYLES):
                group = [row for row in mine if row["candidate"] == candidate]
                if group:
                    colour, marker = STYLES.get(candidate, OTHER)
                    x, y = ([float(row[name]) for row in group] for name in ("flops_per_byte", "live_gflops"))
                    axes.plot(x, y, marker, color=colour, markersize=4, label=_label(candidate), alpha=0.8)
            axes.set(xscale="log", yscale="log", title=f"{mode}, {_threads(threads)}")
            _plain_ticks(axes)
            axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
        _shared_labels(figure, grid, "live FLOP per byte moved at least", "live GFLOP/s")
    return path


def steps_plot(rows: Sequence[Row], path: Path) -> Path:
    """One panel for each network and number of threads: a bar for each candidate's step, in its three phases."""
    panels = list(dict.fromkeys((row["network"], row["threads"]) for row in rows))
    phases = (("forward", "#0072b2"), ("backward", "#56b4e9"), ("optimizer", "#e69f00"))
    with _figure(len(panels), path) as (figure, grid):
        for axes, (network, threads) in zip(grid, panels, strict=False):
            mine = [row for row in rows if (row["network"], row["threads"]) == (network, threads)]
            names = [_step_label(row) for row in mine]
            left = [0.0] * len(mine)
            for phase, colour in phases:
                widths = [float(row[f"{phase}_ms"]) for row in mine]
                axes.barh(names, widths, left=left, color=colour, label=phase)
                left = [start + width for start, width in zip(left, widths, strict=True)]
            for position, (end, row) in enumerate(zip(left, mine, strict=True)):
                axes.annotate(f" {float(row['ratio']):.2f}x", (end, position), va="center", fontsize=8)
            axes.set_xlim(0, max(left) * 1.2)
            axes.invert_yaxis()
            axes.set(title=f"{network}, {_threads(threads)}")
        _shared_labels(figure, grid, "milliseconds a training step", "")
    return path


def levels_plot(rows: Sequence[Row], path: Path) -> Path:
    """One panel for each network and number of threads: time per level against the share of weights left."""
    panels = list(dict.fromkeys((row["network"], row["threads"]) for row in rows))
    series = (("masked dense", "#d55e00", "s"), ("lth_sparse", "#0072b2", "o"))
    with _figure(len(panels), path, (4.6, 3.6)) as (figure, grid):
        for axes, (network, threads) in zip(grid, panels, strict=False):
            total = {}
            for candidate, colour, marker in series:
                key = (network, threads, candidate)
                mine = [row for row in rows if (row["network"], row["threads"], row["candidate"]) == key]
                x, y = ([float(row[name]) for row in mine] for name in ("density", "level_seconds"))
                axes.plot(x, y, marker=marker, color=colour, markersize=4, label=candidate)
                total[candidate] = sum(y)
            x, training, floor = (
                [float(row[name]) for row in mine] for name in ("density", "train_seconds", "floor_seconds")
            )
            axes.plot(x, training, "--", color="#0072b2", linewidth=1.0, label="of it training")
            axes.plot(x, floor, ":", color="#4d4d4d", label="floor: density x dense training")
            ratio = total["masked dense"] / total["lth_sparse"]
            axes.set(xscale="log", ylim=(0, None), title=f"{network}, {_threads(threads)}: {ratio:.2f}x in all")
            axes.invert_xaxis()
            _plain_ticks(axes, [mark for mark in (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01) if mark >= min(x) / 1.2])
            axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
        _shared_labels(figure, grid, "share of weights left", "seconds a level")
    return path


def draw(rows: Sequence[Row], directory: Path) -> list[Path]:
    """Both plots as SVG; none for rows without a sparse candidate."""
    if not any(row["candidate"] in STYLES for row in rows):
        return []
    directory.mkdir(parents=True, exist_ok=True)
    return [speedup_plot(rows, directory / "speedup.svg"), roofline_plot(rows, directory / "roofline.svg")]


def longest_mode(rows: Sequence[Row]) -> str:
    """The mode with the most products among the rows."""
    modes = {row["mode"] for row in rows}
    return next(mode for mode in ("step", "forward+dx", "forward") if mode in modes)


@contextmanager
def _figure(panels: int, path: Path, size: tuple[float, float] = PANEL) -> Iterator[tuple[Figure, list[Axes]]]:
    """A grid of panels to draw into, saved to `path` at the end; its suffix says the format."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: Any = {
        "font.size": 9,
        "axes.titlesize": 9,
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": path.stem,  # the same rows give the same file
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    columns = min(COLUMNS, panels)
    lines = math.ceil(panels / columns)
    with rc_context(settings):
        figure = Figure(figsize=(size[0] * columns, size[1] * lines + 0.4), layout="constrained")
        grid = [figure.add_subplot(lines, columns, index + 1) for index in range(panels)]
        yield figure, grid
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=metadata, dpi=120)


def _ratio_line(axes: Axes, candidate: str, rows: Sequence[Row]) -> None:
    if not rows:
        return
    rows = sorted(rows, key=lambda row: -float(row["density"]))
    x, y, low, high = ([float(row[name]) for row in rows] for name in ("density", "ratio", "ratio_p20", "ratio_p80"))
    colour, marker = STYLES[candidate]
    line = "-" if candidate.startswith(OURS) else "--"
    axes.plot(x, y, line, marker=marker, color=colour, markersize=4, linewidth=1.5, label=_label(candidate))
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _plain_ticks(axes: Axes, marks: Sequence[float] = ()) -> None:
    """Plain numbers on logarithmic axes, at 1, 2 and 5 of each decade, or at `marks` on the horizontal one."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_locator(NullLocator())
    if marks:
        axes.xaxis.set_major_locator(FixedLocator(list(marks)))
    plain: Callable[[float, int], str] = lambda value, _: f"{value:g}"  # noqa: E731
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(plain))
        axis.set_minor_formatter(NullFormatter())


def _shared_labels(figure: Figure, grid: Sequence[Axes], x: str, y: str) -> None:
    """One label of each axis and one legend for all panels."""
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    handles = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = 2 if len(grid) == 1 else 4
    place: Any = {"loc": "outside upper center", "ncols": columns, "frameon": False, "fontsize": 8.5}
    figure.legend(handles.values(), handles.keys(), **place)


def _label(candidate: str) -> str:
    return candidate.removeprefix(OURS) if candidate.startswith(OURS) else candidate


def _step_label(row: Row) -> str:
    return row["candidate"] + ("" if row["candidate"].startswith("dense") else f" {float(row['density']):.0%}")


def _threads(count: str) -> str:
    return f"{count} thread" + ("s" if count != "1" else "")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m lth_sparse.benchmarks.plots results.csv DIRECTORY")
    for written in draw(read_csv(Path(sys.argv[1])), Path(sys.argv[2])):
        print(written)

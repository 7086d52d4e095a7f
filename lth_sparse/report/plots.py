"""The curves of a run as SVG text: accuracy, early-stop iteration and seconds against percent of weights left.

The axes are the paper's (Frankle & Carbin 2018, figures 3 and 4): percent of weights left on a logarithmic scale, from
100 at the left to the smallest ticket at the right; a line is the mean over the seeds, the band around it is minimum to
maximum. Every series has its own marker beside its colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lth_sparse.report.figures import COLOURS, as_svg, figure_style, new_figure, tidy
from lth_sparse.report.summary import LevelSummary, Statistic, Summary, control_name
from lth_sparse.report.verdict import accuracy_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracy_plot", "early_stop_plot", "seconds_plot", "studies_plot"]

TICKET = "#0072b2"
DENSE = "#4d4d4d"
FLOOR = "#a0528a"
#: Colour, marker, and a factor on x: the controls of one level stand side by side, or one would hide the other.
CONTROLS = {"reinit": ("#d55e00", "s", 1.02), "shuffled": ("#007a5a", "^", 1 / 1.02)}
#: Of the lines of one figure, in their order.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SIZE = (5.0, 3.7)
#: Percentage points that an accuracy axis spans at least.
LEAST_SPAN = 2.0


def accuracy_plot(summary: Summary) -> str:
    """Test accuracy in percent, at the early-stop iteration."""
    label = "Test accuracy at early stop (%)"
    if all(level.early_accuracy is None for level in summary.levels):
        label = "Test accuracy at the end (%)"
    return _plot(summary, "accuracy", label, lambda level: _scaled(accuracy_of(level), 100.0))


def early_stop_plot(summary: Summary) -> str:
    """Iteration of the lowest validation loss: lower is faster learning."""
    return _plot(summary, "earlystop", "Early-stop iteration", lambda level: level.early_stop, zero=True)


def seconds_plot(summary: Summary) -> str:
    """Seconds of training per level, with the floor that no pruning gets below."""
    return _plot(summary, "seconds", "Training time per level (s)", lambda level: level.seconds, zero=True, floor=True)


def studies_plot(summaries: Mapping[str, Summary]) -> str:
    """Test accuracy in percent after the last iteration of several searches by name, a line for each."""
    with figure_style("studies"):
        figure = new_figure(SIZE)
        axes = figure.add_subplot()
        for i, (name, summary) in enumerate(summaries.items()):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            _series(axes, summary.levels, lambda level: _scaled(level.accuracy, 100.0), colour, marker, name)
        _percent_axis(axes, [level.percent for summary in summaries.values() for level in summary.levels])
        axes.set_ylabel("Test accuracy at the end (%)")
        tidy(axes)
        return as_svg(figure, "studies", "Test accuracy at the end (%) of each search against percent of weights left")


def _plot(summary: Summary, name: str, label: str, value: Any, *, zero: bool = False, floor: bool = False) -> str:
    with figure_style(name):
        figure = new_figure(SIZE)
        axes = figure.add_subplot()
        if summary.dense is not None and (dense := value(summary.dense)) is not None:
            axes.axhline(dense.mean, color=DENSE, linestyle="--", linewidth=1.4, label="dense network")
            if dense.count > 1:
                axes.axhspan(dense.minimum, dense.maximum, color=DENSE, alpha=0.10, linewidth=0)
        _series(axes, summary.levels, value, TICKET, "o", "ticket")
        others: list[str] = []
        for kind in sorted({control.control or "" for control in summary.controls}):
            colour, marker, aside = CONTROLS.get(kind) or (COLOURS[(2 + len(others)) % len(COLOURS)], "x", 1.0)
            others += [kind] if kind not in CONTROLS else []
            members = [control for control in summary.controls if control.control == kind]
            _series(axes, members, value, colour, marker, control_name(kind), line="--", aside=aside)
        if floor and summary.floor is not None:
            axes.axhline(summary.floor, color=FLOOR, linestyle=":", linewidth=1.8, label="floor: no weights left (fit)")
        _percent_axis(axes, [level.percent for level in (*summary.levels, *summary.controls)])
        axes.set_ylabel(label)
        low, high = axes.get_ylim()
        if not zero and high - low < LEAST_SPAN:  # do not magnify a difference of one test image
            axes.set_ylim((low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2)
        if zero:
            axes.set_ylim(bottom=0.0, top=axes.get_ylim()[1] * 1.05)
        tidy(axes)
        return as_svg(figure, name, f"{label} against percent of weights left")


def _series(
    axes: Axes,
    levels: Sequence[LevelSummary],
    value: Any,
    colour: str,
    marker: str,
    label: str,
    line: str = "-",
    aside: float = 1.0,
) -> None:
    """Mean as a line with markers, minimum to maximum as a band, or as bars when there is a single level."""
    kept = [level for level in levels if level.percent > 0 and value(level) is not None]
    points = [(level.percent * aside, value(level)) for level in kept]
    if not points:
        return
    x, middle = [point[0] for point in points], [point[1].mean for point in points]
    low, high = [point[1].minimum for point in points], [point[1].maximum for point in points]
    axes.plot(
        x, middle, color=colour, marker=marker, linestyle=line, markersize=5.5, linewidth=1.8, label=label, zorder=3
    )
    if len(points) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    else:
        # A mean of equal numbers may be rounded past them, and matplotlib refuses bars of negative length.
        below, above = [[max(0.0, middle[0] - low[0])], [max(0.0, high[0] - middle[0])]]
        axes.errorbar(x, middle, yerr=[below, above], color=colour, capsize=4, linewidth=1.4, zorder=3)


def _percent_axis(axes: Axes, percents: Sequence[float]) -> None:
    """Logarithmic, 100% at the left, labelled with plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    axes.set_xlabel("Weights left (%), logarithmic")
    positive = [percent for percent in percents if percent > 0]
    if not positive:
        return
    axes.set_xscale("log")
    smallest = min(positive)
    levels = sorted({round(percent, 1) for percent in positive})
    # A handful of levels are marked themselves: over so short an axis round numbers would leave it bare.
    marks = levels if len(levels) <= 6 else [mark for mark in _marks(smallest) if smallest / 1.15 <= mark <= 100.0]
    axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda mark, _: f"{mark:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(112.0, min(smallest, 90.0) / 1.12)


def _marks(smallest: float) -> list[float]:
    marks, decade = [], 100.0
    while decade > smallest / 10.0:
        marks += [decade, decade / 2.0, decade / 5.0]
        decade /= 10.0
    return marks


def _scaled(statistic: Statistic | None, factor: float) -> Statistic | None:
    if statistic is None:
        return None
    return Statistic(statistic.mean * factor, statistic.minimum * factor, statistic.maximum * factor, statistic.count)

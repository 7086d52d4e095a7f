"""Plots of ``lth_sparse.engine.analyses`` as SVG text; each takes what the function of the same stem returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lth_sparse.engine.analyses import (
    Barrier,
    Cost,
    Curve,
    InitialWeights,
    LayerStatistics,
    Movement,
    Overlap,
)
from lth_sparse.report.figures import COLOURS, as_svg, figure_style, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "barrier_plot",
    "connectivity_plot",
    "cost_plot",
    "density_plot",
    "initial_plot",
    "learning_plot",
    "movement_plot",
    "overlap_plot",
]

SIZE = (5.0, 3.7)
#: Layers beside each other in a figure; more would be too small to read, and the table has all of them.
MOST_LAYERS = 6


def learning_plot(curves: Mapping[str, Curve], label: str = "Test accuracy (%)", factor: float = 100.0) -> str:
    """Metric against iteration: a line for each of ``curves`` (name -> curve), its band from minimum to maximum."""
    with figure_style("learning"):
        figure = new_figure(SIZE)
        axes = figure.add_subplot()
        for (name, curve), colour in zip(curves.items(), _cycle(len(curves)), strict=True):
            axes.plot(curve.steps, [factor * value for value in curve.mean], color=colour, linewidth=1.6, label=name)
            low, high = ([factor * value for value in side] for side in (curve.minimum, curve.maximum))
            axes.fill_between(curve.steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel("Iteration")
        axes.set_ylabel(label)
        tidy(axes)
        return as_svg(figure, "learning", f"{label} against iteration")


def density_plot(by_seed: Sequence[Sequence[LayerStatistics]]) -> str:
    """Percent of each layer's weights that are left: mean over the seeds, with minimum and maximum."""
    with figure_style("density"):
        figure = new_figure(SIZE)
        axes = figure.add_subplot()
        layers = [[100.0 * layer.density for layer in same] for same in zip(*by_seed, strict=True)]
        means = [sum(one) / len(one) for one in layers]
        # A mean of equal numbers may be rounded past them, and matplotlib refuses bars of negative length.
        aside = [[max(0.0, mean - min(one)) for mean, one in zip(means, layers, strict=True)]]
        aside += [[max(0.0, max(one) - mean) for mean, one in zip(means, layers, strict=True)]]
        axes.bar(range(len(layers)), means, 0.6, color=COLOURS[0], yerr=aside, capsize=3, label="weights left")
        _name_ticks(axes, [one.name for one in by_seed[0]])
        axes.set_ylabel("Weights left (%)")
        tidy(axes)
        return as_svg(figure, "density", "Percent of each layer's weights that are left")


def connectivity_plot(layers: Sequence[LayerStatistics]) -> str:
    """Live weights of each unit over the mean of its layer, units in ascending order; incoming, and outgoing dashed."""
    with figure_style("connectivity"):
        figure = new_figure(SIZE)
        axes = figure.add_subplot()
        shown = list(layers)[:MOST_LAYERS]
        for layer, colour in zip(shown, _cycle(len(shown)), strict=True):
            for degrees, line, side in ((layer.incoming, "-", "in"), (layer.outgoing, "--", "out")):
                if not degrees.mean:
                    continue
                shares = (degrees.counts.sort().values.double() / degrees.mean).tolist()
                ranks = [100.0 * (index + 0.5) / len(shares) for index in range(len(shares))]
                axes.plot(ranks, shares, color=colour, linestyle=line, linewidth=1.5, label=f"{layer.name}, {side}")
        axes.set_xlabel("Units in ascending order (%)")
        axes.set_ylabel("Live weights over the layer's mean")
        axes.set_ylim(bottom=0.0)
        tidy(axes)
        return as_svg(figure, "connectivity", "Live weights of each unit, in ascending order")


def initial_plot(layers: Sequence[InitialWeights]) -> str:
    """Density of theta_0 in each layer: all weights in grey, the survivors as a line."""
    shown = list(layers)[:MOST_LAYERS]
    with figure_style("initial"):
        figure = new_figure((SIZE[0], max(1, -(-len(shown) // 2)) * 2.1))
        for position, layer in enumerate(shown):
            axes = figure.add_subplot(-(-len(shown) // 2), 2 if len(shown) > 1 else 1, position + 1)
            edges = layer.edges.tolist()
            axes.stairs(layer.everything.tolist(), edges, fill=True, color="#d4d4d4", label="all")
            axes.stairs(layer.survivors.tolist(), edges, color=COLOURS[0], linewidth=1.4, label="survivors")
            axes.set_title(layer.name, fontsize=9)
            axes.set_yticks([])
            tidy(axes)
        return as_svg(figure, "initial", "Distribution of the initial weights, all and survivors")


def movement_plot(pairs: Sequence[tuple[Movement, Movement]]) -> str:
    """Mean distance that survivors and pruned weights of each layer move while the dense network trains."""
    with figure_style("movement"):
        figure = new_figure(SIZE)
        axes = figure.add_subplot()
        places = range(len(pairs))
        for offset, group, colour, name in ((-0.2, 0, COLOURS[0], "survivors"), (0.2, 1, COLOURS[1], "pruned")):
            heights = [pair[group].distance for pair in pairs]
            axes.bar([place + offset for place in places], heights, 0.4, color=colour, label=name)
        _name_ticks(axes, [pair[0].name for pair in pairs])
        axes.set_ylabel("Mean |w trained - w initial|")
        tidy(axes)
        return as_svg(figure, "movement", "Mean distance moved in training, survivors and pruned weights")


def overlap_plot(rows: Sequence[Overlap]) -> str:
    """Jaccard index of each layer's two masks, and what chance gives."""
    with figure_style("overlap"):
        figure = new_figure(SIZE)
        axes = figure.add_subplot()
        places = range(len(rows))
        axes.bar(places, [row.jaccard for row in rows], 0.6, color=COLOURS[0], label="measured")
        for place, row in zip(places, rows, strict=True):
            axes.plot([place - 0.3, place + 0.3], [row.expected] * 2, color=COLOURS[1], linewidth=2.0)
        axes.plot([], [], color=COLOURS[1], linewidth=2.0, label="by chance")
        _name_ticks(axes, [row.name for row in rows])
        axes.set_ylabel("Jaccard index of two seeds' masks")
        tidy(axes)
        return as_svg(figure, "overlap", "Overlap of two masks in each layer")


def cost_plot(cost: Cost) -> str:
    """Multiply-adds and bytes of each layer, dense and live, logarithmic."""
    rows = cost.layers
    sides: dict[str, list[tuple[float, float]]] = {
        "Multiply-adds of one example": [(row.dense_multiply_adds, row.multiply_adds) for row in rows],
        "Bytes of the weights": [(row.numel * row.element, row.nnz * row.element) for row in rows],
    }
    with figure_style("cost"):
        figure = new_figure((2 * SIZE[0], SIZE[1]))
        for position, (label, pairs) in enumerate(sides.items()):
            axes = figure.add_subplot(1, 2, position + 1)
            places = range(len(rows))
            axes.bar(places, [dense for dense, _ in pairs], 0.7, color="#d4d4d4", label="dense")
            axes.bar(places, [live for _, live in pairs], 0.45, color=COLOURS[0], label="ticket")
            if max((dense for dense, _ in pairs), default=0) > 0:
                axes.set_yscale("log")
            _name_ticks(axes, [row.name for row in rows])
            axes.set_ylabel(label)
            tidy(axes)
        return as_svg(figure, "cost", "Multiply-adds of one example and bytes of the weights in each layer")


def barrier_plot(barriers: Mapping[str, Barrier]) -> str:
    """Error along the line between two networks, a line for each of ``barriers`` (name -> barrier)."""
    with figure_style("barrier"):
        figure = new_figure(SIZE)
        axes = figure.add_subplot()
        for (name, barrier), colour in zip(barriers.items(), _cycle(len(barriers)), strict=True):
            errors = [100.0 * error for error in barrier.errors]
            axes.plot(barrier.positions, errors, color=colour, marker="o", markersize=3, linewidth=1.5, label=name)
        axes.set_xlabel("Position between the two networks")
        axes.set_ylabel("Error (%)")
        tidy(axes)
        return as_svg(figure, "barrier", "Error on the line between two networks")


def _cycle(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Names of layers below their bars: aslant, and upright where there are too many for that."""
    if len(names) <= MOST_LAYERS:
        axes.set_xticks(range(len(names)), list(names), rotation=20, ha="right", fontsize=8)
    else:
        axes.set_xticks(range(len(names)), list(names), rotation=90, fontsize=6)

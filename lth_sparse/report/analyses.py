"""The analyses of a finished search as sections of the report: a sentence, figures and a table each.

They describe the ticket of one level, the one that the verdict is about, over all seeds that have it. A section that
the run cannot fill (one seed has no overlap with another) is left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from lth_sparse.engine import TicketResult
from lth_sparse.engine.analyses import (
    Barrier,
    Cost,
    Degrees,
    Overlap,
    initial_weights,
    layer_statistics,
    learning_curve,
    movement,
    overlap,
)
from lth_sparse.errors import ArgumentError
from lth_sparse.report import analysis_plots as plots
from lth_sparse.report.summary import control_name
from lth_sparse.report.tables import Grid

__all__ = ["Section", "analysis_sections"]

T = TypeVar("T")


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title, text: heading, and what the reader should look for.
        figures: (SVG text, caption).
        grids: tables; their cells are in the JSON as well.
    """

    title: str
    text: str
    figures: tuple[tuple[str, str], ...]
    grids: tuple[Grid, ...]


def analysis_sections(
    results: Mapping[int, TicketResult],
    level: int,
    cost: Cost | None = None,
    barriers: Mapping[str, Sequence[Barrier]] | None = None,
) -> tuple[Section, ...]:
    """Sections about the tickets of ``level``.

    Args:
        results: by seed; seeds that have not finished the level are left out.
        level: a pruned level; there is nothing to say about the dense one.
        cost: of the level's ticket, from :func:`lth_sparse.engine.analyses.count_cost`.
        barriers: network -> one for each seed, from :func:`lth_sparse.engine.analyses.order_barrier`; those that
            ``rewind="auto"`` measured come by themselves.
    """
    done = [result for result in results.values() if len(result.tickets) > level]
    if level < 1 or not done:
        return ()
    sections = [_learning(done, level), _connectivity(done, level), _initial(done, level), _movement(done, level)]
    sections += [_overlap(done, level), _barriers(done, barriers or {}), None if cost is None else _cost(cost)]
    return tuple(section for section in sections if section is not None)


def _learning(done: Sequence[TicketResult], level: int) -> Section | None:
    groups = {"dense": [result.levels[0].history for result in done]}
    groups["ticket"] = [result.levels[level].history for result in done]
    kinds = sorted({kind for result in done for (at, kind) in result.controls if at == level})
    for kind in kinds:
        found = [result.controls[level, kind].history for result in done if (level, kind) in result.controls]
        groups[control_name(kind)] = found
    curves = {}
    for name, histories in groups.items():
        try:
            curves[name] = learning_curve(histories)
        except ArgumentError:  # this network's training recorded no test accuracy on the way
            continue
    if not curves:
        return None
    figure = (plots.learning_plot(curves), "Test accuracy while training; bands run from minimum to maximum.")
    text = "A winning ticket learns at least as fast as the dense network, and faster than its controls."
    return Section("Learning curves", text, (figure,), ())


def _connectivity(done: Sequence[TicketResult], level: int) -> Section:
    by_seed = [layer_statistics(result.tickets[level].masks) for result in done]
    rows = []
    for layers in zip(*by_seed, strict=True):
        first = layers[0]
        rows.append(
            (
                first.name,
                f"{100 * _mean(layers, lambda layer: layer.density):.2f}%",
                *_degrees([layer.incoming for layer in layers]),
                *_degrees([layer.outgoing for layer in layers]),
            )
        )
    headers = ("layer", "weights left", "incoming", "dead", "unevenness", "outgoing", "dead", "unevenness")
    text = (
        "Live weights into each output unit and out of each input unit: mean [minimum, maximum], units without any, "
        "and the variance over the units divided by that of a random mask of the same size (1 is chance, less is more "
        "even). The paper finds incoming connections even and outgoing ones uneven (appendix F.3)."
    )
    figures = (
        (plots.density_plot(by_seed), "Weights left in each layer; bars run from minimum to maximum over the seeds."),
        (plots.connectivity_plot(by_seed[0]), "First seed. Flat lines share the survivors evenly among the units."),
    )
    return Section("Where the survivors are", text, figures, (Grid("", headers, tuple(rows)),))


def _degrees(sides: Sequence[Degrees]) -> tuple[str, str, str]:
    """Cells of one side of a layer over the seeds: live weights of a unit, dead units, unevenness."""
    units = [count for side in sides for count in side.counts.tolist()]
    if not units:
        return "-", "-", "-"
    spread = [side.dispersion for side in sides if not math.isnan(side.dispersion)]
    return (
        f"{statistics.fmean(units):.1f} [{min(units)}, {max(units)}]",
        f"{statistics.fmean(side.dead for side in sides):.3g}",
        f"{statistics.fmean(spread):.2f}" if spread else "-",
    )


def _initial(done: Sequence[TicketResult], level: int) -> Section | None:
    by_seed = [initial_weights(result.tickets[0], result.tickets[level]) for result in done]
    if not by_seed[0]:
        return None
    rows = tuple(
        (
            layers[0].name,
            f"{_mean(layers, lambda layer: layer.std):.4f}",
            f"{_mean(layers, lambda layer: layer.survivors_std):.4f}",
            f"{_mean(layers, lambda layer: layer.magnitude):.4f}",
            f"{_mean(layers, lambda layer: layer.survivors_magnitude):.4f}",
        )
        for layers in zip(*by_seed, strict=True)
    )
    headers = ("layer", "std, all", "std, survivors", "mean |w|, all", "mean |w|, survivors")
    text = (
        "The weights that training starts from. Where the survivors' distribution has two humps, initially large "
        "weights were kept more often (appendix F.1)."
    )
    figure = (plots.initial_plot(by_seed[0]), "First seed; each area is 1.")
    return Section("Initial weights of the survivors", text, (figure,), (Grid("", headers, rows),))


def _movement(done: Sequence[TicketResult], level: int) -> Section | None:
    by_seed = [movement(result.tickets[0], result.tickets[level]) for result in done]
    if not by_seed[0]:
        return None
    rows = []
    for pairs in zip(*by_seed, strict=True):
        groups = (("survivors", [pair[0] for pair in pairs]), ("pruned", [pair[1] for pair in pairs]))
        for name, group in groups:
            rows.append(
                (
                    f"{group[0].name}, {name}",
                    f"{_mean(group, lambda one: one.distance):.4f}",
                    f"{_mean(group, lambda one: one.growth):+.4f}",
                    f"{100 * _mean(group, lambda one: one.outward):.1f}%",
                    f"{100 * _mean(group, lambda one: one.kept_sign):.1f}%",
                )
            )
    headers = ("weights", "distance", "change of |w|", "away from 0", "sign kept")
    text = (
        "How weights move while the dense network trains, those that the ticket keeps and those that it prunes. The "
        "paper finds that the former move further, and away from zero (appendix F.5)."
    )
    figure = (plots.movement_plot(by_seed[0]), "First seed.")
    return Section("Movement of the weights", text, (figure,), (Grid("", headers, tuple(rows)),))


def _overlap(done: Sequence[TicketResult], level: int) -> Section | None:
    pairs = [overlap(a.tickets[level].masks, b.tickets[level].masks) for a, b in combinations(done, 2)]
    if not pairs:
        return None
    shown: list[list[Overlap]] = [list(rows) for rows in zip(*pairs, strict=True) if rows[0].first < rows[0].numel]
    if not shown:
        return None
    rows = tuple(
        (
            layers[0].name,
            f"{_mean(layers, lambda row: row.jaccard):.4f}",
            f"{_mean(layers, lambda row: row.expected):.4f}",
        )
        for layers in shown
    )
    text = (
        "Weights that two seeds' tickets both keep, over those that either keeps: mean over all pairs of seeds, and "
        "what random masks of the same sizes give. Seeds start from different weights, so chance is what to expect."
    )
    figure = (plots.overlap_plot([layers[0] for layers in shown]), "First two seeds.")
    headers = ("layer", "Jaccard index", "by chance")
    return Section("Overlap between seeds", text, (figure,), (Grid("", headers, rows),))


def _barriers(done: Sequence[TicketResult], measured: Mapping[str, Sequence[Barrier]]) -> Section | None:
    groups = {name: list(barriers) for name, barriers in measured.items() if barriers}
    for step in sorted({step for result in done for step in result.stability}):
        groups[f"dense, from step {step}"] = [one.stability[step] for one in done if step in one.stability]
    if not groups:
        return None
    rows = []
    for name, barriers in groups.items():
        heights = [100 * barrier.height for barrier in barriers]
        rows.append(
            (
                name,
                f"{100 * _mean(barriers, lambda one: (one.errors[0] + one.errors[-1]) / 2):.2f}%",
                f"{100 * _mean(barriers, lambda one: max(one.errors)):.2f}%",
                f"{statistics.fmean(heights):.2f} [{min(heights):.2f}, {max(heights):.2f}]",
                f"{sum(barrier.stable() for barrier in barriers)} of {len(barriers)}",
            )
        )
    headers = ("network", "error at the ends", "highest between", "barrier (points)", "stable seeds")
    text = (
        "Two copies of a network that train from the same weights in different data orders, and the networks on the "
        "straight line between them: the barrier is the highest validation error on it less the mean of its ends, and "
        "under 2 percentage points training is called stable. Frankle et al. (2020) find winning tickets in large "
        "networks only where it is."
    )
    figure = (plots.barrier_plot({name: barriers[0] for name, barriers in groups.items()}), "First seed.")
    return Section("Linear mode connectivity", text, (figure,), (Grid("", headers, tuple(rows)),))


def _cost(cost: Cost) -> Section:
    rows = [
        (
            layer.name,
            f"{layer.dense_multiply_adds:,.0f}",
            f"{layer.multiply_adds:,.0f}",
            f"{layer.numel * layer.element:,}",
            f"{layer.nnz * layer.element:,}",
        )
        for layer in cost.layers
    ]
    total = (f"{cost.dense_multiply_adds:,.0f}", f"{cost.multiply_adds:,.0f}")
    rows.append(("all", *total, f"{cost.dense_bytes:,}", f"{cost.value_bytes:,}"))
    headers = ("layer", "multiply-adds, dense", "ticket", "bytes, dense", "ticket")
    text = (
        f"Multiply-adds of one example's forward pass ({100 * cost.share:.2f}% are left; each gradient costs as much "
        f"again) and bytes of the weights. The masks take {cost.mask_bytes:,} bytes in a ticket file."
    )
    figure = (plots.cost_plot(cost), "Multiply-adds of one example, forward, and bytes; logarithmic.")
    return Section("Cost", text, (figure,), (Grid("", headers, tuple(rows)),))


def _mean(items: Iterable[T], figure: Callable[[T], float]) -> float:
    return statistics.fmean(figure(item) for item in items)

"""How many weights level k keeps, and which: exact counts, per layer or over all layers, ties broken by position.

A layer (or pool of layers) of n_0 weights pruned at rate p keeps n_k = n_0 (1 - p)^k weights after k levels, rounded to
the nearest count that whole tiles allow; an exact half goes down. n_k is computed from n_0 with exact fractions, so
rounding never adds up over levels, and level k keeps a subset of what level k - 1 kept.

scope="layer": every layer by itself. scope="global": layers of the same rate are pooled and compete by score; a layer
with a rate of its own (the output layer, by default) is a pool of its own. (Frankle & Carbin 2018, sections 2 and 4.)
scope="erk": the same pools, whose totals are divided over their layers by :mod:`lth_sparse.engine.erk`, whatever the
scores; within a layer the scores decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lth_sparse.engine.erk import erk_counts
from lth_sparse.engine.granularity import Granularity

__all__ = ["SCOPES", "Pruned", "lowest", "planned_density", "pools", "prune", "survivors"]

SCOPES = ("layer", "global", "erk")


@dataclass(frozen=True)
class Pruned:
    """Outcome of one pruning.

    Attributes:
        masks: the new masks, in the order of the old ones.
        floored: layers that would have fallen below the floor and were held there.
    """

    masks: dict[str, Tensor]
    floored: list[str]


def survivors(numel: int, rate: float, level: float) -> Fraction:
    """n_k = n_0 (1 - p)^k, exactly; the rate is taken as the decimal number that it prints as.

    Between two levels, for criteria that prune in rounds, k is no whole number and n_k is as near as a float is.
    """
    kept = 1 - Fraction(repr(float(rate)))
    return numel * (kept ** int(level) if level == int(level) else Fraction(float(kept) ** level))


def planned_density(
    shapes: Mapping[str, torch.Size], rates: Mapping[str, float], level: int, scope: str = "layer"
) -> float:
    """Share of all weights that ``level`` keeps with single weights as tiles, known before anything is trained.

    Exact while no layer is at its ``min_kept``, and with scope="global" and "erk" even then, since others go instead.

    Args:
        shapes: per layer, of its weight; rates: per layer, 0 or none for one that is never pruned.
    """
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    kept = sum(size for name, size in sizes.items() if not rates.get(name, 0.0))
    for names in pools(shapes, rates, scope):
        kept += _nearest(survivors(sum(sizes[name] for name in names), rates[names[0]], level))
    return kept / sum(sizes.values())


def prune(
    scores: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    rates: Mapping[str, float],
    level: float,
    *,
    scope: str = "layer",
    granularity: Granularity | None = None,
    min_kept: int = 1,
) -> Pruned:
    """Masks of ``level`` from those of the level before.

    The tiles with the smallest scores go first. Among equal scores the one that comes first goes first: by order of the
    layers in ``masks``, then by flat (row-major) index. With scope="global" tiles compare by their mean score per
    weight, since their sizes may differ between layers.

    Args:
        scores: per layer, shape of the weight, no NaN where the mask is True. Layers with rate 0 need none.
        masks: per layer, bool, the survivors of the level before; all True before level 1.
        rates: per layer, share of the survivors that each level prunes, in [0, 1).
        level: 1, 2, ...; 1.25 for a quarter of the way from level 1 to level 2.
        scope: "layer", "global" or "erk".
        granularity: the tile; single weights by default.
        min_kept: every layer keeps at least so many weights, its best; with "global" and "erk" others go instead.
    """
    tile = granularity or Granularity.parse("weight")
    pruned = {name: mask for name, mask in masks.items() if not rates.get(name, 0.0)}
    floored: list[str] = []
    shapes = {name: mask.shape for name, mask in masks.items()}
    for names in pools(shapes, rates, scope):
        goal = survivors(sum(masks[name].numel() for name in names), rates[names[0]], level)
        parts = [(names, goal)]
        if scope == "erk":
            parts, held = _erk_goals(shapes, names, goal, tile, min_kept)
            floored += held
        for part, its_goal in parts:
            new, held = _prune_pool(part, scores, masks, its_goal, tile, min_kept, scope == "global")
            pruned.update(new)
            floored += [name for name in held if name not in floored]
    return Pruned({name: pruned[name] for name in masks}, floored)


def pools(names: Iterable[str], rates: Mapping[str, float], scope: str) -> list[list[str]]:
    """Layers that share one total: each alone with scope="layer", else those of equal rate."""
    rated = [name for name in names if rates.get(name, 0.0)]
    if scope == "layer":
        return [[name] for name in rated]
    together: dict[float, list[str]] = {}
    for name in rated:
        together.setdefault(rates[name], []).append(name)
    return list(together.values())


def _nearest(count: Fraction) -> int:
    """The nearest integer; an exact half goes down."""
    return -(-(2 * count - 1) // 2)


def _erk_goals(
    shapes: Mapping[str, torch.Size], names: list[str], goal: Fraction, tile: Granularity, min_kept: int
) -> tuple[list[tuple[list[str], Fraction]], list[str]]:
    """Each layer's own goal, and the layers whose share was below the floor."""
    sizes = [shapes[name] for name in names]
    total = _nearest(goal)
    least = [min(size.numel(), max(min_kept, tile.least(size))) for size in sizes]
    own, counts = erk_counts(sizes, total), erk_counts(sizes, total, least)
    held = [name for name, count, floor in zip(names, own, least, strict=True) if count < floor]
    return [([name], Fraction(count)) for name, count in zip(names, counts, strict=True)], held


def _prune_pool(
    names: list[str],
    scores: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    goal: Fraction,
    tile: Granularity,
    min_kept: int,
    compare_means: bool,
) -> tuple[dict[str, Tensor], list[str]]:
    alive = [(tile.pool(masks[name].cpu()) > 0).nonzero()[:, 0] for name in names]
    layers = list(zip(names, alive, strict=True))
    size = torch.cat([tile.sizes(masks[name].shape)[index] for name, index in layers])
    score = torch.cat([tile.pool(scores[name])[index].to(torch.float64) for name, index in layers])
    layer = torch.cat([torch.full_like(index, i) for i, index in enumerate(alive)])
    if compare_means:
        score = score / size
    kept_by_tile = None
    if tile.of is not None:
        kept_by_tile = torch.cat([tile.protected(scores[name], masks[name].cpu())[index] for name, index in layers])
    total = int(size.sum())
    gone = _gone(score, size, total, goal, kept_by_tile)
    left = torch.zeros(len(names), dtype=torch.int64).index_add_(0, layer, size).index_add_(0, layer[gone], -size[gone])
    held = (left < min_kept).nonzero()[:, 0].tolist()
    if held:
        order = torch.sort(score, stable=True).indices
        protected = _protected(order, size, layer, len(names), min_kept)
        gone = _gone(score, size, total, goal, protected if kept_by_tile is None else protected | kept_by_tile)
    elif kept_by_tile is not None and int(left.sum()) - goal > Fraction(1, 2):
        held = list(range(len(names)))
    kept = torch.ones(len(score), dtype=torch.bool)
    kept[gone] = False
    new: dict[str, Tensor] = {}
    for i, name in enumerate(names):
        tiles = torch.zeros(tile.sizes(masks[name].shape).numel(), dtype=torch.bool)
        tiles[alive[i]] = kept[layer == i]
        new[name] = tile.expand(tiles, masks[name].shape).to(masks[name].device)
    return new, [names[i] for i in held]


def _gone(score: Tensor, size: Tensor, total: int, goal: Fraction, protected: Tensor | None) -> Tensor:
    """Positions of the tiles to drop: the lowest scores of those that are not protected."""
    if protected is not None:
        (free,) = (~protected).nonzero(as_tuple=True)
        return free[_gone(score[free], size[free], total, goal, None)]
    if bool((size == size[:1]).all()):  # how many are dropped does not depend on which
        return lowest(score, _count(size, total, goal))
    order = torch.sort(score, stable=True).indices
    return order[: _count(size[order], total, goal)]


def lowest(score: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` lowest scores. Ties go by position: the same on every machine and every rank.

    The first ``count`` of a stable sort, in the order of positions and in a tenth of its time.
    """
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=score.device)
    bound = torch.kthvalue(score, count).values
    below, ties = score < bound, (score == bound).nonzero()[:, 0]
    return torch.cat([below.nonzero()[:, 0], ties[: count - int(below.sum())]])


def _count(sizes: Tensor, total: int, goal: Fraction) -> int:
    """How many tiles to drop from the front, so that the weights left of ``total`` come as near as can be to ``goal``.

    A tile is dropped while that brings the count nearer: ``before - size / 2 >= goal``, here in integers.
    """
    before = total - (sizes.cumsum(0) - sizes)
    doubled = 2 * goal
    least = -(-doubled.numerator // doubled.denominator)
    refused = (2 * before - sizes < least).nonzero()
    return int(refused[0]) if len(refused) else len(sizes)


def _protected(order: Tensor, size: Tensor, layer: Tensor, layers: int, min_kept: int) -> Tensor:
    """Bool per tile: the best tiles of each layer, as many as hold ``min_kept`` weights."""
    protected = torch.zeros(len(order), dtype=torch.bool)
    for i in range(layers):
        best_first = order[layer[order] == i].flip(0)
        better = size[best_first].cumsum(0) - size[best_first]
        protected[best_first[better < min_kept]] = True
    return protected

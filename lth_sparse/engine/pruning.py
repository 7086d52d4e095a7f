"""One pruning: mask_k from the ticket of level k - 1, by a criterion, in one round or in several.

A criterion at initialisation scores theta_0 under the mask so far, any other the trained weights. With n rounds, round
r of level k prunes to n_0 (1 - p)^(k - 1 + r / n) weights and scores what is left anew: the exponential schedule of
SynFlow, exact at the end of the level. Everything random descends from the seed, the level and the round; the caller's
random states stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lth_sparse.engine.criteria import Scoring, find_criterion, score
from lth_sparse.engine.granularity import Granularity
from lth_sparse.engine.rng import preserved_rng
from lth_sparse.engine.scope import Pruned, pools, prune, survivors
from lth_sparse.engine.settings import Settings
from lth_sparse.engine.ticket import Ticket
from lth_sparse.errors import ArgumentError, expected

__all__ = ["check_depth", "prune_level"]


def prune_level(
    level: int,
    before: Ticket,
    start: Mapping[str, Tensor],
    build: Callable[[Mapping[str, Tensor]], nn.Module],
    rates: Mapping[str, float],
    settings: Settings,
) -> Pruned:
    """The masks of ``level``.

    Args:
        level: 1, 2, ...
        before: the ticket of the level before.
        start: parameters and buffers at the start of level 0, theta_0.
        build: ``build(tensors)`` makes a fresh dense model that holds them.
        rates: per layer, see :func:`lth_sparse.engine.selection.layer_rates`.
        settings: of the search.

    Raises:
        RunError, ArgumentError, ArgumentTypeError: see :func:`lth_sparse.engine.criteria.score`.
    """
    criterion = find_criterion(settings.criterion)
    state = {**start, **before.state_dict("initial" if criterion.at_init else "trained")}
    masks: Mapping[str, Tensor] = before.masks
    initial = {name: start[name] for name in masks}
    rounds = settings.rounds
    floored: list[str] = []
    with preserved_rng():
        for round in range(1, rounds + 1):
            alive = state if round == 1 else _masked(state, masks, before.aliases)
            weights = {name: alive[name] for name in masks}
            scoring = Scoring(
                weights,
                masks,
                initial,
                functools.partial(build, alive),
                settings.score_data,
                level=level,
                round=round,
                seed=settings.seed,
            )
            scoring.begin()
            pruned = prune(
                {name: score(criterion, name, weights[name], masks[name], scoring) for name in masks if rates[name]},
                masks,
                rates,
                level if round == rounds else level - 1 + round / rounds,
                scope=settings.shared,
                granularity=Granularity.parse(settings.granularity),
                min_kept=settings.min_kept,
            )
            masks = pruned.masks
            floored += [name for name in pruned.floored if name not in floored]
    return Pruned(dict(masks), floored)


def check_depth(
    shapes: Mapping[str, torch.Size], rates: Mapping[str, float], depth: int, scope: str, granularity: Granularity
) -> None:
    """Refuse levels of "N:M" that find every layer at N:M already.

    Raises:
        ArgumentError: naming levels, with the most that make sense.
    """
    if granularity.of is None:
        return
    groups = pools(shapes, rates, scope)

    def anything_left(level: int) -> bool:
        """Whether level + 1 has something to prune."""
        return any(
            survivors(sum(shapes[name].numel() for name in names), rates[names[0]], level)
            > sum(granularity.least(shapes[name]) for name in names)
            for names in groups
        )

    if depth > 1 and not anything_left(depth - 1):
        most = next(level for level in range(1, depth) if not anything_left(level))
        what = f"at most {most} with granularity={granularity.name!r}, which every layer has reached then"
        raise ArgumentError(expected("levels", what, depth))


def _masked(state: Mapping[str, Tensor], masks: Mapping[str, Tensor], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """``state`` with zeros where pruned, under every name that a tied weight has."""
    alive = {**state, **{name: torch.where(mask, state[name], 0.0) for name, mask in masks.items()}}
    return {**alive, **{alias: alive[name] for alias, name in aliases.items()}}

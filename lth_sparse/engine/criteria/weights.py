"""Criteria of the weights alone, those of Zhou et al. 2019 (1905.01067, section 2 and figure 3).

w_i is theta_0, the weight at initialisation (also when rewinding to a later step), w_f the weight after training. The
name says what is kept. Frankle & Carbin's own is large_final, here also called magnitude.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lth_sparse.engine.criteria.context import ScoringContext

__all__ = ["WEIGHT_RULES"]


def large_final(context: ScoringContext) -> Tensor:
    """|w_f|: the sign of a weight never decides whether it is kept (Frankle & Carbin 2018, section 2)."""
    return context.weight.abs()


def small_final(context: ScoringContext) -> Tensor:
    """-|w_f|."""
    return -context.weight.abs()


def random(context: ScoringContext) -> Tensor:
    """Uniform on [0, 1), from a generator that descends from the seed, the level and the layer's name."""
    return torch.rand(context.weight.shape, generator=context.generator, dtype=torch.float64)


def large_init(context: ScoringContext) -> Tensor:
    """|w_i|."""
    return context.initial.abs()


def small_init(context: ScoringContext) -> Tensor:
    """-|w_i|."""
    return -context.initial.abs()


def large_init_large_final(context: ScoringContext) -> Tensor:
    """min(a |w_f|, |w_i|), where a aligns the percentiles of the two: the smaller of the ranks of |w_f| and |w_i|.

    A threshold then cuts both distributions at one percentile, whichever that is. Ranks are among the layer's
    survivors, in (0, 1].
    """
    return torch.minimum(_rank(context.weight.abs(), context.mask), _rank(context.initial.abs(), context.mask))


def small_init_small_final(context: ScoringContext) -> Tensor:
    """-max(a |w_f|, |w_i|), a as in large_init_large_final: the smaller of the ranks of -|w_f| and -|w_i|."""
    return torch.minimum(_rank(-context.weight.abs(), context.mask), _rank(-context.initial.abs(), context.mask))


def magnitude_increase(context: ScoringContext) -> Tensor:
    """|w_f| - |w_i|."""
    return context.weight.abs() - context.initial.abs()


def movement(context: ScoringContext) -> Tensor:
    """|w_f - w_i|."""
    return (context.weight - context.initial).abs()


def large_final_same_sign(context: ScoringContext) -> Tensor:
    """max(0, w_i w_f / |w_i|): |w_f| where the sign is still that of w_i, else 0, the lowest."""
    return torch.where(context.weight.sign() == context.initial.sign(), context.weight.abs(), 0.0)


def large_final_diff_sign(context: ScoringContext) -> Tensor:
    """max(0, -w_i w_f / |w_i|): |w_f| where the sign is another than that of w_i, else 0, the lowest."""
    return torch.where(context.weight.sign() != context.initial.sign(), context.weight.abs(), 0.0)


def _rank(values: Tensor, mask: Tensor) -> Tensor:
    """Share of the survivors whose value is no greater; equal values have equal ranks. 0 where pruned."""
    alive = values[mask].to(torch.float64)
    result = torch.zeros(values.shape, dtype=torch.float64)
    no_greater = torch.searchsorted(alive.sort().values, alive, right=True)
    result[mask] = no_greater.to(torch.float64) / max(1, alive.numel())
    return result


#: Rule -> whether it compares with theta_0.
WEIGHT_RULES: dict[Callable[[ScoringContext], Tensor], bool] = {
    large_final: False,
    small_final: False,
    random: False,
    large_init: True,
    small_init: True,
    large_init_large_final: True,
    small_init_small_final: True,
    magnitude_increase: True,
    movement: True,
    large_final_same_sign: True,
    large_final_diff_sign: True,
}

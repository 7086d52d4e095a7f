"""What a weight is worth: a score per weight, the smallest scores are pruned first.

A criterion is ``"magnitude"``, |w| after training (Frankle & Carbin 2018, section 2), or any callable
``criterion(name, weight) -> scores``, for example ``lambda name, weight: weight.abs() / weight.std()``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError, expected

__all__ = ["CRITERIA", "Criterion", "criterion_name", "find_criterion", "score"]

Criterion = Callable[[str, Tensor], Tensor]


def magnitude(name: str, weight: Tensor) -> Tensor:
    """|w|: the sign of a weight never decides whether it is kept."""
    return weight.abs()


CRITERIA: dict[str, Criterion] = {"magnitude": magnitude}


def find_criterion(criterion: str | Criterion) -> Criterion:
    """The function behind a name of ``CRITERIA``; a callable is returned as it is.

    Raises:
        ArgumentError: an unknown name.
        ArgumentTypeError: neither a name nor callable.
    """
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            what = f"{', '.join(map(repr, CRITERIA))} or a callable (name, weight) -> scores"
            raise ArgumentError(expected("criterion", what, repr(criterion)))
        return CRITERIA[criterion]
    if not callable(criterion):
        raise ArgumentTypeError(expected("criterion", "a name or a callable (name, weight) -> scores", criterion))
    return criterion


def criterion_name(criterion: str | Criterion) -> str:
    """The name under which a run directory remembers the criterion."""
    if isinstance(criterion, str):
        return criterion
    kind = criterion if hasattr(criterion, "__qualname__") else type(criterion)
    return f"{kind.__module__}.{kind.__qualname__}"


def score(criterion: Criterion, name: str, weight: Tensor, mask: Tensor) -> Tensor:
    """Scores of one layer, checked.

    Args:
        criterion: see the head of this file.
        name: parameter name, such as ``"fc1.weight"``.
        weight: trained dense weight, 0 where pruned; any floating dtype.
        mask: bool, shape of ``weight``; scores of pruned weights are never looked at.

    Returns:
        float32 or float64 tensor on the CPU, shape of ``weight``.

    Raises:
        RunError: a surviving weight is NaN, which no order can place.
        ArgumentTypeError, ArgumentError: the criterion returned no tensor, another shape, or NaN.
    """
    if bool((weight.isnan() & mask).any()):
        raise RunError(f"{name}: the trained weights hold NaN, so they cannot be pruned; training diverged")
    scores = criterion(name, weight)
    if not isinstance(scores, Tensor):
        raise ArgumentTypeError(expected("criterion", f"a tensor of scores for {name}", type(scores).__name__))
    if scores.shape != weight.shape:
        shapes = f"scores of shape {list(weight.shape)} for {name}"
        raise ArgumentError(expected("criterion", shapes, f"{list(scores.shape)}"))
    scores = scores.detach().cpu()
    scores = scores if scores.dtype == torch.float64 else scores.to(torch.float32)
    if bool((scores.isnan() & mask).any()):
        raise ArgumentError(expected("criterion", f"scores without NaN for {name}", "NaN"))
    return scores

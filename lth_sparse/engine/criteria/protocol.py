"""How a criterion is called and its scores are checked, whoever wrote it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lth_sparse.engine.criteria.context import Scoring, ScoringContext
from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError, expected

__all__ = ["PROTOCOL", "Criterion", "NamedCriterion", "criterion_name", "from_callable", "score"]

Criterion: TypeAlias = Callable[[ScoringContext], Tensor] | Callable[[str, Tensor], Tensor]

PROTOCOL = "a callable (context) -> scores or (name, weight) -> scores"


@dataclass(frozen=True)
class NamedCriterion:
    """A criterion and what the search must know of it.

    Attributes:
        name: as a user types it and a run directory remembers it.
        rule: ``rule(context)`` -> scores, shape of ``context.weight``; the smallest are pruned first.
        at_init: scores the untrained network (theta_0 under the mask so far), so that no training precedes pruning.
        rounds: in how many rounds a search prunes in all when nothing else is said; scores are made anew in each.
        needs: beside the weights: "" for nothing, "initial" for theta_0, "batches" for gradients, "shape" for the shape
            of an input.
    """

    name: str
    rule: Callable[[ScoringContext], Tensor]
    at_init: bool = False
    rounds: int = 1
    needs: str = ""

    def __call__(self, context: ScoringContext) -> Tensor:
        return self.rule(context)


def criterion_name(criterion: str | Callable[..., Any]) -> str:
    """The name under which a run directory remembers a criterion, a loss or anything else that is called."""
    if isinstance(criterion, str):
        return criterion
    kind = criterion if hasattr(criterion, "__qualname__") else type(criterion)
    return f"{kind.__module__}.{kind.__qualname__}"


def from_callable(criterion: Callable[..., Tensor]) -> NamedCriterion:
    """A user's callable as a criterion: with one required argument it gets the context, with two name and weight.

    An attribute ``at_init = True`` of the callable makes it a criterion at initialisation.

    Raises:
        ArgumentTypeError: it needs another number of arguments.
    """
    rule = criterion if _required(criterion) == 1 else (lambda context: criterion(context.name, context.weight))
    return NamedCriterion(criterion_name(criterion), rule, at_init=bool(getattr(criterion, "at_init", False)))


def score(
    criterion: Criterion | NamedCriterion, name: str, weight: Tensor, mask: Tensor, scoring: Scoring | None = None
) -> Tensor:
    """Scores of one layer, checked.

    Args:
        criterion: see the head of the package.
        name: parameter name, such as ``"fc1.weight"``.
        weight: dense weight, 0 where pruned; any floating dtype.
        mask: bool, shape of ``weight``; scores of pruned weights are never looked at.
        scoring: the pruning that this is part of; without it a criterion has name, weight and mask alone.

    Returns:
        float32 or float64 tensor on the CPU, shape of ``weight``.

    Raises:
        RunError: a surviving weight is NaN, which no order can place.
        ArgumentTypeError, ArgumentError: the criterion returned no tensor, another shape, or NaN.
    """
    if bool((weight.isnan() & mask).any()):
        raise RunError(f"{name}: the trained weights hold NaN, so they cannot be pruned; training diverged")
    rule = criterion if isinstance(criterion, NamedCriterion) else from_callable(criterion)
    scores = rule((Scoring({name: weight}, {name: mask}) if scoring is None else scoring).layer(name))
    if not isinstance(scores, Tensor):
        raise ArgumentTypeError(expected("criterion", f"a tensor of scores for {name}", type(scores).__name__))
    if scores.shape != weight.shape:
        shapes = f"scores of shape {list(weight.shape)} for {name}"
        raise ArgumentError(expected("criterion", shapes, f"{list(scores.shape)}"))
    scores = scores.detach().cpu()
    scores = scores if scores.dtype == torch.float64 else scores.to(torch.float32)
    if bool((scores.isnan() & mask.cpu()).any()):
        raise ArgumentError(expected("criterion", f"scores without NaN for {name}", "NaN"))
    return scores


def _required(criterion: Callable[..., Any]) -> int:
    """Positional arguments that must be given; 2 where that cannot be known, and for ``*args``."""
    try:
        parameters = inspect.signature(criterion).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return 2
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 2
    needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if len(needed) not in (1, 2) or any(p.kind is p.KEYWORD_ONLY for p in needed):
        got = f"one that needs {', '.join(p.name for p in needed) or 'nothing'}"
        raise ArgumentTypeError(expected("criterion", PROTOCOL, got))
    return len(needed)

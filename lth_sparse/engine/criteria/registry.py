"""``CRITERIA``: every criterion that has a name."""

from __future__ import annotations

from lth_sparse.engine.criteria.gradients import gradient, grasp, taylor
from lth_sparse.engine.criteria.protocol import PROTOCOL, Criterion, NamedCriterion, from_callable
from lth_sparse.engine.criteria.synflow import synflow
from lth_sparse.engine.criteria.weights import WEIGHT_RULES, large_final
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected

__all__ = ["CRITERIA", "find_criterion"]

CRITERIA: dict[str, NamedCriterion] = {
    criterion.name: criterion
    for criterion in (
        NamedCriterion("magnitude", large_final),
        *(NamedCriterion(rule.__name__, rule, needs="initial" * initial) for rule, initial in WEIGHT_RULES.items()),
        NamedCriterion("gradient", gradient, needs="batches"),
        NamedCriterion("taylor", taylor, needs="batches"),
        NamedCriterion("snip", taylor, at_init=True, needs="batches"),
        NamedCriterion("grasp", grasp, at_init=True, needs="batches"),
        NamedCriterion("synflow", synflow, at_init=True, rounds=100, needs="shape"),
    )
}


def find_criterion(criterion: str | Criterion | NamedCriterion) -> NamedCriterion:
    """The criterion behind a name of ``CRITERIA`` or a user's callable.

    Raises:
        ArgumentError: an unknown name.
        ArgumentTypeError: neither a name nor callable, or a callable that needs other arguments.
    """
    if isinstance(criterion, NamedCriterion):
        return criterion
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            names = ", ".join(map(repr, CRITERIA))
            raise ArgumentError(expected("criterion", f"one of {names}, or {PROTOCOL}", repr(criterion)))
        return CRITERIA[criterion]
    if not callable(criterion):
        raise ArgumentTypeError(expected("criterion", f"a name or {PROTOCOL}", criterion))
    return from_callable(criterion)

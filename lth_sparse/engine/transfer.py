"""A ticket on another problem: layers of another shape keep the weights of the model there, the rest are the ticket's.

Tickets move between data sets and optimisers (Morcos et al. 2019); what cannot move is a layer of another shape, mostly
the output layer. Which layers these are is said by name: a model that differs anywhere else is refused as ever.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lth_sparse.engine.scope import prune
from lth_sparse.engine.selection import matching, weights_of
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.nn.resize import resize_

__all__ = ["fresh_names", "fresh_state", "sized"]


def fresh_names(
    fresh: str | Iterable[str] | Mapping[str, float],
    model: nn.Module,
    state: Mapping[str, Tensor],
    aliases: Mapping[str, str],
) -> set[str]:
    """Names in the state_dict of ``model`` or in ``state`` that ``fresh`` means.

    Raises:
        ArgumentError, ArgumentTypeError: a pattern that matches none of them, or one of two tied weights without the
            other, see :func:`lth_sparse.engine.scope.matching`.
    """
    names = matching(fresh, dict.fromkeys([*state, *model.state_dict()]), "fresh")
    for alias, name in aliases.items():
        if (alias in names) != (name in names):
            there, missing = (alias, name) if alias in names else (name, alias)
            what = f"{missing!r} beside {there!r}, which is the same weight"
            raise ArgumentError(expected("fresh", what, "one of both"))
    return names


def fresh_state(
    fresh: str | Iterable[str] | Mapping[str, float],
    names: set[str],
    model: nn.Module,
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``state`` and ``masks`` with what ``model`` has under ``names`` in place of the ticket's own.

    Where ``fresh`` gives a density, the mask keeps the largest of the fresh weights, the first of equal ones going
    first; elsewhere there is none.

    Raises:
        ArgumentError, ArgumentTypeError: naming ``fresh``: a density outside (0, 1], a name of no Linear or Conv layer
            with one, or no masked layer left that is the ticket's.
    """
    own = model.state_dict()
    mixed = {name: own[name] if name in names else state[name] for name in own if name in names or name in state}
    # What the ticket has and the model lacks stays in, for `sized` to find.
    mixed.update({name: tensor for name, tensor in state.items() if name not in names and name not in own})
    kept = {name: mask for name, mask in masks.items() if name not in names}
    if not kept:
        raise ArgumentError(expected("fresh", "a pruned layer left that is the ticket's", "all of them"))
    if isinstance(fresh, Mapping):
        kept.update(_pruned(fresh, model))
    return mixed, kept


def _pruned(densities: Mapping[str, float], model: nn.Module) -> dict[str, Tensor]:
    """Masks of the fresh layers by the magnitude of their weights."""
    weights = {name: weight.detach() for name, weight in weights_of(model).items()}
    rates: dict[str, float] = {}
    for pattern, density in densities.items():
        if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0.0 < density <= 1.0:
            raise ArgumentError(expected(f"fresh[{pattern!r}]", "a density in (0, 1]", density))
        rates.update(dict.fromkeys(matching(pattern, weights, "fresh"), 1.0 - density))
    scores = {name: weights[name].abs().cpu() for name in rates}
    whole = {name: torch.ones(score.shape, dtype=torch.bool) for name, score in scores.items()}
    return prune(scores, whole, rates, 1).masks


def sized(
    model: nn.Module,
    state: Mapping[str, Tensor],
    before: Mapping[str, Sequence[int]],
    *,
    fresh: Collection[str] = (),
    inplace: bool = False,
) -> nn.Module:
    """A plain copy of ``model`` that ``state`` fits into, its weights undefined where their shapes had to change.

    Args:
        before: shapes that some tensors had before a conversion removed dead channels; the model may be as then.
        fresh: names of ``state`` that are the model's own.
        inplace: change ``model`` itself.

    Raises:
        ArgumentError: the model differs from ``state``, or a fresh layer would have to become smaller.
    """
    _check_architecture(model, state, before)
    own = model.state_dict()
    there = [name for name in before if name in state]
    smaller = {name: list(state[name].shape) for name in there if state[name].shape != own[name].shape}
    clash = [name for name in before if name in fresh]
    if smaller and clash:
        what = "layers whose sizes the conversion did not change, or a model in the converted sizes"
        raise ArgumentError(expected("fresh", what, repr(clash[0])))
    if not inplace:
        model = copy.deepcopy(model)
    return resize_(model, smaller) if smaller else model


def _check_architecture(model: nn.Module, state: Mapping[str, Tensor], before: Mapping[str, Sequence[int]]) -> None:
    """Refuse a model whose state_dict has other names or shapes than ``state``, or than ``before`` has for some.

    Raises:
        ArgumentError: naming the first that differs.
    """
    theirs = model.state_dict()
    what = "the architecture that the ticket was found in"
    missing = [name for name in state if name not in theirs]
    unknown = [name for name in theirs if name not in state]
    if missing or unknown:
        got = f"a model without {missing[0]!r}" if missing else f"a model with {unknown[0]!r}, which the ticket lacks"
        more = len(missing) + len(unknown) - 1
        raise ArgumentError(expected("model", what, got + (f" ({more} more names differ)" if more else "")))
    for name, tensor in state.items():
        found = list(theirs[name].shape)
        if found not in (list(tensor.shape), list(before.get(name, tensor.shape))):
            got = f"{name} of shape {found} instead of {list(tensor.shape)}"
            raise ArgumentError(expected("model", what, f"{got} (fresh=... keeps the model's own)"))

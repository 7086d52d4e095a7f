"""Which weights of a model can be pruned, and at which rate: names, globs, types, the output layer, frozen layers.

The weights are those of nn.Linear, nn.Conv1d and nn.Conv2d, which have sparse forms; biases and normalisation are never
pruned. The output layer is the last of these layers in the order of ``model.named_modules()``.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn import Parameter
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from lth_sparse.engine.granularity import Granularity
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.nn import SparseModule, sparsify_

__all__ = ["check_granularity", "check_prunable", "layer_rates", "matching", "types_of", "weights_of"]

#: The layers that have a sparse form. A subclass may compute something else, so it does not count.
PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)


def weights_of(model: nn.Module) -> dict[str, Parameter]:
    """Parameter name -> weight of every Linear, Conv1d and Conv2d, in order, a shared one once.

    They are what density counts, frozen ones included (the paper's P_m).

    Raises:
        ArgumentTypeError: no module.
        ArgumentError: the model is sparse, pruned by other means, lazy, a single layer itself, or has no such layer.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(expected("model", "a torch.nn.Module", type(model).__name__))
    if type_before_parametrizations(model) in PRUNABLE:
        what = "a module that contains layers, such as nn.Sequential"
        raise ArgumentError(expected("model", what, type(model).__name__))
    found: dict[str, Parameter] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, SparseModule):
            what = "a dense model (lth_sparse.densify_ makes one)"
            raise ArgumentError(expected("model", what, f"a {type(module).__name__} at {name!r}"))
        if any(is_lazy(parameter) for parameter in module._parameters.values()):
            what = "initialised parameters; run one batch through it first"
            raise ArgumentError(expected("model", what, f"lazy {name!r}"))
        if type_before_parametrizations(module) not in PRUNABLE:
            continue
        weight = module._parameters.get("weight")
        if not isinstance(weight, Parameter):
            what = "plain weights; finish torch.nn.utils.prune or parametrize with their remove() first"
            raise ArgumentError(expected("model", what, f"a reparametrised {name!r}"))
        if id(weight) not in seen:
            seen.add(id(weight))
            found[f"{name}.weight"] = weight
    if not found:
        raise ArgumentError(expected("model", "at least one Linear, Conv1d or Conv2d", type(model).__name__))
    return found


def types_of(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Parameter name -> the type of the layer it belongs to: "Linear", "Conv1d" or "Conv2d"."""
    return {name: type_before_parametrizations(model.get_submodule(_module(name))).__name__ for name in names}


def matching(
    patterns: str | Iterable[str], names: Iterable[str], argument: str, types: Mapping[str, str] | None = None
) -> set[str]:
    """Parameter names that any pattern matches: the name, its module's name, a glob over either, or the layer's type.

    A pattern that matches a name is none of a type.

    Args:
        patterns: such as "fc1", "conv*" or "Conv2d".
        names: to choose from.
        argument: for the message.
        types: name -> type, see :func:`types_of`; without them types are not known.

    Raises:
        ArgumentError: a pattern that matches nothing; the message suggests a name.
        ArgumentTypeError: patterns that are no strings.
    """
    listed = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(listed, Iterable):
        raise ArgumentTypeError(expected(argument, "names or globs of weights, or types of layers", listed))
    names = list(names)
    found: set[str] = set()
    for pattern in listed:
        if not isinstance(pattern, str):
            raise ArgumentTypeError(expected(argument, "names, globs or types as strings", pattern))
        hits = _named(pattern, names) or _typed(pattern, types)
        if not hits:
            kinds = sorted(set((types or {}).values()))
            close = difflib.get_close_matches(pattern, [*names, *map(_module, names), *kinds], 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            what = f"names or globs among {', '.join(names)}" + (f", or a type: {', '.join(kinds)}" if kinds else "")
            raise ArgumentError(expected(argument, what, repr(pattern)) + hint)
        found |= hits
    return found


def layer_rates(
    names: Iterable[str],
    *,
    rate: float,
    output_rate: float | None = None,
    rates: Mapping[str, float] | None = None,
    prune: str | Iterable[str] | None = None,
    freeze: str | Iterable[str] = (),
    types: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Share of its survivors that each layer loses per level; 0 for a layer that is never pruned.

    The most specific word wins: ``freeze`` and ``prune``; an exact name in ``rates``; ``output_rate``, for the last
    layer; a glob in ``rates``, the last that matches; a type in ``rates``, such as "Conv2d"; half of ``rate`` for the
    last layer; ``rate``. (Frankle & Carbin 2018, figure 2: the output layer is pruned at half the rate of the others.)

    Raises:
        ArgumentError, ArgumentTypeError: a pattern that matches nothing, or nothing left to prune.
    """
    names = list(names)
    result = dict.fromkeys(names, rate)
    result[names[-1]] = rate / 2
    globs: dict[str, float] = {}
    exact: dict[str, float] = {}
    for pattern, value in (rates or {}).items():
        hits = dict.fromkeys(matching([pattern], names, "rates", types), value)
        if not _named(pattern, names):
            result.update(hits)
        globs.update({name: value for name in hits if _named(pattern, [name])})
        exact.update({name: value for name in hits if pattern in (name, _module(name))})
    result.update(globs)
    if output_rate is not None:
        result[names[-1]] = output_rate
    result.update(exact)
    frozen = matching(freeze, names, "freeze", types)
    if prune is not None:
        frozen |= set(names) - matching(prune, names, "prune", types)
    result.update(dict.fromkeys(frozen, 0.0))
    if not any(result.values()):
        raise ArgumentError(expected("rate", "a rate above 0 for at least one layer", "nothing to prune"))
    return result


def check_granularity(model: nn.Module, names: Iterable[str], granularity: Granularity) -> None:
    """Refuse a granularity that does not apply to one of the layers to prune.

    Raises:
        ArgumentError: the message names the layer, and how to leave it out.
    """
    for name in names:
        why = granularity.refusal(model.get_submodule(_module(name)))
        if why is not None:
            what = f"one that applies to {name} (freeze=... or a rate of 0 leaves it out)"
            raise ArgumentError(expected("granularity", what, f"{granularity.name!r}, but {why}"))


def check_prunable(model: nn.Module, names: Iterable[str]) -> None:
    """Convert a throw-away copy, so that what has no sparse form is refused before hours of training instead of after.

    Raises:
        ArgumentError: a weight has hooks, is tied to another kind of parameter, ...; the message names it.
    """
    copied = copy.deepcopy(model)
    everything = {name: torch.ones(copied.get_parameter(name).shape, dtype=torch.bool) for name in names}
    try:
        sparsify_(copied, everything, layout="dense")
    except ArgumentError as error:
        raise ArgumentError(f"model: {error} (freeze=... leaves a layer alone)") from error


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _named(pattern: str, names: Iterable[str]) -> set[str]:
    return {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(_module(name), pattern)}


def _typed(pattern: str, types: Mapping[str, str] | None) -> set[str]:
    return {name for name, kind in (types or {}).items() if kind == pattern}

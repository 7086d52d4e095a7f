"""What a ticket is compared with: the same sparsity without the ticket's initial weights, or without their places.

    "reinit"    same mask, fresh weights from the distribution that theta_0 came from; trained from step 0
    "shuffled"  the ticket's counts per layer, positions shuffled within each layer; weights of the same rewound network

A control trains as the ticket does, from random states of its own seed. (Frankle & Carbin 2018, section 2 and appendix
F; for the shuffled one Frankle et al. 2020, "Pruning neural networks at initialization: why are we missing the mark?")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.engine.granularity import Granularity
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats import Mask

__all__ = ["CONTROLS", "reinitialise_", "shuffled"]

#: Kind -> what a person reads.
CONTROLS = {"reinit": "random reinitialisation", "shuffled": "shuffled mask"}


@torch.no_grad()
def reinitialise_(
    model: nn.Module, weights: Iterable[str], reset: Callable[[nn.Module], Any] | None = None
) -> nn.Module:
    """Draw fresh parameters in place, from the global random states, and return ``model``.

    ``reset(model)`` does it when given. Otherwise every module that has ``reset_parameters()`` is asked to, children
    before their parents, so that a network with an initialisation of its own has the last word.

    Args:
        model: a dense model.
        weights: names of the weights that must have changed afterwards.

    Raises:
        ArgumentError: a module has parameters but no ``reset_parameters``, or a weight did not change.
    """
    names = list(weights)
    before = {name: model.get_parameter(name).clone() for name in names}
    if reset is not None:
        reset(model)
    else:
        resettable = [module for module in model.modules() if callable(getattr(module, "reset_parameters", None))]
        covered = {id(parameter) for module in resettable for parameter in module.parameters()}
        for name, parameter in model.named_parameters():
            if id(parameter) not in covered:
                what = "a callable (model) -> None that draws fresh parameters"
                got = f"None, and no module that holds {name} has reset_parameters()"
                raise ArgumentError(expected("reset_parameters", what, got))
        model.apply(_reset_module)
    for name in names:
        if before[name].numel() and torch.equal(model.get_parameter(name), before[name]):
            raise ArgumentError(expected("reset_parameters", f"fresh values for {name}", "the values it had before"))
    return model


def shuffled(masks: Mapping[str, Tensor], granularity: Granularity, generator: torch.Generator) -> Mask:
    """Masks that keep as many weights in every layer as ``masks``, at random positions.

    See :meth:`Granularity.shuffled` for what changes places with what.
    """
    return Mask({name: granularity.shuffled(mask, generator) for name, mask in masks.items()})


def _reset_module(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()

"""Sparse layers that compute the activation behind them: one pass over the activations less, and for ReLU one autograd
node less each way.

The layer activates its output in place and marks it; the activation's module hands a marked tensor on as it is. Should
the layer be replaced, the module meets tensors without the mark and does its work again: no order of conversions can
lose it. GELU and SiLU need what they were applied to for their gradient, so with gradients they stay with their module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.nn.base import SparseModule

__all__ = ["fuse_activations_", "fuse_relu_", "fused"]

#: Attribute of a tensor that a layer has activated: the name of the activation.
_MARK = "_lth_sparse_activated"


class FusedReLU(nn.ReLU):
    """nn.ReLU that knows when the layer before it has done its work. Twice is once, so the mark may stay."""

    def forward(self, input: Tensor) -> Tensor:
        return input if getattr(input, _MARK, None) == "relu" else super().forward(input)


class FusedGELU(nn.GELU):
    """nn.GELU that knows it too. What it returns has no mark: another GELU behind it is one more."""

    def forward(self, input: Tensor) -> Tensor:
        return input.detach() if getattr(input, _MARK, None) == _name_of(self) else super().forward(input)


class FusedSiLU(nn.SiLU):
    """nn.SiLU, likewise."""

    def forward(self, input: Tensor) -> Tensor:
        return input.detach() if getattr(input, _MARK, None) == "silu" else super().forward(input)


#: torch's modules, and what they become behind a layer that computes them.
_FUSED: dict[type[nn.Module], type[nn.Module]] = {nn.ReLU: FusedReLU, nn.GELU: FusedGELU, nn.SiLU: FusedSiLU}
_PLAIN = {fused_class: plain for plain, fused_class in _FUSED.items()}


def _name_of(module: nn.Module) -> str:
    """The operators' name of the activation that ``module``, of one of the classes above, computes."""
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return "relu" if isinstance(module, nn.ReLU) else "silu"


def fused(layer: SparseModule, operator: Callable[..., Tensor], input: Tensor, *options: Any) -> Tensor:
    """``operator`` over the weight of ``layer`` with its activation, marked.

    A compiler fuses by itself and cannot follow the mark: for it the activation stays with its own module. So it does
    for a layer that has got hooks since, which are to see its own output, and for GELU and SiLU while autograd records.
    """
    kept = layer.activation != "relu" and torch.is_grad_enabled()
    if kept or _has_hooks(layer) or torch.compiler.is_compiling():
        return operator(input, layer.values, layer.layout, layer.bias, *options)
    y = operator(input, layer.values, layer.layout, layer.bias, *options, activation=layer.activation)
    setattr(y, _MARK, layer.activation)
    return y


def fuse_activations_(model: nn.Module, enabled: bool = True) -> int:
    """Let sparse layers compute the ``nn.ReLU``, ``nn.GELU`` (both approximations) or ``nn.SiLU`` that follows them
    directly in an ``nn.Sequential``; in place.

    ReLU in training and inference, the others under ``torch.no_grad`` and ``torch.inference_mode``. Results are the
    same up to rounding: a kernel applies the activation before it rounds. Layers and activations with hooks are left
    alone, as they would see what is activated already, and so is a layer that the model uses in more than one place. A
    layer that gets a hook later computes without its activation as long as it has one. After exchanging an activation
    of the model for another one, call this again.

    Args:
        model: a model after :func:`lth_sparse.sparsify_`.
        enabled: False takes everything back, what :func:`fuse_relu_` did as well.

    Returns:
        The number of layers that compute their activation now.

    Raises:
        ArgumentTypeError: ``model`` is no module. ArgumentError: ``enabled`` is no bool.
    """
    return _fuse(model, enabled, _FUSED)


def fuse_relu_(model: nn.Module, enabled: bool = True) -> int:
    """:func:`fuse_activations_` for ``nn.ReLU`` alone, with the same results bit by bit; others stay as they are.

    Returns:
        The number of layers that compute their ReLU now.
    """
    return _fuse(model, enabled, (nn.ReLU,))


def _fuse(model: nn.Module, enabled: bool, classes: Collection[type[nn.Module]]) -> int:
    """Take back what is fused of ``classes``, all or ReLU alone, and, if ``enabled``, fuse what there is of them."""
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(expected("model", "a torch.nn.Module", type(model).__name__))
    if not isinstance(enabled, bool):
        raise ArgumentError(expected("enabled", "True or False", repr(enabled)))
    for module in model.modules():
        if isinstance(module, SparseModule) and (nn.GELU in classes or module.activation == "relu"):
            module.activation = None
        elif _PLAIN.get(type(module)) in classes:
            module.__class__ = _PLAIN[type(module)]
    if not enabled:
        return 0
    places: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        places[id(module)] = places.get(id(module), 0) + 1
    count = 0
    for parent in list(model.modules()):
        if not isinstance(parent, nn.Sequential):
            continue
        for layer, behind in pairwise(parent):
            alone = places[id(layer)] == 1 and not (_has_hooks(layer) or _has_hooks(behind))
            plain = _PLAIN.get(type(behind), type(behind))  # one activation may stand behind several layers
            if isinstance(layer, SparseModule) and plain in classes and alone:
                layer.activation = _name_of(behind)
                behind.__class__ = _FUSED[plain]
                count += 1
    return count


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)

"""Sparse layers that compute the ReLU behind them: one pass over the activations and one autograd node less each way.

The layer rectifies its output in place and marks it; the ReLU module hands a marked tensor on as it is. Should the
layer be replaced, the ReLU meets tensors without the mark and does its work again: no order of conversions can lose it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.nn.base import SparseModule

__all__ = ["fuse_relu_", "fused"]

#: Attribute of a tensor that a layer has rectified.
_MARK = "_lth_sparse_rectified"


class FusedReLU(nn.ReLU):
    """nn.ReLU that knows when the layer before it has done its work."""

    def forward(self, input: Tensor) -> Tensor:
        return input if getattr(input, _MARK, False) else super().forward(input)


def fused(layer: SparseModule, operator: Callable[..., Tensor], input: Tensor, *options: Any) -> Tensor:
    """``operator`` over the weight of ``layer`` with its activation, marked.

    A compiler fuses by itself and cannot follow the mark: for it the ReLU stays with its own module. So it does for a
    layer that has got hooks since, which are to see its own output.
    """
    if _has_hooks(layer) or torch.compiler.is_compiling():
        return operator(input, layer.values, layer.layout, layer.bias, *options)
    y = operator(input, layer.values, layer.layout, layer.bias, *options, activation=layer.activation)
    setattr(y, _MARK, True)
    return y


def fuse_relu_(model: nn.Module, enabled: bool = True) -> int:
    """Let sparse layers compute the ``nn.ReLU`` that follows them directly in an ``nn.Sequential``; in place.

    Results are the same. Layers and ReLUs with hooks are left alone, as they would see what is rectified already, and
    so is a layer that the model uses in more than one place. A layer that gets a hook later computes without its ReLU
    as long as it has one.

    Args:
        model: a model after :func:`lth_sparse.sparsify_`.
        enabled: False takes everything back.

    Returns:
        The number of layers that compute their ReLU now.

    Raises:
        ArgumentTypeError: ``model`` is no module. ArgumentError: ``enabled`` is no bool.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(expected("model", "a torch.nn.Module", type(model).__name__))
    if not isinstance(enabled, bool):
        raise ArgumentError(expected("enabled", "True or False", repr(enabled)))
    for module in model.modules():
        if isinstance(module, SparseModule):
            module.activation = None
        elif type(module) is FusedReLU:
            module.__class__ = nn.ReLU  # type: ignore[assignment]
    if not enabled:
        return 0
    places: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        places[id(module)] = places.get(id(module), 0) + 1
    count = 0
    for parent in list(model.modules()):
        if not isinstance(parent, nn.Sequential):
            continue
        for layer, relu in pairwise(parent):
            alone = places[id(layer)] == 1 and not (_has_hooks(layer) or _has_hooks(relu))
            if isinstance(layer, SparseModule) and type(relu) in (nn.ReLU, FusedReLU) and alone:
                layer.activation = "relu"
                relu.__class__ = FusedReLU
                count += 1
    return count


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)

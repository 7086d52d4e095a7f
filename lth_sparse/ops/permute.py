"""Activations with their features in another order: the index at the edge of a reordered layer.

``y[:, i] = x[:, order[i]]``, in the memory format of ``x`` (``ops.strides``), so that the operators behind it find what
they would have found in ``x``. ``order`` is a permutation: its gradient is the same operator with the inverse, and
nothing is ever added up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import lth_sparse._C as _C
from lth_sparse.ops.backend import kernel_or_reference
from lth_sparse.ops.library import define, implement, is_plain
from lth_sparse.ops.strides import empty_activations, is_channels_last, is_feature_major

__all__ = ["permute"]


def _in_channels_last(x: Tensor) -> bool:
    return is_channels_last(x) and not x.is_contiguous()


def _permute(x: Tensor, order: Tensor) -> Tensor:
    if is_feature_major(x):
        return x.movedim(0, -1).index_select(0, order).movedim(-1, 0)
    if _in_channels_last(x):
        return x.movedim(1, -1).index_select(-1, order).movedim(-1, 1)
    return x.contiguous().index_select(1, order)


def _fake_permute(x: Tensor, order: Tensor) -> Tensor:
    torch._check(
        order.dim() == 1 and order.shape[0] == x.shape[1], lambda: f"order: expected [{x.shape[1]}], got {order.shape}"
    )
    if _in_channels_last(x):
        return x.new_empty((x.shape[0], *x.shape[2:], x.shape[1])).movedim(-1, 1)
    return empty_activations(x, x.shape, is_feature_major(x))


_operator = define("permute(Tensor x, Tensor order) -> Tensor", reference=_permute, fake=_fake_permute)


def _permute_cpu(x: Tensor, order: Tensor) -> Tensor:
    if is_feature_major(x):
        outer, inner = 1, x.shape[2:].numel() * x.shape[0]
        y = empty_activations(x, x.shape, True)
    elif _in_channels_last(x):
        outer, inner = x.shape[0] * x.shape[2:].numel(), 1
        y = torch.empty_like(x)
    else:
        x = x.contiguous()
        outer, inner = x.shape[0], x.shape[2:].numel()
        y = torch.empty_like(x)
    _C.permute(
        x.data_ptr(), y.data_ptr(), order.data_ptr(), outer, x.shape[1], inner, x.element_size(),
        torch.get_num_threads(),
    )  # fmt: skip
    return y


#: Elements are copied whatever they mean.
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

implement("permute", "CPU", kernel_or_reference("permute", _permute_cpu, _DTYPES))


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor) -> Tensor:
        ctx.orders = place, order
        y: Tensor = (_operator.direct if is_plain(x) else _operator)(x, order)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return permute(grads[0], *ctx.orders), None, None


_apply: Callable[..., Tensor] = super(torch.autograd.Function, _Permute).apply


def permute(x: Tensor, order: Tensor, place: Tensor) -> Tensor:
    """``y[:, i] = x[:, order[i]]``; ``x`` itself for an empty order. Differentiable, to any order. Checks nothing.

    Args:
        x: ``[N, features, *]``.
        order: int32 ``[features]``, or empty.
        place: its inverse.
    """
    if order.shape[0] == 0:
        return x
    plain = is_plain(x)
    if torch.is_grad_enabled():
        return (_apply if plain else _Permute.apply)(x, order, place)
    y: Tensor = (_operator.direct if plain else _operator)(x, order)
    return y

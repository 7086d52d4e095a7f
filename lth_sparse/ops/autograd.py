"""The gradient of every operator: two ``torch.autograd.Function``, the operators' only callers.

``y = x W^T + b`` gives ``dx = dy W``, ``dW = dy^T x`` at the live weights alone, ``db = sum dy``; a convolution
likewise. Index tensors travel as one tuple: they need no gradient, and autograd would wrap each of them. A
backward that is itself being differentiated (``create_graph=True``) runs the reference, which torch can differentiate
to any order.

ReLU is part of an operator and of its gradient. The other activations are torch's own function behind the operator
when a gradient is wanted, so that theirs is torch's too; else the operator applies them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lth_sparse.ops import reference, schemas
from lth_sparse.ops.library import is_plain
from lth_sparse.ops.schemas import OPS

__all__ = ["conv2d", "expand", "linear", "linear_bitmap", "wants_gradients"]


#: Activations whose gradient is the operators' own.
DIFFERENTIATED = ("none", "relu")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        kind: str,
        shape: tuple[int, ...],
        index: Sequence[Tensor],
        activation: str,
        plain: bool,
    ) -> Tensor:
        ctx.kind, ctx.shape, ctx.index = kind, shape, index
        op = OPS[kind].linear
        y: Tensor = (op.direct if plain else op)(x, values, bias, index, shape, activation)
        if activation == "relu":
            ctx.save_for_backward(x, values, y)
        else:
            ctx.save_for_backward(x, values)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, values, *activated = ctx.saved_tensors
        grad, index, activated = grads[0], ctx.index, activated[0] if activated else None
        wanted = list(ctx.needs_input_grad[:3])
        found: Sequence[Tensor | None]
        if torch.is_grad_enabled():
            layout = reference.layout_of(ctx.kind, ctx.shape, index, values)
            grad = reference.before_relu(grad, activated)
            found = reference.linear_backward(grad, x, values, layout, wanted)
        else:
            op = OPS[ctx.kind].linear_backward
            found = (op.direct if is_plain(grad) else op)(grad, x, values, index, ctx.shape, wanted, activated)
        return _unwrap(found, wanted, 5)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        kind: str,
        shape: tuple[int, ...],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        index: Sequence[Tensor],
        activation: str,
        order: tuple[bool, ...],
        plain: bool,
    ) -> Tensor:
        ctx.kind, ctx.shape, ctx.index, ctx.order = kind, shape, index, order
        ctx.conv = (stride, padding, dilation, groups)
        op = OPS[kind].conv2d
        y: Tensor = (op.direct if plain else op)(x, values, bias, index, shape, *ctx.conv, activation, *order)
        if activation == "relu":
            ctx.save_for_backward(x, values, y)
        else:
            ctx.save_for_backward(x, values)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, values, *activated = ctx.saved_tensors
        grad, index, activated = grads[0], ctx.index, activated[0] if activated else None
        wanted = list(ctx.needs_input_grad[:3])
        found: Sequence[Tensor | None]
        if torch.is_grad_enabled():
            layout = reference.layout_of(ctx.kind, ctx.shape, index, values, *ctx.order)
            stride, padding, dilation, groups = ctx.conv
            grad = reference.before_relu(grad, activated)
            found = reference.conv2d_backward(grad, x, values, layout, stride, padding, dilation, groups, wanted)
        else:
            op = OPS[ctx.kind].conv2d_backward
            found = (op.direct if is_plain(grad) else op)(
                grad, x, values, index, ctx.shape, *ctx.conv, wanted, activated, *ctx.order
            )
        return _unwrap(found, wanted, 10)


# Function.apply without its preparations for torch.func, two microseconds a call that a plain tensor does not need.
_apply_linear: Callable[..., Tensor] = super(torch.autograd.Function, _Linear).apply
_apply_conv2d: Callable[..., Tensor] = super(torch.autograd.Function, _Conv2d).apply


class _Expand(torch.autograd.Function):
    """Linear in ``values``, so each is the other's derivative, to any order."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        ctx.index, ctx.nnz = index, values.numel()
        op = schemas.expand.direct if is_plain(values) else schemas.expand
        dense: Tensor = op(values, *index, math.prod(shape))
        return dense.view(shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _Compress.apply(grads[0], ctx.index, ctx.nnz), None, None
        return _compress(grads[0], ctx.index, ctx.nnz), None, None


class _Compress(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: Tensor, index: Sequence[Tensor], nnz: int) -> Tensor:
        ctx.index, ctx.shape = index, dense.shape
        return _compress(dense, index, nnz)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Expand.apply(grads[0], ctx.index, ctx.shape), None, None


def _compress(dense: Tensor, index: Sequence[Tensor], nnz: int) -> Tensor:
    values: Tensor = (schemas.compress.direct if is_plain(dense) else schemas.compress)(dense.reshape(-1), *index, nnz)
    return values


_apply_expand: Callable[..., Tensor] = super(torch.autograd.Function, _Expand).apply


def _unwrap(found: Sequence[Tensor | None], wanted: Sequence[bool], others: int) -> tuple[Tensor | None, ...]:
    """Gradients for all arguments of a forward: the first three where wanted, None for the ``others``."""
    (dx, dvalues, dbias), (to_x, to_values, to_bias) = found, wanted
    return (dx if to_x else None, dvalues if to_values else None, dbias if to_bias else None, *(None,) * others)


def wants_gradients(x: Tensor, values: Tensor, bias: Tensor | None) -> bool:
    """True when a call with these is one that autograd records."""
    return torch.is_grad_enabled() and (
        values.requires_grad or x.requires_grad or (bias is not None and bias.requires_grad)
    )


def linear(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    kind: str,
    shape: tuple[int, ...],
    index: Sequence[Tensor],
    activation: str = "none",
) -> Tensor:
    """Differentiable sparse linear over ``x`` ``[batch, cols]`` by the operators of one layout kind. Checks nothing."""
    plain = is_plain(x)
    if torch.is_grad_enabled():
        apply = _apply_linear if plain else _Linear.apply
        if activation in DIFFERENTIATED or not wants_gradients(x, values, bias):
            return apply(x, values, bias, kind, shape, index, activation, plain)
        return reference.activate(apply(x, values, bias, kind, shape, index, "none", plain), activation)
    op = OPS[kind].linear
    result: Tensor = (op.direct if plain else op)(x, values, bias, index, shape, activation)
    return result


def linear_bitmap(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    shape: tuple[int, ...],
    index: Sequence[Tensor],
    activation: str = "none",
) -> Tensor:
    """Linear over ``x`` ``[batch, cols]`` from the dense layout's index, not differentiable. Checks nothing."""
    op = schemas.linear_bitmap
    y: Tensor = (op.direct if is_plain(x) else op)(x, values, bias, index, shape, activation)
    return y


def expand(values: Tensor, index: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Dense tensor of ``shape`` with ``values`` where the dense layout's index says, else zero. Checks nothing."""
    if values.numel() == math.prod(shape):  # everything is kept, in order
        return values.view(*shape)
    return (_apply_expand if is_plain(values) else _Expand.apply)(values, index, shape)


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    kind: str,
    shape: tuple[int, ...],
    index: Sequence[Tensor],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str = "none",
    channels_last: bool = False,
) -> Tensor:
    """Differentiable sparse conv2d over ``x`` ``[N, C, H, W]``, zero padding. Checks nothing."""
    plain = is_plain(x)
    order = (True,) * channels_last  # of BSR alone, and so no argument of the other kinds' operators
    if torch.is_grad_enabled():
        apply, tail = _apply_conv2d if plain else _Conv2d.apply, (stride, padding, dilation, groups, index)
        if activation in DIFFERENTIATED or not wants_gradients(x, values, bias):
            return apply(x, values, bias, kind, shape, *tail, activation, order, plain)
        return reference.activate(apply(x, values, bias, kind, shape, *tail, "none", order, plain), activation)
    op = OPS[kind].conv2d.direct if plain else OPS[kind].conv2d
    conv = (stride, padding, dilation, groups)
    y: Tensor = op(x, values, bias, index, shape, *conv, activation, *order)
    return y

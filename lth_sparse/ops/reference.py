"""Every operator in plain torch: the truth the kernels are tested against, and what runs where no kernel exists.

The weight is made dense, torch's own product does the rest, and the gradient of the live weights is read out of the
dense one. It works on every device and in every dtype, saves no time, and is differentiable to any order, which is
why a second derivative through a sparse layer goes this way too. Results have the dtype of the arguments under
autocast as well: what it casts was cast before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats import BSR, CSR, Layout, SemiStructured
from lth_sparse.ops.library import autocasts

__all__ = [
    "ACTIVATIONS",
    "activate",
    "activate_",
    "before_relu",
    "conv2d",
    "conv2d_backward",
    "layout_of",
    "linear",
    "linear_backward",
]

Result = TypeVar("Result")

#: The names of the activations, those of ``kernels/epilogue.py``.
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")


def activate(y: Tensor, activation: str) -> Tensor:
    """torch's own function of the name, differentiable to any order; ``y`` itself for ``"none"``."""
    if activation == "none":
        return y
    if activation in ("relu", "silu"):
        return F.relu(y) if activation == "relu" else F.silu(y)
    return F.gelu(y, approximate=_approximation(activation))


def activate_(y: Tensor, activation: str) -> Tensor:
    """:func:`activate` in the memory of ``y``, for operators, which nothing differentiates."""
    if activation == "none":
        return y
    if activation in ("relu", "silu"):
        return y.relu_() if activation == "relu" else F.silu(y, inplace=True)
    result: Tensor = torch.ops.aten.gelu_(y, approximate=_approximation(activation))
    return result


def _approximation(activation: str) -> str:
    """torch's name of it."""
    if activation not in ("gelu", "gelu_tanh"):
        raise ArgumentError(expected("activation", f"one of {', '.join(ACTIVATIONS)}", repr(activation)))
    return "tanh" if activation == "gelu_tanh" else "none"


def _in_given_dtype(function: Callable[..., Result]) -> Callable[..., Result]:
    """``function`` without autocast, which would return another dtype than the operator promises."""

    @functools.wraps(function)
    def run(first: Tensor, *rest: Any) -> Result:
        device = first.device.type
        if not autocasts(device):
            return function(first, *rest)
        with torch.autocast(device, enabled=False):
            return function(first, *rest)

    return run


def layout_of(
    kind: str, shape: Sequence[int], index: Sequence[Tensor], values: Tensor, channels_last: bool = False
) -> Layout:
    """The layout object over index tensors that came through an operator call."""
    if kind == "csr":
        return CSR(tuple(shape), *index)
    # The count of live entries is not needed here, and counting would read the data.
    if kind == "2:4":
        return SemiStructured(tuple(shape), *index, live=-1)
    block = (int(values.shape[1]), int(values.shape[2]))
    return BSR(tuple(shape), *index, block=block, live=-1, channels_last=channels_last)


def before_relu(grad: Tensor, activated: Tensor | None) -> Tensor:
    """The gradient in front of a ReLU that gave ``activated``; ``grad`` itself where there was none (None)."""
    return grad if activated is None else torch.ops.aten.threshold_backward(grad, activated, 0)


@_in_given_dtype
def linear(x: Tensor, values: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
    """``y = x W^T + b`` with ``x`` ``[batch, cols]`` and W the dense form of ``values``."""
    return F.linear(x, layout.scatter(values), bias)


@_in_given_dtype
def linear_backward(
    grad: Tensor, x: Tensor, values: Tensor, layout: Layout, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`linear` for x, values and bias; None where ``wanted`` is False."""
    dx = grad @ layout.scatter(values) if wanted[0] else None
    dvalues = layout.gather((grad.t() @ x).view(layout.shape)) if wanted[1] else None
    dbias = grad.sum(0) if wanted[2] else None
    return dx, dvalues, dbias


@_in_given_dtype
def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    layout: Layout,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Cross-correlation of ``x`` ``[N, C, H, W]`` with the dense form of ``values``, zero padding."""
    return F.conv2d(x, layout.scatter(values), bias, tuple(stride), tuple(padding), tuple(dilation), groups)


@_in_given_dtype
def conv2d_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    layout: Layout,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`conv2d` for x, values and bias; None where ``wanted`` is False."""
    weight = layout.scatter(values)
    if x.device.type == "cpu" and tuple(weight.shape[2:]) == (1, 1) and max(stride) > 1:
        # oneDNN's weight gradient of these convolutions writes past its memory on AVX2 with one thread (torch 2.13)
        # where images or weight are channels_last: the heap is corrupt afterwards. clone: contiguous() leaves the
        # strides of a 1x1 kernel as they are, and by those oneDNN's format is chosen.
        x, weight = (one.clone(memory_format=torch.contiguous_format) for one in (x, weight))
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        [layout.rows],
        list(stride),
        list(padding),
        list(dilation),
        False,  # not transposed
        [0, 0],  # output padding, for transposed convolutions
        groups,
        list(wanted),
    )
    return dx, layout.gather(dweight) if wanted[1] else None, dbias

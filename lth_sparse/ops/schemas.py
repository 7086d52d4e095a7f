"""The operators: their schemas, their shapes, and their plain-torch implementation on every device.

One set per layout kind with kernels, all of one form. ``index`` holds the layout's index tensors in the order of its
``INDEX_NAMES``; ``shape`` is the dense weight's, always 2-D for linear and 4-D for conv2d. ``activation`` is one of
``reference.ACTIVATIONS`` and is applied to the result. That of ``"relu"`` is ``activated`` in the backward, where
``grad`` counts only where it is positive; the others have no backward here, as they need what they were applied to. A
backward returns three tensors, of which those that were not ``wanted`` are empty. The convolutions of a BSR weight are
told the order of its columns, ``channels_last``. Stating every precondition in the fake makes it the specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lth_sparse.formats import Dense
from lth_sparse.ops import reference
from lth_sparse.ops.library import Operator, define
from lth_sparse.ops.strides import empty_owed, kept_format

__all__ = ["OPS", "OpSet", "compress", "conv_output_size", "conv_sizes", "expand", "linear_bitmap"]

Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class OpSet:
    """The four operators of one layout kind."""

    linear: Operator
    linear_backward: Operator
    conv2d: Operator
    conv2d_backward: Operator


def conv_output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """``floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1``: one output dimension of a convolution."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def conv_sizes(x: Tensor, shape: Sequence[int], conv: Sequence[Any]) -> list[int]:
    """n, channels, height, width, out channels, groups; two each of kernel, stride, padding, dilation, output size."""
    stride, padding, dilation, groups = conv
    rows, _, *kernel = shape
    out = [conv_output_size(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)]
    return [*x.shape, rows, groups, *kernel, *stride, *padding, *dilation, *out]


def filled(reference_tensor: Tensor, gradients: Sequence[Tensor | None]) -> Gradients:
    """Operators return tensors only: an empty one stands for a gradient nobody wanted."""
    dx, dvalues, dbias = gradients
    if dx is None or dvalues is None or dbias is None:
        dx, dvalues, dbias = (reference_tensor.new_empty(0) if grad is None else grad for grad in gradients)
    return dx, dvalues, dbias


def _check_common(x: Tensor, values: Tensor, bias: Tensor | None, rows: int, activation: str) -> None:
    names = reference.ACTIVATIONS
    torch._check(activation in names, lambda: f"activation: expected one of {', '.join(names)}, got {activation}")
    torch._check(values.dtype == x.dtype, lambda: f"values: expected dtype {x.dtype} of x, got {values.dtype}")
    torch._check(values.device == x.device, lambda: f"values: expected device {x.device} of x, got {values.device}")
    if bias is not None:
        torch._check(bias.dim() == 1 and bias.shape[0] == rows, lambda: f"bias: expected [{rows}], got {bias.shape}")


def _fake_linear(
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], shape: list[int], activation: str = "none"
) -> Tensor:
    rows, cols = shape
    torch._check(x.dim() == 2 and x.shape[1] == cols, lambda: f"x: expected [batch, {cols}], got {x.shape}")
    _check_common(x, values, bias, rows, activation)
    return empty_owed(x, x, (x.shape[0], rows), False)


def _fake_linear_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    shape: list[int],
    wanted: list[bool],
    activated: Tensor | None = None,
) -> Gradients:
    rows = shape[0]
    torch._check(grad.dim() == 2 and grad.shape[1] == rows, lambda: f"grad: expected [batch, {rows}], got {grad.shape}")
    return _fake_gradients(grad, x, values, rows, wanted, activated)


def _fake_conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: list[Tensor],
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str = "none",
    channels_last: bool = False,
) -> Tensor:
    rows, channels, *kernel = shape
    torch._check(
        x.dim() == 4 and x.shape[1] == channels * groups,
        lambda: f"x: expected [N, {channels * groups}, H, W], got {x.shape}",
    )
    _check_common(x, values, bias, rows, activation)
    size = [conv_output_size(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)]
    return empty_owed(x, x, (x.shape[0], rows, *size), channels_last)


def _fake_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    wanted: list[bool],
    activated: Tensor | None = None,
    channels_last: bool = False,
) -> Gradients:
    return _fake_gradients(grad, x, values, shape[0], wanted, activated, channels_last)


def _fake_gradients(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    rows: int,
    wanted: list[bool],
    activated: Tensor | None,
    channels_last: bool = False,
) -> Gradients:
    if activated is not None:
        size = activated.shape
        torch._check(size == grad.shape, lambda: f"activated: expected {grad.shape} of grad, got {size}")
    dx = empty_owed(x, grad, x.shape, channels_last) if wanted[0] else None
    dvalues = grad.new_empty(values.shape) if wanted[1] else None
    return filled(grad, (dx, dvalues, grad.new_empty(rows) if wanted[2] else None))


def _define(kind: str, stem: str) -> OpSet:
    """Define the four operators of one layout kind, named after ``stem``, with their references."""
    head = "Tensor values, Tensor? bias, Tensor[] index, int[] shape"
    tail = "Tensor x, Tensor values, Tensor[] index, int[] shape"
    conv = "int[] stride, int[] padding, int[] dilation, int groups"

    def linear(
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: list[Tensor],
        shape: list[int],
        activation: str = "none",
    ) -> Tensor:
        y = reference.linear(x, values, bias, reference.layout_of(kind, shape, index, values))
        return kept_format(reference.activate_(y, activation), x)

    def linear_backward(
        grad: Tensor,
        x: Tensor,
        values: Tensor,
        index: list[Tensor],
        shape: list[int],
        wanted: list[bool],
        activated: Tensor | None = None,
    ) -> Gradients:
        grad = reference.before_relu(grad, activated)
        layout = reference.layout_of(kind, shape, index, values)
        dx, dvalues, dbias = reference.linear_backward(grad, x, values, layout, wanted)
        return filled(grad, (None if dx is None else kept_format(dx, x), dvalues, dbias))

    def conv2d(
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: list[Tensor],
        shape: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        activation: str = "none",
        channels_last: bool = False,
    ) -> Tensor:
        layout = reference.layout_of(kind, shape, index, values, channels_last)
        y = reference.conv2d(x, values, bias, layout, stride, padding, dilation, groups)
        return kept_format(reference.activate_(y, activation), x, channels_last)

    def conv2d_backward(
        grad: Tensor,
        x: Tensor,
        values: Tensor,
        index: list[Tensor],
        shape: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        wanted: list[bool],
        activated: Tensor | None = None,
        channels_last: bool = False,
    ) -> Gradients:
        grad = reference.before_relu(grad, activated)
        layout = reference.layout_of(kind, shape, index, values, channels_last)
        conv = (stride, padding, dilation, groups)
        dx, dvalues, dbias = reference.conv2d_backward(grad, x, values, layout, *conv, wanted)
        return filled(grad, (None if dx is None else kept_format(dx, x, channels_last), dvalues, dbias))

    act, last, three = 'str activation="none"', "bool[] wanted, Tensor? activated=None", "(Tensor, Tensor, Tensor)"
    order = ", bool channels_last=False" if kind == "bsr" else ""
    return OpSet(
        define(f"linear_{stem}(Tensor x, {head}, {act}) -> Tensor", reference=linear, fake=_fake_linear),
        define(
            f"linear_{stem}_backward(Tensor grad, {tail}, {last}) -> {three}",
            reference=linear_backward,
            fake=_fake_linear_backward,
        ),
        define(f"conv2d_{stem}(Tensor x, {head}, {conv}, {act}{order}) -> Tensor", reference=conv2d, fake=_fake_conv2d),
        define(
            f"conv2d_{stem}_backward(Tensor grad, {tail}, {conv}, {last}{order}) -> {three}",
            reference=conv2d_backward,
            fake=_fake_conv2d_backward,
        ),
    )


#: Operators by layout kind. The dense layout needs none: it is torch's own product over a scattered weight.
OPS: dict[str, OpSet] = {
    kind: _define(kind, stem) for kind, stem in (("csr", "csr"), ("bsr", "bsr"), ("2:4", "semi_structured"))
}


def _expand(values: Tensor, bits: Tensor, rank: Tensor, numel: int) -> Tensor:
    return Dense((1, numel), bits, rank, live=values.numel()).scatter(values).flatten()


def _fake_expand(values: Tensor, bits: Tensor, rank: Tensor, numel: int) -> Tensor:
    torch._check(values.dim() == 1, lambda: f"values: expected one dimension, got {values.shape}")
    return values.new_empty(numel)


def _compress(dense: Tensor, bits: Tensor, rank: Tensor, nnz: int) -> Tensor:
    return Dense((1, dense.numel()), bits, rank, live=nnz).gather(dense.reshape(1, -1))


def _fake_compress(dense: Tensor, bits: Tensor, rank: Tensor, nnz: int) -> Tensor:
    return dense.new_empty(nnz)


#: Compact values to a flat dense tensor and back, by the index of the dense layout.
expand = define(
    "expand(Tensor values, Tensor bits, Tensor rank, int numel) -> Tensor", reference=_expand, fake=_fake_expand
)
compress = define(
    "compress(Tensor dense, Tensor bits, Tensor rank, int nnz) -> Tensor", reference=_compress, fake=_fake_compress
)


def _linear_bitmap(
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], shape: list[int], activation: str = "none"
) -> Tensor:
    y = reference.linear(x, values, bias, Dense(tuple(shape), *index, live=values.numel()))
    return kept_format(reference.activate_(y, activation), x)


#: The linear layer straight from the index of the dense layout, for a few rows of x; has no backward.
linear_bitmap = define(
    "linear_bitmap(Tensor x, Tensor values, Tensor? bias, Tensor[] index, int[] shape, "
    'str activation="none") -> Tensor',
    reference=_linear_bitmap,
    fake=_fake_linear,
)

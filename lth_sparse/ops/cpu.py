"""CPU implementations: hand pointers and sizes to the C++ kernels of ``csrc/``.

Shapes, dtypes and devices were checked above; here only the two things are decided that torch tensors carry and
pointers do not: strides, and whether a kernel exists for the dtype (float32 and float64; bfloat16 in the forward pass)
or the reference must do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import lth_sparse._C as _C
from lth_sparse.ops import schemas
from lth_sparse.ops.backend import FORWARD_DTYPES, FUSED, KERNEL_DTYPES, kernel_or_reference
from lth_sparse.ops.library import implement
from lth_sparse.ops.reference import activate_
from lth_sparse.ops.strides import (
    empty_activations,
    empty_gradient,
    in_one_format,
    is_feature_major,
    pointer_of,
    strides_of,
)

__all__: list[str] = []

#: Expanding and compressing copies elements whatever they mean.
COPIED_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _index_bits(index: Sequence[Tensor]) -> int:
    return 16 if index[1].dtype == torch.uint16 else 32


def _linear(
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], shape: list[int], activation: str = "none"
) -> Tensor:
    rows, cols = shape
    batch, col = x.shape[0], index[1]
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    y = empty_activations(x, (batch, rows), is_feature_major(x))
    _C.csr_linear_forward(
        x.data_ptr(), values.data_ptr(), pointer_of(bias), y.data_ptr(), index[0].data_ptr(), col.data_ptr(),
        batch, rows, cols, *strides_of(x), *strides_of(y), activation == "relu",
        16 if col.dtype is torch.uint16 else 32, FORWARD_DTYPES[x.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return y if activation in FUSED else activate_(y, activation)


def _linear_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    shape: list[int],
    wanted: list[bool],
    activated: Tensor | None = None,
) -> schemas.Gradients:
    rows, cols = shape
    crow, col, ccol, row, perm = index
    values = values.contiguous()
    dx = empty_gradient(x) if wanted[0] else None
    dvalues = torch.empty_like(values) if wanted[1] else None
    dbias = values.new_empty(rows) if wanted[2] else None
    _C.csr_linear_backward(
        grad.data_ptr(), pointer_of(activated), x.data_ptr(), values.data_ptr(),
        pointer_of(dx), pointer_of(dvalues), pointer_of(dbias),
        crow.data_ptr(), col.data_ptr(), ccol.data_ptr(), row.data_ptr(), perm.data_ptr(),
        x.shape[0], rows, cols, *strides_of(grad), *strides_of(activated), *strides_of(x), *strides_of(dx),
        _index_bits(index), KERNEL_DTYPES[x.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return schemas.filled(grad, (dx, dvalues, dbias))


def _conv_tail(x: Tensor, index: Sequence[Tensor], shape: Sequence[int], conv: Sequence[Any]) -> list[int]:
    """What follows the pointers in a call of the convolution kernels: sizes, index width, dtype, threads."""
    sizes = schemas.conv_sizes(x, shape, conv)
    return [*sizes, _index_bits(index), FORWARD_DTYPES[x.dtype], torch.get_num_threads()]


def _conv2d(
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
) -> Tensor:
    conv = (stride, padding, dilation, groups)
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    in_feature_major = is_feature_major(x)
    x = x if in_feature_major else x.contiguous()
    tail = _conv_tail(x, index, shape, conv)
    y = empty_activations(x, (x.shape[0], shape[0], *tail[-5:-3]), in_feature_major)
    tail[-3:-3] = in_feature_major, activation == "relu"
    pointers = [pointer_of(tensor) for tensor in (x, values, bias, y, index[0], index[1])]
    _C.csr_conv2d_forward(*(pointers + tail))
    return y if activation in FUSED else activate_(y, activation)


def _conv2d_backward(
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
) -> schemas.Gradients:
    conv = (stride, padding, dilation, groups)
    grad, activated = in_one_format(grad, activated)
    formats = is_feature_major(grad), is_feature_major(x)
    values = values.contiguous()
    x = x if formats[1] else x.contiguous()
    dx = torch.empty_like(x) if wanted[0] else None
    dvalues = torch.empty_like(values) if wanted[1] else None
    dbias = values.new_empty(shape[0]) if wanted[2] else None
    tail = _conv_tail(x, index, shape, conv)
    tail[-3:-3] = formats
    pointers = [pointer_of(tensor) for tensor in (grad, activated, x, values, dx, dvalues, dbias, *index[2:])]
    _C.csr_conv2d_backward(*(pointers + tail))
    return schemas.filled(grad, (dx, dvalues, dbias))


def _expand(values: Tensor, bits: Tensor, rank: Tensor, numel: int) -> Tensor:
    dense, values = values.new_empty(numel), values.contiguous()
    _C.expand(
        values.data_ptr(), bits.data_ptr(), rank.data_ptr(), dense.data_ptr(), values.numel(), numel,
        values.element_size(), torch.get_num_threads(),
    )  # fmt: skip
    return dense


def _compress(dense: Tensor, bits: Tensor, rank: Tensor, nnz: int) -> Tensor:
    dense, values = dense.contiguous(), dense.new_empty(nnz)
    _C.compress(
        dense.data_ptr(), bits.data_ptr(), rank.data_ptr(), values.data_ptr(), nnz, dense.numel(),
        dense.element_size(), torch.get_num_threads(),
    )  # fmt: skip
    return values


for _name, _kernel, _dtypes in (
    ("linear_csr", _linear, FORWARD_DTYPES),
    ("linear_csr_backward", _linear_backward, KERNEL_DTYPES),
    ("conv2d_csr", _conv2d, FORWARD_DTYPES),
    ("conv2d_csr_backward", _conv2d_backward, KERNEL_DTYPES),
    ("expand", _expand, COPIED_DTYPES),
    ("compress", _compress, COPIED_DTYPES),
):
    implement(_name, "CPU", kernel_or_reference(_name, _kernel, _dtypes))

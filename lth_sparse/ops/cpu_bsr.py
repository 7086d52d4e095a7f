"""CPU implementations for BSR weights: hand pointers and sizes to ``csrc/bsr_*``, as ``cpu.py`` does for CSR.

Results have the format of ``x``, feature-major or contiguous (``ops/strides.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

import lth_sparse._C as _C
from lth_sparse.ops import schemas
from lth_sparse.ops.backend import FORWARD_DTYPES, FUSED, KERNEL_DTYPES, kernel_or_reference
from lth_sparse.ops.library import REFERENCES, implement
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


def _linear(
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], shape: list[int], activation: str = "none"
) -> Tensor:
    rows, cols = shape
    crow, col, _, _, _, value_mask = index[:6]
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    y = empty_activations(x, (x.shape[0], rows), is_feature_major(x))
    _C.bsr_linear_forward(
        x.data_ptr(), values.data_ptr(), value_mask.data_ptr(), pointer_of(bias), y.data_ptr(),
        crow.data_ptr(), col.data_ptr(), x.shape[0], rows, cols, values.shape[1], values.shape[2],
        *strides_of(x), *strides_of(y), activation == "relu", FORWARD_DTYPES[x.dtype], torch.get_num_threads(),
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
    _, _, ccol, row, perm, value_mask = index[:6]
    values = values.contiguous()
    dx = empty_gradient(x) if wanted[0] else None
    dvalues = torch.empty_like(values) if wanted[1] else None
    dbias = values.new_empty(rows) if wanted[2] else None
    _C.bsr_linear_backward(
        grad.data_ptr(), pointer_of(activated), x.data_ptr(), values.data_ptr(), value_mask.data_ptr(),
        pointer_of(dx), pointer_of(dvalues), pointer_of(dbias), ccol.data_ptr(), row.data_ptr(), perm.data_ptr(),
        x.shape[0], rows, cols, values.shape[1], values.shape[2],
        *strides_of(grad), *strides_of(activated), *strides_of(x), *strides_of(dx),
        KERNEL_DTYPES[x.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return schemas.filled(grad, (dx, dvalues, dbias))


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
    channels_last: bool = False,
) -> Tensor:
    conv = (stride, padding, dilation, groups)
    if channels_last:  # no kernel, as backend_of says
        return REFERENCES["conv2d_bsr"](x, values, bias, index, shape, *conv, activation, True)
    crow, col, _, _, _, value_mask = index[:6]
    in_feature_major = is_feature_major(x)
    x = x if in_feature_major else x.contiguous()
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    sizes = schemas.conv_sizes(x, shape, conv)
    y = empty_activations(x, (x.shape[0], shape[0], *sizes[-2:]), in_feature_major)
    pointers = [pointer_of(tensor) for tensor in (x, values, value_mask, bias, y, crow, col)]
    tail = [in_feature_major, activation == "relu", *values.shape[1:], FORWARD_DTYPES[x.dtype], torch.get_num_threads()]
    _C.bsr_conv2d_forward(*(pointers + sizes + tail))
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
    channels_last: bool = False,
) -> schemas.Gradients:
    conv = (stride, padding, dilation, groups)
    if channels_last:
        return REFERENCES["conv2d_bsr_backward"](grad, x, values, index, shape, *conv, wanted, activated, True)
    _, _, ccol, row, perm, value_mask = index[:6]
    grad, activated = in_one_format(grad, activated)
    formats = is_feature_major(grad), is_feature_major(x)
    x = x if formats[1] else x.contiguous()
    values = values.contiguous()
    dx = torch.empty_like(x) if wanted[0] else None
    dvalues = torch.empty_like(values) if wanted[1] else None
    dbias = values.new_empty(shape[0]) if wanted[2] else None
    tensors = (grad, activated, x, values, value_mask, dx, dvalues, dbias, ccol, row, perm)
    sizes = [*schemas.conv_sizes(x, shape, conv), *formats, *values.shape[1:]]
    codes = [KERNEL_DTYPES[x.dtype], torch.get_num_threads()]
    _C.bsr_conv2d_backward(*([pointer_of(tensor) for tensor in tensors] + sizes + codes))
    return schemas.filled(grad, (dx, dvalues, dbias))


for _name, _kernel, _dtypes in (
    ("linear_bsr", _linear, FORWARD_DTYPES),
    ("linear_bsr_backward", _linear_backward, KERNEL_DTYPES),
    ("conv2d_bsr", _conv2d, FORWARD_DTYPES),
    ("conv2d_bsr_backward", _conv2d_backward, KERNEL_DTYPES),
):
    implement(_name, "CPU", kernel_or_reference(_name, _kernel, _dtypes))

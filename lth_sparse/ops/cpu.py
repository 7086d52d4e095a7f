"""CPU implementations: hand pointers and sizes to the C++ kernels of ``csrc/``.

Shapes, dtypes and devices were checked above; here only the two things are decided that torch tensors carry and
pointers do not: strides, and whether a kernel exists for the dtype (float32 and float64) or the reference must do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import lth_sparse._C as _C
from lth_sparse.ops import schemas
from lth_sparse.ops.backend import KERNEL_DTYPES, forced_reference
from lth_sparse.ops.library import REFERENCES, implement

__all__: list[str] = []


def _has_kernel(dtype: torch.dtype) -> bool:
    return dtype in KERNEL_DTYPES and not forced_reference()


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _index_bits(index: Sequence[Tensor]) -> int:
    return 16 if index[1].dtype == torch.uint16 else 32


def _empty(wanted: bool, like: Tensor, size: Sequence[int]) -> Tensor | None:
    return like.new_empty(size) if wanted else None


def _linear(x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], shape: list[int]) -> Tensor:
    rows, cols = shape
    crow, col = index[0], index[1]
    y = x.new_empty(x.shape[0], rows)
    _C.csr_linear_forward(
        x.data_ptr(), values.data_ptr(), _pointer(bias), y.data_ptr(), crow.data_ptr(), col.data_ptr(),
        x.shape[0], rows, cols, x.stride(0), x.stride(1), y.stride(0), y.stride(1),
        _index_bits(index), KERNEL_DTYPES[x.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return y


def _linear_backward(
    grad: Tensor, x: Tensor, values: Tensor, index: list[Tensor], shape: list[int], wanted: list[bool]
) -> schemas.Gradients:
    rows, cols = shape
    crow, col, ccol, row, perm = index
    dx = _empty(wanted[0], x, x.shape)
    dvalues = _empty(wanted[1], values, values.shape)
    dbias = _empty(wanted[2], values, (rows,))
    dx_strides = dx.stride() if dx is not None else (0, 0)
    _C.csr_linear_backward(
        grad.data_ptr(), x.data_ptr(), values.data_ptr(), _pointer(dx), _pointer(dvalues), _pointer(dbias),
        crow.data_ptr(), col.data_ptr(), ccol.data_ptr(), row.data_ptr(), perm.data_ptr(),
        x.shape[0], rows, cols, grad.stride(0), grad.stride(1), x.stride(0), x.stride(1), *dx_strides,
        _index_bits(index), KERNEL_DTYPES[x.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return schemas.filled(grad, (dx, dvalues, dbias))


def _conv_tail(x: Tensor, index: Sequence[Tensor], shape: Sequence[int], conv: Sequence[Any]) -> list[int]:
    """What follows the pointers in a call of the convolution kernels: sizes, index width, dtype, threads."""
    stride, padding, dilation, groups = conv
    n, channels, height, width = x.shape
    rows, _, *kernel = shape
    out = [schemas.conv_output_size((height, width)[i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)]
    sizes = [n, channels, height, width, rows, groups, *kernel, *stride, *padding, *dilation, *out]
    return [*sizes, _index_bits(index), KERNEL_DTYPES[x.dtype], torch.get_num_threads()]


def _conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], shape: list[int], *conv: Any
) -> Tensor:
    x = x.contiguous()
    tail = _conv_tail(x, index, shape, conv)
    y = x.new_empty(x.shape[0], shape[0], *tail[-5:-3])
    pointers = [_pointer(tensor) for tensor in (x, values, bias, y, index[0], index[1])]
    _C.csr_conv2d_forward(*(pointers + tail))
    return y


def _conv2d_backward(
    grad: Tensor, x: Tensor, values: Tensor, index: list[Tensor], shape: list[int], *arguments: Any
) -> schemas.Gradients:
    *conv, wanted = arguments
    grad, x = grad.contiguous(), x.contiguous()
    dx = _empty(wanted[0], x, x.shape)
    dvalues = _empty(wanted[1], values, values.shape)
    dbias = _empty(wanted[2], values, (shape[0],))
    pointers = [_pointer(tensor) for tensor in (grad, x, values, dx, dvalues, dbias, index[0], index[1])]
    _C.csr_conv2d_backward(*(pointers + _conv_tail(x, index, shape, conv)))
    return schemas.filled(grad, (dx, dvalues, dbias))


def _or_reference(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel where it has the dtype of the first argument (``x`` or ``grad``), else the operator's reference."""
    reference = REFERENCES[name]

    def run(first: Tensor, *rest: Any) -> Any:
        return (kernel if _has_kernel(first.dtype) else reference)(first, *rest)

    return run


for _name, _kernel in (
    ("linear_csr", _linear),
    ("linear_csr_backward", _linear_backward),
    ("conv2d_csr", _conv2d),
    ("conv2d_csr_backward", _conv2d_backward),
):
    implement(_name, "CPU", _or_reference(_name, _kernel))

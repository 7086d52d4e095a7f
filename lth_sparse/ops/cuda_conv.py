"""CUDA implementations of the convolutions, as ``cuda.py`` has those of the linear layers, whose helpers they use.

Results have the format that an operator given ``x`` owes (``ops/strides.py``): kernels write into any strides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lth_sparse.kernels import bsr_conv, bsr_conv_backward, bsr_conv_nhwc, bsr_linear, launch
from lth_sparse.kernels.conv_tiles import Conv
from lth_sparse.ops import cuda, schemas
from lth_sparse.ops.backend import TRITON_DTYPES, kernel_or_reference
from lth_sparse.ops.library import implement
from lth_sparse.ops.reference import before_relu
from lth_sparse.ops.strides import empty_owed

__all__: list[str] = []


def _conv(shape: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int) -> Conv:
    (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w) = shape[2:], stride, padding
    step_h, step_w = dilation
    return Conv((kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (step_h, step_w), groups)


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
    crow, col, _, _, _, value_mask = index[:6]
    conv = _conv(shape, stride, padding, dilation, groups)
    product, _, _ = launch.NHWC_PRODUCTS if channels_last else launch.CONV_PRODUCTS
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        size = (x.shape[0], shape[0], *conv.output_size(x.shape[2], x.shape[3]))
        y = empty_owed(x, x, size, channels_last)
        scattered = channels_last and x.stride(1) != 1
        tile = cuda._tile(product, y, (values.shape[1], values.shape[2]), index, shape, scattered=scattered)
        values = cuda._live(values, value_mask)
        return bsr_conv.forward(x, values, bias, crow, col, y, conv, tile, activation, channels_last)


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
    grad = before_relu(grad, activated)
    crow, col, ccol, row, perm, value_mask = index[:6]
    block = (values.shape[1], values.shape[2])
    conv = _conv(shape, stride, padding, dilation, groups)
    _, by_input, by_weight = launch.NHWC_PRODUCTS if channels_last else launch.CONV_PRODUCTS
    dx = dvalues = dbias = None
    with torch.cuda.device_of(x):
        if wanted[0]:
            dx = empty_owed(x, grad, x.shape, channels_last)
            # The products over input pixels go by their number, the others by that of the output's.
            scattered = channels_last and grad.stride(1) != 1
            tile = cuda._tile(by_input, dx if channels_last else grad, block, index, shape, scattered=scattered)
            gradient = (bsr_conv_nhwc if channels_last else bsr_conv_backward).input_gradient
            gradient(grad, cuda._live(values, value_mask), ccol, row, perm, dx, conv, tile)
        if wanted[1]:
            scattered = channels_last and x.stride(1) != 1
            tile = cuda._tile(by_weight, grad, block, index, shape, scattered=scattered)
            programs = bsr_linear.weight_gradient_programs(block, col.shape[0], tile)
            splits = launch.splits_for(cuda._device(x.get_device()), programs, grad.shape[0] * grad.shape[2:].numel())
            mask = value_mask if value_mask.numel() else None
            # Beside the addresses of columns that go by channel, the sums of the bias would spill on sm_80.
            dvalues, dbias = bsr_conv_backward.weight_gradient(
                grad, x, block, mask, crow, col, conv, tile, splits, channels_last, bias=wanted[2] and channels_last
            )
        if wanted[2] and dbias is None:
            dbias = grad.sum((0, 2, 3), dtype=grad.dtype)
    return schemas.filled(grad, (dx, dvalues, dbias))


for _name, _kernel in (("conv2d_bsr", _conv2d), ("conv2d_bsr_backward", _conv2d_backward)):
    implement(_name, "CUDA", kernel_or_reference(_name, _kernel, TRITON_DTYPES))

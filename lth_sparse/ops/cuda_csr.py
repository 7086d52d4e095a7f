"""CUDA implementations for unstructured weights: CSR layers, and the dense layout at the few tokens of decoding.

As in ``ops/cuda.py``: what was checked above is handed to the Triton kernels with a launch configuration. They want
tokens contiguous, so contiguous activations are rearranged here, once for all products that read them, and results are
brought into the format that is owed. A 1x1 convolution without groups is the linear layer over its pixels; every other
convolution has the reference, and ``backend_of`` says so.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.kernels import bitmap_linear, csr_linear, launch, launch_csr
from lth_sparse.ops import schemas
from lth_sparse.ops.backend import TRITON_DTYPES, is_pointwise, kernel_or_reference
from lth_sparse.ops.cuda import _allows_tf32, _device
from lth_sparse.ops.library import REFERENCES, implement
from lth_sparse.ops.reference import before_relu
from lth_sparse.ops.strides import empty_activations, feature_major, is_feature_major

__all__: list[str] = []

FORWARD, BY_INPUT, BY_WEIGHT = launch.CSR_PRODUCTS


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _tile(product: str, x: Tensor, tokens: int, shape: list[int], nnz: int) -> Any:
    """The configuration for a product of ``tokens`` rows with a weight ``[rows, cols, ...]`` of ``nnz`` live ones."""
    rows, cols = shape[:2]
    density = nnz / max(rows * cols, 1)
    problem = launch.Problem(product, _dtype(x), (1, 1), tokens, rows, cols, density)
    return launch_csr.select(_device(x.get_device()), problem)


def _result(x: Tensor, inside: Tensor, size: int) -> Tensor:
    """Where a product of ``inside``, which is x with its tokens contiguous, is written fastest: ``[M, size]``.

    Few tokens go where they are owed at once. Many are written in the format of ``inside``, to be brought back.
    """
    if x.shape[0] <= launch_csr.FEW_TOKENS or is_feature_major(x):
        return empty_activations(x, (x.shape[0], size), is_feature_major(x))
    return empty_activations(x, (inside.shape[0], size), True)


def _owed(y: Tensor, x: Tensor) -> Tensor:
    """The result in the format that is owed for x: feature-major if x is, else contiguous."""
    if y.shape[0] == x.shape[0] and (is_feature_major(x) or y.is_contiguous()):
        return y
    return csr_linear.tokens_outside(y, x.shape[0])


def _linear(
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], shape: list[int], activation: str = "none"
) -> Tensor:
    crow, col, _, _, _ = index
    values = values.contiguous()
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        inside = csr_linear.tokens_inside(x)
        tile = _tile(FORWARD, x, x.shape[0], shape, values.shape[0])
        y = _result(x, inside, shape[0])
        csr_linear.forward(inside, values, bias, crow, col, y, tile, activation)
        return _owed(y, x)


def _linear_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    shape: list[int],
    wanted: list[bool],
    activated: Tensor | None = None,
) -> schemas.Gradients:
    grad = before_relu(grad, activated)
    crow, col, ccol, row, perm = index
    nnz = values.shape[0]
    dx = dvalues = dbias = None
    with torch.cuda.device_of(x):
        inside = csr_linear.tokens_inside(grad) if wanted[0] or wanted[1] else grad
        if wanted[0]:
            tile = _tile(BY_INPUT, grad, grad.shape[0], shape, nnz)
            dx = _result(x, inside, shape[1])
            csr_linear.input_gradient(inside, values.contiguous(), ccol, row, perm, dx, tile)
            dx = _owed(dx, x)
        if wanted[1]:
            scatter = _tile(BY_WEIGHT, x, grad.shape[0], shape, nnz)
            dvalues = csr_linear.weight_gradient(inside, csr_linear.tokens_inside(x), crow, col, scatter)
        if wanted[2]:
            dbias = grad.sum(0, dtype=grad.dtype)
    return schemas.filled(grad, (dx, dvalues, dbias))


def _pixels(images: Tensor, batch_inner: bool) -> Tensor:
    """The pixels of ``[N, C, H, W]`` as the rows of a matrix ``[M, C]`` whose tokens are contiguous, the batch the
    innermost or the outermost of them. A copy where they do not lie so; either order copies whole runs."""
    n, channels, height, width = images.shape
    inside = images.permute(1, 2, 3, 0) if batch_inner else images.permute(1, 0, 2, 3)
    return inside.reshape(channels, n * height * width).t()


def _images(pixels: Tensor, size: tuple[int, ...], batch_inner: bool) -> Tensor:
    """The way back, into feature-major or contiguous images."""
    n, channels, height, width = size
    if batch_inner:
        return pixels.t().view(channels, height, width, n).permute(3, 0, 1, 2)
    # for one image `contiguous` alone would keep a stride that no contiguous tensor has
    return pixels.t().view(channels, n, height, width).permute(1, 0, 2, 3).contiguous().view(size)


def _seen(x: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    """The pixels of ``x`` that a 1x1 convolution reads, one for each of its output."""
    if any(padding):
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    return x[:, :, :: stride[0], :: stride[1]]


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
    if not is_pointwise(shape, groups):
        conv = (stride, padding, dilation, groups)
        y: Tensor = REFERENCES["conv2d_csr"](x, values, bias, index, shape, *conv, activation)
        return y
    crow, col, _, _, _ = index
    bias = None if bias is None else bias.contiguous()
    batch_inner = is_feature_major(x)
    with torch.cuda.device_of(x):
        seen = _seen(x, stride, padding)
        pixels = _pixels(seen, batch_inner)
        out = empty_activations(x, (pixels.shape[0], shape[0]), True)
        tile = _tile(FORWARD, x, pixels.shape[0], shape, values.shape[0])
        csr_linear.forward(pixels, values.contiguous(), bias, crow, col, out, tile, activation)
        return _images(out, (x.shape[0], shape[0], *seen.shape[2:]), batch_inner)


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
    if not is_pointwise(shape, groups):
        gradients: schemas.Gradients = REFERENCES["conv2d_csr_backward"](
            grad, x, values, index, shape, stride, padding, dilation, groups, wanted, activated
        )
        return gradients
    grad = before_relu(grad, activated)
    crow, col, ccol, row, perm = index
    nnz, batch_inner = values.shape[0], is_feature_major(x)
    dx = dvalues = dbias = None
    with torch.cuda.device_of(x):
        inside = _pixels(grad, batch_inner) if wanted[0] or wanted[1] else grad
        if wanted[0]:
            out = empty_activations(grad, (inside.shape[0], shape[1]), True)
            tile = _tile(BY_INPUT, grad, inside.shape[0], shape, nnz)
            csr_linear.input_gradient(inside, values.contiguous(), ccol, row, perm, out, tile)
            dx = _images(out, (x.shape[0], shape[1], *grad.shape[2:]), batch_inner)
            if any(step != 1 for step in stride) or any(padding):
                dx = _spread(dx, x, stride, padding, batch_inner)
        if wanted[1]:
            seen = _pixels(_seen(x, stride, padding), batch_inner)
            scatter = _tile(BY_WEIGHT, x, inside.shape[0], shape, nnz)
            dvalues = csr_linear.weight_gradient(inside, seen, crow, col, scatter)
        if wanted[2]:
            dbias = grad.sum((0, 2, 3), dtype=grad.dtype)
    return schemas.filled(grad, (dx, dvalues, dbias))


def _spread(dx: Tensor, x: Tensor, stride: list[int], padding: list[int], batch_inner: bool) -> Tensor:
    """The gradient of ``x`` from that of the pixels which :func:`_seen` took of it: 0 for all others."""
    n, channels, height, width = x.shape
    (pad_h, pad_w), (stride_h, stride_w) = padding, stride
    whole = empty_activations(dx, (n, channels, height + 2 * pad_h, width + 2 * pad_w), batch_inner).zero_()
    whole[:, :, ::stride_h, ::stride_w] = dx
    whole = whole[:, :, pad_h : pad_h + height, pad_w : pad_w + width]
    return feature_major(whole) if batch_inner else whole.contiguous()


def _linear_bitmap(
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], shape: list[int], activation: str = "none"
) -> Tensor:
    bits, rank = index
    device, tokens = _device(x.get_device()), x.shape[0]
    problem = launch.Problem("forward", _dtype(x), (1, 1), tokens)
    precision = launch.precision_of(device, problem, tf32=x.dtype == torch.float32 and _allows_tf32())
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        y = empty_activations(x, (tokens, shape[0]), is_feature_major(x))
        tile = launch_csr.bitmap(device, _dtype(x), tokens, *shape)
        return bitmap_linear.forward(x, values.contiguous(), bias, bits, rank, y, tile, precision, activation)


for _name, _kernel in (
    ("linear_csr", _linear),
    ("linear_csr_backward", _linear_backward),
    ("conv2d_csr", _conv2d),
    ("conv2d_csr_backward", _conv2d_backward),
    ("linear_bitmap", _linear_bitmap),
):
    implement(_name, "CUDA", kernel_or_reference(_name, _kernel, TRITON_DTYPES))

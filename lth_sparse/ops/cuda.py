"""CUDA implementations: hand tensors and a launch configuration to the Triton kernels of ``kernels/``.

Imported, and so registered, only where Triton is installed (``backend.HAS_TRITON``); elsewhere CUDA tensors are served
by the reference. Shapes, dtypes and devices were checked above. Here it is decided whether a kernel exists for the
dtype, and what makes the stored blocks equal the weight: values of entries that are not live count as 0. The
convolutions are in ``cuda_conv``.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lth_sparse.kernels import bsr_linear, launch
from lth_sparse.ops import schemas
from lth_sparse.ops.backend import TRITON_DTYPES, kernel_or_reference
from lth_sparse.ops.library import implement
from lth_sparse.ops.reference import before_relu
from lth_sparse.ops.strides import kept_format

__all__: list[str] = []


@functools.cache
def _device(index: int) -> launch.Device:
    """What the launch selection wants to know of CUDA device ``index``."""
    properties = torch.cuda.get_device_properties(index)
    hip = torch.version.hip is not None
    return launch.Device(
        name=properties.name,
        arch=10 * properties.major + properties.minor,
        # torch's type stub lacks the second name
        shared=getattr(properties, "shared_memory_per_block" if hip else "shared_memory_per_block_optin"),
        processors=properties.multi_processor_count,
        hip=hip,
    )


def _allows_tf32() -> bool:
    """The user's own switch for matrix products; torch before 2.9 has only the older of its two names."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def _tile(product: str, x: Tensor, block: tuple[int, int]) -> launch.Tile:
    """The configuration for a product over the rows of ``x``, or over the pixels of images."""
    tokens = x.shape[0] * x.shape[2:].numel()
    problem = launch.Problem(product, str(x.dtype).removeprefix("torch."), block, tokens)
    tf32 = x.dtype == torch.float32 and _allows_tf32()
    return launch.select(_device(x.get_device()), problem, tf32=tf32)


def _live(values: Tensor, value_mask: Tensor) -> Tensor:
    """``values`` with 0 where an entry is not live; they are as small as the pruned weight, so a pass costs little."""
    values = values.contiguous()
    return values * value_mask if value_mask.numel() else values


def _linear(
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], shape: list[int], relu: bool = False
) -> Tensor:
    crow, col, _, _, _, value_mask = index
    block = (values.shape[1], values.shape[2])
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        y = bsr_linear.forward(x, _live(values, value_mask), bias, crow, col, shape[0], _tile("forward", x, block))
        y = kept_format(y, x)
    return y.relu_() if relu else y


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
    crow, col, ccol, row, perm, value_mask = index
    block = (values.shape[1], values.shape[2])
    dx = dvalues = dbias = None
    with torch.cuda.device_of(x):
        if wanted[0]:
            tile = _tile("input_gradient", grad, block)
            dx = bsr_linear.input_gradient(grad, _live(values, value_mask), ccol, row, perm, shape[1], tile)
            dx = kept_format(dx, x)
        if wanted[1]:
            tile = _tile("weight_gradient", grad, block)
            programs = bsr_linear.weight_gradient_programs(block, col.shape[0], tile)
            splits = launch.splits_for(_device(x.get_device()), programs, x.shape[0])
            mask = value_mask if value_mask.numel() else None
            dvalues = bsr_linear.weight_gradient(grad, x, block, mask, crow, col, tile, splits)
        if wanted[2]:
            dbias = grad.sum(0)
    return schemas.filled(grad, (dx, dvalues, dbias))


for _name, _kernel in (
    ("linear_bsr", _linear),
    ("linear_bsr_backward", _linear_backward),
):
    implement(_name, "CUDA", kernel_or_reference(_name, _kernel, TRITON_DTYPES))

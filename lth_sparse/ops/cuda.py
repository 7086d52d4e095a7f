"""CUDA implementations: hand tensors and a launch configuration to the Triton kernels of ``kernels/``.

Imported, and so registered, only where Triton is installed (``backend.HAS_TRITON``); elsewhere CUDA tensors are served
by the reference. Shapes, dtypes and devices were checked above. Here it is decided whether a kernel exists for the
dtype, and what makes the stored blocks equal the weight: values of entries that are not live count as 0. The
convolutions are in ``cuda_conv``.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from lth_sparse.kernels import bsr_linear, launch
from lth_sparse.ops import schemas
from lth_sparse.ops.backend import TRITON_DTYPES, kernel_or_reference
from lth_sparse.ops.library import implement
from lth_sparse.ops.reference import before_relu
from lth_sparse.ops.strides import empty_activations, is_feature_major
from lth_sparse.ops.tune_cache import load

__all__: list[str] = []

#: The kernels can read a ReLU's result beside the gradient in front of it, once for each block of a block row. Above
#: this number of blocks a pass of its own is cheaper: it reads both and writes once, through the slower main memory.
READS_OF_A_PASS = 5


@functools.cache
def _device(index: int) -> launch.Device:
    """What the launch selection wants to know of CUDA device ``index``; what was tuned for it is loaded now."""
    properties = torch.cuda.get_device_properties(index)
    hip = torch.version.hip is not None
    device = launch.Device(
        name=properties.name,
        arch=10 * properties.major + properties.minor,
        # torch's type stub lacks the second name
        shared=getattr(properties, "shared_memory_per_block" if hip else "shared_memory_per_block_optin"),
        processors=properties.multi_processor_count,
        hip=hip,
    )
    load(device)
    return device


def _allows_tf32() -> bool:
    """The user's own switch for matrix products; torch before 2.9 has only the older of its two names."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def _tile(
    product: str, x: Tensor, block: tuple[int, int], index: list[Tensor], shape: list[int], **flags: bool
) -> launch.Tile:
    """The configuration for a product over the rows of ``x``, or over the pixels of images.

    ``index`` and ``shape`` are those of the weight: how many of its blocks are stored is read off their shapes, since
    a launch must not wait for the device. ``flags`` are those of :class:`launch.Problem`.
    """
    tokens = x.shape[0] * x.shape[2:].numel()
    rows, cols = shape[0], math.prod(shape[1:])
    blocks = launch.cdiv(rows, block[0]) * launch.cdiv(cols, block[1])
    density = index[1].shape[0] / max(blocks, 1)
    problem = launch.Problem(product, str(x.dtype).removeprefix("torch."), block, tokens, rows, cols, density, **flags)
    tf32 = x.dtype == torch.float32 and _allows_tf32()
    return launch.select(_device(x.get_device()), problem, tf32=tf32, rows=x.stride(-1) == 1)


def _live(values: Tensor, value_mask: Tensor) -> Tensor:
    """``values`` with 0 where an entry is not live; they are as small as the pruned weight, so a pass costs little."""
    values = values.contiguous()
    return values * value_mask if value_mask.numel() else values


def _linear(
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], shape: list[int], activation: str = "none"
) -> Tensor:
    col, value_mask, work, splits = index[1], *index[5:8]
    block = (values.shape[1], values.shape[2])
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        y = empty_activations(x, (x.shape[0], shape[0]), is_feature_major(x))
        tile = _tile("forward", x, block, index, shape, tma=bsr_linear.prefers_tma(x, block, col.shape[0]))
        return bsr_linear.forward(x, _live(values, value_mask), bias, col, work, splits, y, tile, activation)


def _linear_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    shape: list[int],
    wanted: list[bool],
    activated: Tensor | None = None,
) -> schemas.Gradients:
    crow, col, _, row, perm, value_mask, _, _, work, splits = index
    block, nblocks = (values.shape[1], values.shape[2]), col.shape[0]
    if (wanted[2] and not wanted[1]) or nblocks > READS_OF_A_PASS * (crow.shape[0] - 1):
        grad, activated = before_relu(grad, activated), None
    dx = dvalues = dbias = None
    with torch.cuda.device_of(x):
        if wanted[0]:
            dx = empty_activations(grad, x.shape, is_feature_major(x))
            tma = all(bsr_linear.prefers_tma(t, block, nblocks) for t in (grad, activated) if t is not None)
            tile = _tile("input_gradient", grad, block, index, shape, tma=tma)
            live = _live(values, value_mask)
            bsr_linear.input_gradient(grad, live, row, perm, work, splits, dx, tile, activated)
        if wanted[1]:
            tile = _tile("weight_gradient", grad, block, index, shape)
            programs = bsr_linear.weight_gradient_programs(block, nblocks, tile)
            parts = launch.splits_for(_device(x.get_device()), programs, x.shape[0])
            mask = value_mask if value_mask.numel() else None
            dvalues, dbias = bsr_linear.weight_gradient(
                grad, x, block, mask, crow, col, tile, parts, activated=activated, bias=wanted[2]
            )
        elif wanted[2]:
            dbias = grad.sum(0, dtype=grad.dtype)  # autocast returns float32 unless told
    return schemas.filled(grad, (dx, dvalues, dbias))


for _name, _kernel in (
    ("linear_bsr", _linear),
    ("linear_bsr_backward", _linear_backward),
):
    implement(_name, "CUDA", kernel_or_reference(_name, _kernel, TRITON_DTYPES))

"""Sparse counterparts of ``torch.nn.functional.linear``, ``conv1d`` and ``conv2d``, with the same arguments and shapes.

The weight is given as compact ``values`` and a ``Layout``. Pruned weights are skipped in the product and in both
gradients where a kernel exists; elsewhere the plain-torch reference runs (``ops.backend_of`` says which).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats import Layout
from lth_sparse.ops import autograd
from lth_sparse.ops.schemas import conv_output_size
from lth_sparse.ops.strides import feature_major

__all__ = ["conv1d", "conv2d", "feature_major", "linear"]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def linear(
    x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """``y = x W^T + b`` where W is the sparse matrix of ``values`` at the positions of ``layout``.

    Args:
        x: ``[*, in]``, any strides; ``[in]`` and empty batches too.
        values: compact live weights, ``layout.values_shape``.
        layout: layout of a weight of shape ``(out, in)``.
        bias: ``[out]`` or None.
        activation: ``"relu"`` computes ``max(y, 0)`` in the memory of y and as part of its gradient; or None.

    Returns:
        ``[*, out]`` in the dtype of ``values``. Under autocast ``x`` is cast to that dtype, as for torch's float32
        operators.

    Raises:
        ArgumentError: a shape, dtype or device does not fit.
    """
    x = _checked(x, values, layout, bias, dims=2)
    relu = _relu(activation)
    size, cols = x.shape, layout.cols
    if not size or size[-1] != cols:
        raise ArgumentError(expected("x", f"shape [*, {cols}]", f"{list(size)}"))
    if layout.kind == "dense":
        y = F.linear(x, autograd.expand(values, layout.index, layout.shape), bias)
        return torch.relu(y) if relu else y
    if len(size) == 2:
        return autograd.linear(x, values, bias, layout.kind, layout.shape, layout.index, relu)
    flat = x.reshape(-1, cols) if cols else x.reshape(size[:-1].numel(), 0)
    y = autograd.linear(flat, values, bias, layout.kind, layout.shape, layout.index, relu)
    return y.view(*size[:-1], layout.rows)


def conv1d(
    x: Tensor,
    values: Tensor,
    layout: Layout,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    activation: str | None = None,
) -> Tensor:
    """1-D cross-correlation; arguments as in :func:`conv2d` with one spatial dimension.

    Args:
        x: ``[N, C, L]`` or ``[C, L]``.
        layout: layout of a weight of shape ``(out, in / groups, kernel)``.
    """
    return _conv(x, values, layout, bias, stride, padding, dilation, groups, padding_mode, activation, spatial=1)


def conv2d(
    x: Tensor,
    values: Tensor,
    layout: Layout,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    activation: str | None = None,
) -> Tensor:
    """2-D cross-correlation ``y[n, o] = b[o] + sum_i W[o, i] * x[n, i]`` over the live weights of W.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]``, any strides; the result is contiguous, but feature-major for such an x,
            and channels_last for such an x over a channels_last layout (see ``ops.strides``).
        values: compact live weights, ``layout.values_shape``.
        layout: layout of a weight of shape ``(out, in / groups, kernel_h, kernel_w)``.
        bias: ``[out]`` or None.
        stride, dilation: an int or one per spatial dimension, at least 1.
        padding: an int, one per spatial dimension, ``"valid"`` (none) or ``"same"`` (output as large as the input;
        stride 1). groups: divides both ``C`` and ``out``. padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"``
        or ``"circular"``.
        activation: ``"relu"`` or None, as in :func:`linear`.

    Raises:
        ArgumentError, ArgumentTypeError: naming the argument that does not fit.
    """
    return _conv(x, values, layout, bias, stride, padding, dilation, groups, padding_mode, activation, spatial=2)


def _conv(
    x: Tensor,
    values: Tensor,
    layout: Layout,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    padding_mode: str,
    activation: str | None,
    *,
    spatial: int,
) -> Tensor:
    x = _checked(x, values, layout, bias, dims=2 + spatial)
    relu = _relu(activation)
    rows, channels, *kernel = layout.shape
    strides = sizes("stride", stride, spatial, 1)
    dilations = sizes("dilation", dilation, spatial, 1)
    if type(groups) is not int or groups < 1 or rows % groups:
        raise ArgumentError(expected("groups", f"a positive int that divides the {rows} output channels", groups))
    if x.dim() not in (1 + spatial, 2 + spatial) or x.shape[-1 - spatial] != channels * groups:
        pixels = "H, W" if spatial == 2 else "L"
        raise ArgumentError(expected("x", f"shape [N, {channels * groups}, {pixels}] or without N", f"{list(x.shape)}"))
    batched = x if x.dim() == 2 + spatial else x.unsqueeze(0)
    batched, symmetric = _pad(batched, padding, padding_mode, kernel, strides, dilations)
    for axis in range(spatial):
        size = batched.shape[2 + axis]
        if conv_output_size(size, kernel[axis], strides[axis], symmetric[axis], dilations[axis]) < 1:
            reach, name = dilations[axis] * (kernel[axis] - 1) + 1, ("height", "width")[axis + 2 - spatial]
            padded = size + 2 * symmetric[axis]
            raise ArgumentError(expected("x", f"a padded {name} of at least {reach}, the kernel's reach", padded))
    if layout.kind == "dense":
        weight = autograd.expand(values, layout.index, layout.shape)
        dense = F.conv2d if spatial == 2 else F.conv1d
        y = dense(batched, weight, bias, strides, symmetric, dilations, groups)
        y = torch.relu(y) if relu else y
    elif spatial == 2:
        y = autograd.conv2d(
            batched, values, bias, layout.kind, layout.shape, layout.index, strides, symmetric, dilations, groups, relu,
            layout.channels_last,
        )  # fmt: skip
    else:  # one row of pixels
        shape = (rows, channels, 1, *kernel)
        y = autograd.conv2d(
            batched.unsqueeze(2), values, bias, layout.kind, shape, layout.index,
            (1, *strides), (0, *symmetric), (1, *dilations), groups, relu, layout.channels_last,
        ).squeeze(2)  # fmt: skip
    return y if x.dim() == 2 + spatial else y.squeeze(0)


def _pad(
    x: Tensor,
    padding: int | Sequence[int] | str,
    padding_mode: str,
    kernel: Sequence[int],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[Tensor, tuple[int, ...]]:
    """Apply what no kernel does (uneven or non-zero padding); return the symmetric zero padding left to them."""
    if padding_mode not in PADDING_MODES:
        raise ArgumentError(
            expected("padding_mode", f"one of {', '.join(map(repr, PADDING_MODES))}", repr(padding_mode))
        )
    if padding == "same" and any(step != 1 for step in strides):
        raise ArgumentError(expected("stride", "1 with padding='same'", strides))
    sides = padding_sides(padding, kernel, dilations)
    if padding_mode == "zeros" and all(before == after for before, after in sides):
        return x, tuple(before for before, _ in sides)
    flat = [size for pair in reversed(sides) for size in pair]
    x = F.pad(x, flat, mode="constant" if padding_mode == "zeros" else padding_mode)
    return x, (0,) * len(kernel)


def padding_sides(
    padding: int | Sequence[int] | str, kernel: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding before and after each spatial dimension; torch puts the odd element of ``"same"`` at the end."""
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ArgumentError(expected("padding", "an int, one int per dimension, 'same' or 'valid'", repr(padding)))
        reach = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilations, strict=True)]
        return [(total // 2, total - total // 2) for total in reach]
    return [(size, size) for size in sizes("padding", padding, len(kernel), 0)]


def sizes(name: str, value: int | Sequence[int], count: int, low: int) -> tuple[int, ...]:
    """``value`` as ``count`` ints of at least ``low``."""
    found = (value,) * count if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(found) == 1:
        found = found * count
    if len(found) != count or not all(isinstance(size, int) and size >= low for size in found):
        raise ArgumentError(expected(name, f"an int or {count} ints of at least {low}", repr(value)))
    return found


def _relu(activation: str | None) -> bool:
    if activation not in (None, "relu"):
        raise ArgumentError(expected("activation", "'relu' or None", repr(activation)))
    return activation is not None


def _checked(x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None, *, dims: int) -> Tensor:
    """Check what all operators share; return ``x``, in the dtype of ``values`` under autocast."""
    if not isinstance(layout, Layout):
        raise ArgumentTypeError(expected("layout", "a lth_sparse.formats.Layout", type(layout).__name__))
    if len(layout.shape) != dims:
        raise ArgumentError(expected("layout", f"one of a {dims}-D weight", f"shape {list(layout.shape)}"))
    if not isinstance(x, Tensor):
        raise ArgumentTypeError(expected("x", "a tensor", type(x).__name__))
    layout.check_values(values)
    dtype, device = values.dtype, values.device
    if x.device != device:
        raise ArgumentError(expected("x", f"device {device} of values", str(x.device)))
    if x.dtype != dtype:
        if not (torch.is_autocast_enabled(x.device.type) and x.dtype.is_floating_point):
            raise ArgumentError(expected("x", f"dtype {dtype} of values", str(x.dtype)))
        x = x.to(dtype)
    if bias is not None and (
        not isinstance(bias, Tensor) or bias.shape != layout.shape[:1] or bias.dtype != dtype or bias.device != device
    ):
        got = f"{bias.dtype} {list(bias.shape)} on {bias.device}" if isinstance(bias, Tensor) else type(bias).__name__
        raise ArgumentError(expected("bias", f"{dtype} [{layout.rows}] on {device}, or None", got))
    return x

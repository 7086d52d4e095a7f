"""Sparse counterparts of ``torch.nn.functional.linear``, ``conv1d`` and ``conv2d``, with the same arguments and shapes,
and ``linear_stack``: many linear layers of one shape at once.

The weight is given as compact ``values`` and a ``Layout``. Pruned weights are skipped in the product and in both
gradients where a kernel exists; elsewhere the plain-torch reference runs (``ops.backend_of`` says which).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats import BSR, Layout, Reordered
from lth_sparse.ops import autograd
from lth_sparse.ops.backend import FORWARD_DTYPES, has_bitmap_kernel
from lth_sparse.ops.library import autocasts
from lth_sparse.ops.permute import permute
from lth_sparse.ops.reference import ACTIVATIONS, activate
from lth_sparse.ops.schemas import conv_output_size
from lth_sparse.ops.strides import batch_major, feature_major

__all__ = ["conv1d", "conv2d", "feature_major", "linear", "linear_stack"]

_autocast_anywhere = torch._C._is_any_autocast_enabled

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
        activation: ``"relu"`` computes ``max(y, 0)`` in the memory of y and as part of its gradient. ``"gelu"``,
            ``"gelu_tanh"`` and ``"silu"`` are computed in the memory of y when no gradient is wanted, and by torch's
            own functions otherwise. Or None.

    Returns:
        ``[*, out]`` in the dtype of ``values``; under autocast in its dtype, to which x, values and bias are cast as by
        ``F.linear``, and gradients have the dtypes of what they are gradients of. Two exceptions: float64 values are
        never cast, x is cast to float64 instead; and on the CPU layouts other than ``"dense"`` compute in the dtype of
        ``values``, to which x is cast, unless autocast is to bfloat16 and no gradient is wanted: their bfloat16 kernels
        are for inference. Values are cast at every call, but hold live weights alone.

    Raises:
        ArgumentError: a shape, dtype or device does not fit.
    """
    x, values, bias = _checked(x, values, layout, bias, dims=2)
    name = "none" if activation is None else _activation(activation)
    size, cols = x.shape, layout.cols
    if not size or size[-1] != cols:
        raise ArgumentError(expected("x", f"shape [*, {cols}]", f"{list(size)}"))
    if layout.kind == "dense":
        if x.is_cuda and _decodes(x, values, layout, bias):
            y = autograd.linear_bitmap(x.reshape(-1, cols), values, bias, layout.shape, layout.index, name)
            return y.view(*size[:-1], layout.rows)
        return activate(F.linear(x, autograd.expand(values, layout.index, layout.shape), bias), name)
    flat = x if len(size) == 2 else x.reshape(-1, cols) if cols else x.reshape(size[:-1].numel(), 0)
    if layout.kind == "reordered":
        flat, bias, kind, index = _inside(flat, bias, layout)
        y = _outside(autograd.linear(flat, values, bias, kind, layout.shape, index, name), layout)
    else:
        y = autograd.linear(flat, values, bias, layout.kind, layout.shape, layout.index, name)
    return y if len(size) == 2 else y.view(*size[:-1], layout.rows)


def _inside(x: Tensor, bias: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor | None, str, tuple[Tensor, ...]]:
    """What the operators of a reordered layout's blocks take: x and bias in its order, kind and index."""
    assert isinstance(layout, Reordered)
    if bias is not None:
        bias = permute(bias.unsqueeze(0), layout.row_order, layout.row_place).squeeze(0)
    return permute(x, layout.col_order, layout.col_place), bias, BSR.kind, layout.index[: len(BSR.INDEX_NAMES)]


def _outside(y: Tensor, layout: Layout) -> Tensor:
    """What they returned, in the order of the layer's outputs."""
    assert isinstance(layout, Reordered)
    return permute(y, layout.row_place, layout.row_order)


def _decodes(x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None) -> bool:
    """Whether the dense layout is multiplied straight from its bitmap: few rows, something pruned, no gradients.

    Not while exporting, where the question would fix the size of the batch, nor under ``torch.func``, whose derivatives
    ``requires_grad`` does not show.
    """
    if not layout.cols or layout.nnz == layout.numel or torch.compiler.is_exporting():
        return False
    if not has_bitmap_kernel(x.device.type, x.dtype, x.numel() // layout.cols):
        return False
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return False
    wanted = (x, values) if bias is None else (x, values, bias)
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in wanted))


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
        activation: ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"`` or None, as in :func:`linear`.

    Dtypes, under autocast too, are those of :func:`linear`.

    Raises:
        ArgumentError, ArgumentTypeError: naming the argument that does not fit.
    """
    return _conv(x, values, layout, bias, stride, padding, dilation, groups, padding_mode, activation, spatial=2)


def linear_stack(
    x: Tensor,
    values: Tensor,
    layout: Layout,
    bias: Tensor | None = None,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """``y[*, b] = x[*, b] W_b^T + c_b`` for B linear layers of one shape, each with a mask and an input of its own.

    One launch instead of B: the layers are the groups of a 1x1 convolution, whose pixels are the samples. Members of
    an ensemble, seeds that are trained at once, experts, heads.

    Args:
        x: ``[*, B, K]``, any strides; ``[B, K]`` and empty batches too.
        values: compact live weights, ``layout.values_shape``.
        layout: layout of ``W = [W_0; W_1; ...]`` of shape ``(B N, K)``. Blocks must not reach over two layers: the rows
            of a block divide N.
        bias: ``[B N]`` or None.
        groups: B.
        activation: as in :func:`linear`.

    Returns:
        ``[*, B, N]``, contiguous.

    Raises:
        ArgumentError, ArgumentTypeError: naming the argument that does not fit.

    Example::

        >>> mask = torch.rand(3 * 8, 16) < 0.1  # three layers of 16 -> 8
        >>> layout = make_layout("csr", mask)
        >>> y = linear_stack(torch.randn(5, 3, 16), torch.randn(layout.nnz), layout, groups=3)
        >>> y.shape
        torch.Size([5, 3, 8])
    """
    x, values, bias = _checked(x, values, layout, bias, dims=2)
    name = "none" if activation is None else _activation(activation)
    check_stack(layout, groups)
    rows, cols = layout.shape
    if x.dim() < 2 or tuple(x.shape[-2:]) != (groups, cols):
        raise ArgumentError(expected("x", f"shape [*, {groups}, {cols}]", f"{list(x.shape)}"))
    if layout.kind == "dense":
        y = dense_linear_stack(x, autograd.expand(values, layout.index, layout.shape), bias, groups)
        return activate(y, name)
    # Samples are images of one pixel: their channels lie side by side, as GPUs want them. CPU kernels want the samples
    # side by side, and there the transpositions that a linear layer makes inside are made here.
    images = x.reshape(x.shape[:-2].numel(), groups * cols, 1, 1)
    on_cpu = x.device.type == "cpu"
    y = autograd.conv2d(
        feature_major(images) if on_cpu else images, values, bias, layout.kind, (rows, cols, 1, 1), layout.index,
        (1, 1), (0, 0), (1, 1), groups, name,
    )  # fmt: skip
    return (batch_major(y) if on_cpu else y).reshape(*x.shape[:-1], rows // groups)


def check_stack(layout: Layout, groups: int) -> None:
    """Raise ``ArgumentError`` unless ``layout`` is one of ``groups`` linear layers of one shape, below each other."""
    rows = layout.rows
    if type(groups) is not int or groups < 1 or rows % groups:
        raise ArgumentError(expected("groups", f"a positive int that divides the {rows} rows of W", groups))
    if isinstance(layout, Reordered):
        raise ArgumentError(expected("layout", "one that keeps the rows of each layer together", repr(layout.kind)))
    if isinstance(layout, BSR) and groups > 1 and rows // groups % layout.block[0]:
        what = f"blocks whose rows divide the {rows // groups} rows of each of the {groups} layers"
        raise ArgumentError(expected("layout", what, f"blocks of {layout.block[0]}x{layout.block[1]}"))


def dense_linear_stack(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """:func:`linear_stack` of a dense weight ``[B N, K]``: one batched product."""
    rows, cols = weight.shape[0] // groups, weight.shape[1]
    layers = x.reshape(x.shape[:-2].numel(), groups, cols).transpose(0, 1)
    weights = weight.view(groups, rows, cols).transpose(1, 2)
    y = layers @ weights if bias is None else torch.baddbmm(bias.view(groups, 1, rows), layers, weights)
    return y.transpose(0, 1).reshape(*x.shape[:-1], rows).contiguous()


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
    x, values, bias = _checked(x, values, layout, bias, dims=2 + spatial)
    name = "none" if activation is None else _activation(activation)
    rows, channels, *kernel = layout.shape
    strides = sizes("stride", stride, spatial, 1)
    dilations = sizes("dilation", dilation, spatial, 1)
    if type(groups) is not int or groups < 1 or rows % groups:
        raise ArgumentError(expected("groups", f"a positive int that divides the {rows} output channels", groups))
    if x.dim() not in (1 + spatial, 2 + spatial) or x.shape[-1 - spatial] != channels * groups:
        pixels = "H, W" if spatial == 2 else "L"
        raise ArgumentError(expected("x", f"shape [N, {channels * groups}, {pixels}] or without N", f"{list(x.shape)}"))
    batched = x if x.dim() == 2 + spatial else x.unsqueeze(0)
    batched, symmetric = pad_input(batched, padding, padding_mode, kernel, strides, dilations)
    for axis in range(spatial):
        size = batched.shape[2 + axis]
        if conv_output_size(size, kernel[axis], strides[axis], symmetric[axis], dilations[axis]) < 1:
            reach, name = dilations[axis] * (kernel[axis] - 1) + 1, ("height", "width")[axis + 2 - spatial]
            padded = size + 2 * symmetric[axis]
            raise ArgumentError(expected("x", f"a padded {name} of at least {reach}, the kernel's reach", padded))
    if layout.kind == "dense":
        weight = autograd.expand(values, layout.index, layout.shape)
        dense = F.conv2d if spatial == 2 else F.conv1d
        y = activate(dense(batched, weight, bias, strides, symmetric, dilations, groups), name)
    else:
        kind, index = layout.kind, layout.index
        if kind == "reordered":
            if groups > 1:
                raise ArgumentError(expected("groups", "1 with a reordered layout, which mixes channels", groups))
            batched, bias, kind, index = _inside(batched, bias, layout)
        if spatial == 2:
            y = autograd.conv2d(
                batched, values, bias, kind, layout.shape, index, strides, symmetric, dilations, groups, name,
                layout.channels_last,
            )  # fmt: skip
        else:  # one row of pixels
            shape = (rows, channels, 1, *kernel)
            y = autograd.conv2d(
                batched.unsqueeze(2), values, bias, kind, shape, index,
                (1, *strides), (0, *symmetric), (1, *dilations), groups, name, layout.channels_last,
            ).squeeze(2)  # fmt: skip
        if layout.kind == "reordered":
            y = _outside(y, layout)
    return y if x.dim() == 2 + spatial else y.squeeze(0)


def pad_input(
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


def _activation(name: str) -> str:
    if name not in ACTIVATIONS[1:]:
        raise ArgumentError(expected("activation", f"None or one of {', '.join(ACTIVATIONS[1:])}", repr(name)))
    return name


def _under_autocast(x: Tensor, values: Tensor, bias: Tensor | None, kind: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Floating tensors in the dtype that autocast wants of a product, see :func:`linear`; as they are outside of it."""
    device = x.device.type
    if not autocasts(device):
        return x, values, bias
    dtype = torch.get_autocast_dtype(device)
    keeps = values.dtype == torch.float64
    if device == "cpu" and kind != "dense":
        keeps = keeps or dtype not in FORWARD_DTYPES or autograd.wants_gradients(x, values, bias)
    if keeps:
        dtype = values.dtype
    x = x.to(dtype) if x.dtype.is_floating_point else x
    return x, values.to(dtype), bias.to(dtype) if isinstance(bias, Tensor) else bias


def _checked(
    x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None, *, dims: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check what all operators share; return the tensors, in one dtype under autocast."""
    if not isinstance(layout, Layout):
        raise ArgumentTypeError(expected("layout", "a lth_sparse.formats.Layout", type(layout).__name__))
    if len(layout.shape) != dims:
        raise ArgumentError(expected("layout", f"one of a {dims}-D weight", f"shape {list(layout.shape)}"))
    if not isinstance(x, Tensor):
        raise ArgumentTypeError(expected("x", "a tensor", type(x).__name__))
    layout.check_values(values)
    if _autocast_anywhere():
        x, values, bias = _under_autocast(x, values, bias, layout.kind)
    dtype, device = values.dtype, values.device
    if x.device != device:
        raise ArgumentError(expected("x", f"device {device} of values", str(x.device)))
    if x.dtype != dtype:
        raise ArgumentError(expected("x", f"dtype {dtype} of values", str(x.dtype)))
    if bias is not None and (
        not isinstance(bias, Tensor) or bias.shape != layout.shape[:1] or bias.dtype != dtype or bias.device != device
    ):
        got = f"{bias.dtype} {list(bias.shape)} on {bias.device}" if isinstance(bias, Tensor) else type(bias).__name__
        raise ArgumentError(expected("bias", f"{dtype} [{layout.rows}] on {device}, or None", got))
    return x, values, bias

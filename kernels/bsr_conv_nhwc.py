"""Block-sparse (BSR) 2-D convolution over the columns of a channels_last weight: the walk along its blocks, and dX.

The weight's matrix view is ``[O, KH KW C / groups]``, and each of its blocks of ``R x Cb`` lies within one tap. So a
step of the product takes, for each pixel of a tile, one contiguous run of channels at the tap's offset, or nothing
where the tap falls into the padding of the image: an NHWC implicit GEMM over stored blocks alone.

* :func:`accumulate` is that walk, for ``bsr_conv.forward`` as for the input gradient. A step of ``BLOCK_K`` positions
  within one block has one tap, and the numbers of block and tap are scalars, loaded a step ahead; with smaller blocks a
  step holds several, each with a tap of its own.
* The input gradient is the convolution of ``dy`` with the weight whose input and output channels are exchanged and
  whose taps are mirrored. The transposed index lists just that weight's blocks: a program owns a tile of input pixels
  and a block of input channels and walks the list of all taps at once. No workspace and no atomics: the same inputs
  give the same bits.
* With a stride s, an input pixel is used by those taps alone that lie a multiple of s away. Pixels are taken by their
  remainder, so that all of a tile have the same taps, and the lists of the others are not walked. Where there are
  groups, too, the list is walked tap by tap: a group's rows are a run of each tap's list.

As in ``bsr_conv``, no device has run this and nothing was timed.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lth_sparse.kernels.conv_tiles import (
    Conv,
    batch_inner,
    check_pixels,
    check_tile,
    load_pixels,
    load_taps,
    pixels_inner,
    pixels_of,
    run_of,
    store_pixels,
    wide,
    within,
)
from lth_sparse.kernels.launch import Tile, cdiv, padded

__all__ = ["accumulate", "input_gradient"]


@triton.jit
def accumulate(  # type: ignore[no-untyped-def]
    acc, start, end, source, values, indices, perm, image, top, left, in_m, n, low, high, base_h, base_w,
    height, width, s_n, s_c, s_h, s_w,
    KERNEL_W: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr, DIVIDE_H: tl.constexpr, DIVIDE_W: tl.constexpr,
    PER_TAP: tl.constexpr, SIDE: tl.constexpr, SIDE_P: tl.constexpr, OUT: tl.constexpr, OUT_P: tl.constexpr,
    VALUE_SIDE: tl.constexpr, VALUE_OUT: tl.constexpr, EVEN: tl.constexpr, PADDED: tl.constexpr, INNER: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``acc[m, n] + sum source[image, channel, top + down, left + right] values[block, i, n]`` over a list's blocks.

    Entry e of the list stands for ``tap = indices[e] // PER_TAP`` and ``channel = indices[e] % PER_TAP * SIDE + i``,
    ``i < SIDE``; its values are block ``perm[e]``, or block e itself. ``down = (base_h + tap // KERNEL_W * STEP_H) /
    DIVIDE_H``, which is whole for every tap of the list. ``EVEN``: all channels are in ``[low, high)``; otherwise only
    those count. ``VALUE_SIDE`` and ``VALUE_OUT`` are the strides of ``values`` along i and n.
    """
    k = tl.arange(0, BLOCK_K)
    pixel = image * s_n + top * s_h + left * s_w
    if WIDE:
        pixel = image.to(tl.int64) * s_n + top.to(tl.int64) * s_h + left.to(tl.int64) * s_w
    if SIDE_P >= BLOCK_K:  # numbers are loaded a step ahead, for the addresses of asynchronous copies wait for them
        next_code = tl.load(indices + start, mask=start < end, other=0)
        next_block = start
        if perm is not None:
            next_block = tl.load(perm + start, mask=start < end, other=0)
    for first in range(0, (end - start) * SIDE_P, BLOCK_K):
        if SIDE_P >= BLOCK_K:
            inside = tl.multiple_of(first % SIDE_P, BLOCK_K) + k
            code = next_code
            block = next_block
            next_block = start + (first + BLOCK_K) // SIDE_P
            more = next_block < end
            next_code = tl.load(indices + next_block, mask=more, other=0)
            if perm is not None:
                next_block = tl.load(perm + next_block, mask=more, other=0)
            stored = inside < SIDE if SIDE != SIDE_P else tl.full((BLOCK_K,), True, tl.int1)
        else:
            entry = start + (first + k) // SIDE_P
            inside = (first + k) % SIDE_P
            stored = entry < end
            code = tl.load(indices + entry, mask=stored, other=0)
            block = entry if perm is None else tl.load(perm + entry, mask=stored, other=0)
            if SIDE != SIDE_P:
                stored = stored & (inside < SIDE)
        tap = code // PER_TAP
        channel = code % PER_TAP * SIDE + inside
        down = (base_h + tap // KERNEL_W * STEP_H) // DIVIDE_H
        right = (base_w + tap % KERNEL_W * STEP_W) // DIVIDE_W
        in_c = stored
        if not EVEN:
            in_c = stored & (channel >= low) & (channel < high)
        if SIDE_P >= BLOCK_K:
            in_image = in_m
            if PADDED:
                in_image = in_m & within(top + down, height) & within(left + right, width)
            if WIDE:
                shift = down.to(tl.int64) * s_h + right.to(tl.int64) * s_w
                step = channel.to(tl.int64) * s_c
            else:
                shift = down * s_h + right * s_w
                step = channel * s_c
            a = load_pixels(source, pixel + shift, step, in_image, in_c, INNER)
        else:
            # Facts that are lost when the load of the index is pipelined.
            if SIDE == SIDE_P:
                channel = tl.max_contiguous(tl.multiple_of(channel, SIDE_P), SIDE_P)
            a = load_taps(
                source, image, top, left, in_m, channel, down, right, in_c, height, width, s_n, s_c, s_h, s_w,
                PADDED, WIDE, INNER, SIDE_P,
            )  # fmt: skip
        w = values + (block * (SIDE * OUT) + inside * VALUE_SIDE)[:, None] + (n * VALUE_OUT)[None, :]
        in_w = stored[:, None] if OUT == OUT_P else stored[:, None] & (n < OUT)[None, :]
        acc = tl.dot(a, tl.load(w, mask=in_w, other=0.0), acc, input_precision=PRECISION)
    return acc


@triton.jit
def input_kernel(  # type: ignore[no-untyped-def]
    grad, values, dx, offsets, indices, perm, pixels, out_size, group_out, group_in, groups, batch,
    height, width, out_h, out_w, grid_h, grid_w, g_n, g_o, g_h, g_w, x_n, x_c, x_h, x_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, R: tl.constexpr, R_P: tl.constexpr, C: tl.constexpr, C_P: tl.constexpr,
    EVEN: tl.constexpr, GROUPED: tl.constexpr,
    BATCH_INNER: tl.constexpr, G_INNER: tl.constexpr, X_INNER: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SEARCH: tl.constexpr,
):  # fmt: skip
    """``dx[m, part C + n] = sum grad[m moved by tap, row R + i] values[block, i, n]`` over all taps' lists of a part.

    Pixels are those ``(i, j)`` with the program's remainders by the strides, ``grid_h x grid_w`` of each image.
    """
    taps: tl.constexpr = KERNEL_H * KERNEL_W
    classes: tl.constexpr = STRIDE_H * STRIDE_W
    part_tiles: tl.constexpr = C_P // BLOCK_N
    # Neighbouring programs share a tile of pixels, which so stays in L2.
    parts = tl.cdiv(group_in, C)
    pid = tl.program_id(0)
    n = pid % part_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    part = pid // part_tiles % parts
    group = pid // (part_tiles * parts) % groups
    tile = pid // (part_tiles * parts) // groups
    remainder = tile % classes
    after_h = remainder // STRIDE_W
    after_w = remainder % STRIDE_W
    m = tile // classes * BLOCK_M + tl.arange(0, BLOCK_M)
    image, row, column = pixels_of(m, batch, grid_h, grid_w, BATCH_INNER)
    i = row * STRIDE_H + after_h
    j = column * STRIDE_W + after_w
    in_m = (m < pixels) & (i < height) & (j < width)
    first_out = group * group_out
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    base_h = after_h + PAD_H
    base_w = after_w + PAD_W
    moved: tl.constexpr = taps > 1 or PAD_H + PAD_W > 0 or classes > 1
    if GROUPED or classes > 1:
        for tap in range(taps):
            start = tl.load(offsets + part * taps + tap)
            end = tl.load(offsets + part * taps + tap + 1)
            whole_h = (base_h - tap // KERNEL_W * DILATION_H) % STRIDE_H == 0
            whole_w = (base_w - tap % KERNEL_W * DILATION_W) % STRIDE_W == 0
            end = tl.where(whole_h & whole_w, end, start)
            if GROUPED:
                first_code = tap * BLOCK_ROWS + first_out // R
                last_code = tap * BLOCK_ROWS + (first_out + group_out - 1) // R
                start, end = run_of(indices, start, end, first_code, last_code, SEARCH)
            acc = accumulate(
                acc, start, end, grad, values, indices, perm, image, row, column, in_m, n,
                first_out, first_out + group_out, base_h, base_w, out_h, out_w, g_n, g_o, g_h, g_w,
                KERNEL_W, -DILATION_H, -DILATION_W, STRIDE_H, STRIDE_W, BLOCK_ROWS, R, R_P, C, C_P, C, 1,
                EVEN, moved, G_INNER, WIDE, PRECISION, BLOCK_K,
            )  # fmt: skip
    else:
        start = tl.load(offsets + part * taps)
        end = tl.load(offsets + part * taps + taps)
        acc = accumulate(
            acc, start, end, grad, values, indices, perm, image, row, column, in_m, n, 0, out_size, base_h, base_w,
            out_h, out_w, g_n, g_o, g_h, g_w,
            KERNEL_W, -DILATION_H, -DILATION_W, 1, 1, BLOCK_ROWS, R, R_P, C, C_P, C, 1,
            EVEN, moved, G_INNER, WIDE, PRECISION, BLOCK_K,
        )  # fmt: skip
    channel = part * C + n
    in_n = (n < C) & (channel < group_in)
    x_m = image.to(tl.int64) * x_n + i.to(tl.int64) * x_h + j.to(tl.int64) * x_w
    store_pixels(dx, acc, x_m, (group.to(tl.int64) * group_in + channel) * x_c, in_m, in_n, X_INNER)


def input_gradient(
    grad: Tensor, values: Tensor, ccol: Tensor, row: Tensor, perm: Tensor, dx: Tensor, conv: Conv, tile: Tile
) -> Tensor:
    """``dx[n, c, i, j] = sum W[o, c, u, v] grad[n, o, (i + p - u d) / s, (j + p - v d) / s]`` where those are whole.

    Args:
        grad: ``[N, O, OH, OW]``, any strides.
        values: ``[nblocks, R, Cb]`` contiguous, of the dtype of ``grad``; 0 wherever an entry is not live.
        ccol, row, perm: the transposed index of a channels_last layout, see :class:`lth_sparse.formats.BSR`: int32
            ``[channel blocks * taps + 1]``, ``[nblocks]``, ``[nblocks]``.
        dx: ``[N, C, H, W]``, any strides: where the result is written.
        conv: kernel, stride, padding, dilation and groups. tile: launch configuration.

    Returns:
        ``dx``.

    Raises:
        ValueError: ``tile.block_n`` does not divide the padded Cb, or there are 2**31 pixels.
    """
    (r, c), (batch, out_size, *out), (_, channels, height, width) = values.shape[1:], grad.shape, dx.shape
    r_p, c_p = padded(r, 1), padded(c)
    check_tile(c_p, tile)
    if not dx.numel():
        return dx
    if not grad.numel():
        return dx.zero_()
    grid_h, grid_w = cdiv(height, conv.stride[0]), cdiv(width, conv.stride[1])
    pixels = batch * grid_h * grid_w
    check_pixels(max(pixels, batch * out[0] * out[1]))
    group_out, group_in, block_rows = out_size // conv.groups, channels // conv.groups, cdiv(out_size, r)
    tiles = cdiv(pixels, tile.block_m) * conv.stride[0] * conv.stride[1]
    grid = (tiles * cdiv(group_in, c) * (c_p // tile.block_n) * conv.groups,)
    input_kernel[grid](
        grad, values, dx, ccol, row, perm, pixels, out_size, group_out, group_in, conv.groups, batch,
        height, width, *out, grid_h, grid_w, *grad.stride(), *dx.stride(), **conv.constants(),
        BLOCK_ROWS=block_rows, R=r, R_P=r_p, C=c, C_P=c_p,
        EVEN=group_out % r == 0, GROUPED=conv.groups > 1,
        BATCH_INNER=batch_inner(dx), G_INNER=pixels_inner(grad), X_INNER=pixels_inner(dx), WIDE=wide(grad),
        PRECISION=tile.precision,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, SEARCH=min(padded(block_rows), 256),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    return dx

"""Block-sparse (BSR) 2-D convolution in Triton, backward: the gradients of the input and of the stored blocks.

Names and geometry are those of ``bsr_conv`` and ``conv_tiles``; T = KH KW is the number of taps.

* Input gradient where columns go by channel (``bsr_conv_nhwc`` has that of the other order), two steps. A block of the
  weight mixes channels and taps in its columns, so the product over stored blocks, ``columns = dy W``, is taken column
  by column at the *output* pixels: exactly the arithmetic of the stored blocks, whatever the width of a block. ``fold``
  then adds, for each input element, the at most T columns that used it, in the order of the taps. In between lies a
  float32 workspace of T numbers for each channel and output pixel; images are taken a few at a time so that it stays
  near ``WORKSPACE`` bytes, about what an L2 cache holds. A 1x1 kernel without padding needs no second step: its columns
  are written into dx itself.
* Weight gradient, for both orders of the weight's columns: a program owns ``block_m`` positions of a block row and runs
  over the pixels, gathering x as the forward does. The first program of a row also sums its tiles of dy, which is the
  gradient of the bias. With few programs the pixels are split: each part writes a float32 workspace, and a second
  kernel adds the parts in order.

No atomics: the same inputs give the same bits. Limits: the workspace is written and read whatever the density, 8 T
bytes for each channel and output pixel, which bounds what sparsity can gain in half precision for layers with few
output channels. As in ``bsr_conv``, no device has run this and nothing was timed.
"""

from __future__ import annotations

import torch
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
    pieces_of,
    pixels_inner,
    pixels_of,
    run_of,
    store_pixels,
    taps_of,
    wide,
)
from lth_sparse.kernels.launch import Tile, cdiv, padded

__all__ = ["input_gradient", "weight_gradient"]

#: Bytes of the columns of an input gradient at one time; one image's columns where those are more.
WORKSPACE = 2**25
#: Elements that one program folds, or adds up.
FOLD_BLOCK, REDUCE_BLOCK = 512, 1024


@triton.jit
def columns_kernel(  # type: ignore[no-untyped-def]
    grad, values, target, offsets, indices, perm, pixels, columns, groups, group_out, batch, out_h, out_w,
    g_n, g_o, g_h, g_w, t_n, t_c, t_h, t_w,
    R: tl.constexpr, R_P: tl.constexpr, C: tl.constexpr, C_P: tl.constexpr, GROUPED: tl.constexpr,
    BATCH_INNER: tl.constexpr, G_INNER: tl.constexpr, T_INNER: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SEARCH: tl.constexpr,
):  # fmt: skip
    """``target[m, group columns + column C + n] = sum grad[m, row R + i] values[block, i, n]`` over a column's blocks.

    Of those blocks, only the rows of one group count.
    """
    column_tiles: tl.constexpr = C_P // BLOCK_N
    tiles = tl.cdiv(columns, C) * column_tiles
    pid = tl.program_id(0)
    tile = pid % tiles
    group = pid // tiles % groups
    block_column = tile // column_tiles
    n = (tile % column_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = (pid // tiles // groups) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = m < pixels
    image, row, column = pixels_of(m, batch, out_h, out_w, BATCH_INNER)
    if WIDE:
        g_m = image.to(tl.int64) * g_n + row.to(tl.int64) * g_h + column.to(tl.int64) * g_w
    else:
        g_m = image * g_n + row * g_h + column * g_w
    start = tl.load(offsets + block_column)
    end = tl.load(offsets + block_column + 1)
    first_out = group * group_out
    if GROUPED:  # block rows ascend: those with rows of the group are one run of the list
        start, end = run_of(indices, start, end, first_out // R, (first_out + group_out - 1) // R, SEARCH)
    positions = (end - start) * R_P
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, positions, BLOCK_K):
        position = first + tl.arange(0, BLOCK_K)
        entry = start + position // R_P
        inside = position % R_P
        stored = position < positions
        out = tl.load(indices + entry, mask=stored, other=0) * R + inside
        block = tl.load(perm + entry, mask=stored, other=0)
        if R != R_P:
            stored = stored & (inside < R)
        else:  # a fact that is lost when the load of the index is pipelined
            run: tl.constexpr = R_P if R_P < BLOCK_K else BLOCK_K
            out = tl.max_contiguous(tl.multiple_of(out, run), run)
        # Rows of other groups in a block that reaches over several, and rows beyond the matrix.
        in_g = stored & (out >= first_out) & (out < first_out + group_out)
        g_out = out.to(tl.int64) * g_o if WIDE else out * g_o
        a = load_pixels(grad, g_m, g_out, in_m, in_g, G_INNER)
        w = values + (block * (R * C) + inside * C)[:, None] + n[None, :]
        in_w = stored[:, None] if C == C_P else stored[:, None] & (n < C)[None, :]
        acc = tl.dot(a, tl.load(w, mask=in_w, other=0.0), acc, input_precision=PRECISION)
    k = block_column * C + n
    in_k = (n < C) & (k < columns)
    t_m = image.to(tl.int64) * t_n + row.to(tl.int64) * t_h + column.to(tl.int64) * t_w
    store_pixels(target, acc, t_m, (group.to(tl.int64) * columns + k) * t_c, in_m, in_k, T_INNER)


@triton.jit
def fold_kernel(  # type: ignore[no-untyped-def]
    source, dx, size, batch, channels, height, width, out_h, out_w, s_n, s_c, s_h, s_w, x_n, x_c, x_h, x_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    BATCH_INNER: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``dx[n, c, i, j] = sum_{u, v} source[n, c T + u KW + v, (i + p - u d) / s, (j + p - v d) / s]`` where those are
    whole and inside."""
    first = tl.program_id(0).to(tl.int64) * BLOCK if WIDE else tl.program_id(0) * BLOCK
    e = first + tl.arange(0, BLOCK)
    live = e < size
    if BATCH_INNER:
        image = e % batch
        rest = e // batch
        channel = rest // width // height
    else:
        image = e // width // height // channels
        rest = e
        channel = e // width // height % channels
    i = rest // width % height
    j = rest % width
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for tap in range(KERNEL_H * KERNEL_W):
        down = i + PAD_H - tap // KERNEL_W * DILATION_H
        right = j + PAD_W - tap % KERNEL_W * DILATION_W
        row = down // STRIDE_H
        column = right // STRIDE_W
        used = live & (down >= 0) & (right >= 0) & (row < out_h) & (column < out_w)
        used = used & (row * STRIDE_H == down) & (column * STRIDE_W == right)
        where = image * s_n + (channel * (KERNEL_H * KERNEL_W) + tap) * s_c + row * s_h + column * s_w
        acc += tl.load(source + where, mask=used, other=0.0)
    tl.store(dx + (image * x_n + channel * x_c + i * x_h + j * x_w), acc.to(dx.dtype.element_ty), mask=live)


@triton.jit
def weight_kernel(  # type: ignore[no-untyped-def]
    grad, x, value_mask, target, bias, offsets, indices, pixels, rows, out_size, columns, group_out, group_in, groups,
    batch, height, width, out_h, out_w, split_size, target_split, g_n, g_o, g_h, g_w, x_n, x_c, x_h, x_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    PER_TAP: tl.constexpr, R: tl.constexpr, R_P: tl.constexpr, C: tl.constexpr, C_P: tl.constexpr,
    PIECES: tl.constexpr, BATCH_INNER: tl.constexpr, G_INNER: tl.constexpr, X_INNER: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SEARCH: tl.constexpr,
):  # fmt: skip
    """``target[block, n, i] = sum_m grad[m, row R + n] x[m, column C + i]`` for ``BLOCK_M`` positions of a block row.

    Programs find their row as in ``bsr_linear``: row r owns those from ``crow[r] C_P // BLOCK_M + r`` on. The first of
    them also writes ``bias[row R + n] = sum_m grad[m, row R + n]``. ``target`` and ``bias`` are the results themselves,
    or part ``split`` of the float32 workspace. ``PER_TAP`` as in the forward.
    """
    pid = tl.program_id(0)
    below = tl.zeros((SEARCH,), dtype=tl.int32)
    for first in range(0, rows, SEARCH):
        candidate = first + tl.arange(0, SEARCH)
        owned = tl.load(offsets + candidate, mask=candidate < rows, other=0) * C_P // BLOCK_M + candidate
        below += ((owned <= pid) & (candidate < rows)).to(tl.int32)
    block_row = tl.sum(below, axis=0) - 1
    start = tl.load(offsets + block_row)
    positions = (tl.load(offsets + block_row + 1) - start) * C_P
    first_position = (pid - (start * C_P // BLOCK_M + block_row)) * BLOCK_M
    # The first program of a row without blocks is there for the bias.
    if first_position >= (positions if bias is None else tl.maximum(positions, 1)):
        return
    position = first_position + tl.arange(0, BLOCK_M)
    block = start + position // C_P
    inside = position % C_P
    live = (position < positions) & (inside < C)
    block_column = tl.load(indices + block, mask=position < positions, other=0)
    if PER_TAP > 0:
        tap = block_column // PER_TAP
        channel = block_column % PER_TAP * C + inside
        down = tap // KERNEL_W * DILATION_H
        right = tap % KERNEL_W * DILATION_W
        in_k = live & (channel < group_in)
    else:
        k = block_column * C + inside
        channel, down, right = taps_of(k, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W)
        in_k = live & (k < columns)
    n = tl.program_id(1) // PIECES * BLOCK_N + tl.arange(0, BLOCK_N)
    out = block_row * R + n
    in_n = (n < R) & (out < out_size)
    group = (block_row * R) // group_out + tl.program_id(1) % PIECES
    written = live[:, None] & (n < R)[None, :]
    if PIECES > 1:  # rows beyond the matrix go with the last group
        if group >= groups:
            return
        mine = tl.minimum(out // group_out, groups - 1) == group
        in_n = in_n & mine
        written = written & mine[None, :]
    x += group.to(tl.int64) * group_in * x_c
    run: tl.constexpr = 1 if PER_TAP == 0 else (C_P if C_P < BLOCK_M else BLOCK_M)
    split = tl.program_id(2)
    first_pixel = split * split_size
    last_pixel = tl.minimum(first_pixel + split_size, pixels)
    g_out = out.to(tl.int64) * g_o if WIDE else out * g_o
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    sums = tl.zeros((BLOCK_K, BLOCK_N), dtype=tl.float32)
    for first in range(first_pixel, last_pixel, BLOCK_K):
        m = first + tl.arange(0, BLOCK_K)
        in_m = m < pixels
        image, row, column = pixels_of(m, batch, out_h, out_w, BATCH_INNER)
        a = load_taps(
            x, image, row * STRIDE_H - PAD_H, column * STRIDE_W - PAD_W, in_m, channel, down, right, in_k,
            height, width, x_n, x_c, x_h, x_w, PAD_H + PAD_W > 0, WIDE, X_INNER, run,
        )  # fmt: skip
        if WIDE:
            g_m = image.to(tl.int64) * g_n + row.to(tl.int64) * g_h + column.to(tl.int64) * g_w
        else:
            g_m = image * g_n + row * g_h + column * g_w
        g = load_pixels(grad, g_m, g_out, in_m, in_n, G_INNER)
        acc = tl.dot(tl.trans(a), g, acc, input_precision=PRECISION)
        if bias is not None:  # noqa: SIM102  # what is known when compiling stands by itself
            if first_position == 0:
                sums += g.to(tl.float32)
    if bias is not None:  # noqa: SIM102
        if first_position == 0:
            total = tl.sum(sums, axis=0).to(bias.dtype.element_ty)
            tl.store(bias + (split.to(tl.int64) * target_split + out), total, mask=in_n)
    where = (block * (R * C) + inside)[:, None] + (n * C)[None, :]
    if value_mask is not None:
        acc = tl.where(tl.load(value_mask + where, mask=written, other=0) != 0, acc, 0.0)
    target += split.to(tl.int64) * target_split
    tl.store(target + where, acc.to(target.dtype.element_ty), mask=written)


@triton.jit
def reduce_kernel(parts, total, bias, size, both, splits, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """``total[i] = sum_s parts[s, i]`` in the order of s for ``i < size``; likewise the bias from there to ``both``."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    part = parts
    for _ in range(splits):
        acc += tl.load(part + i, mask=i < both, other=0.0)
        part += both
    tl.store(total + i, acc.to(total.dtype.element_ty), mask=i < size)
    if bias is not None:
        tl.store(bias + (i - size), acc.to(bias.dtype.element_ty), mask=(i >= size) & (i < both))


def _columns(
    grad: Tensor, values: Tensor, index: tuple[Tensor, Tensor, Tensor], target: Tensor, conv: Conv, tile: Tile
) -> None:
    """Write ``dy W`` at the output pixels into ``target`` ``[N, groups K, OH, OW]``."""
    (r, c), (batch, rows, *out) = values.shape[1:], grad.shape
    r_p, c_p = padded(r, 1), padded(c)
    columns, pixels = target.shape[1] // conv.groups, batch * out[0] * out[1]
    grid = (cdiv(pixels, tile.block_m) * cdiv(columns, c) * (c_p // tile.block_n) * conv.groups,)
    columns_kernel[grid](
        grad, values, target, *index, pixels, columns, conv.groups, rows // conv.groups, batch, *out,
        *grad.stride(), *target.stride(), R=r, R_P=r_p, C=c, C_P=c_p, GROUPED=conv.groups > 1,
        BATCH_INNER=batch_inner(target), G_INNER=pixels_inner(grad), T_INNER=pixels_inner(target), WIDE=wide(grad),
        PRECISION=tile.precision,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, SEARCH=min(padded(cdiv(rows, r)), 256),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
    )  # fmt: skip


def input_gradient(
    grad: Tensor, values: Tensor, ccol: Tensor, row: Tensor, perm: Tensor, dx: Tensor, conv: Conv, tile: Tile
) -> Tensor:
    """``dx[n, c, i, j] = sum W[o, c, u, v] grad[n, o, (i + p - u d) / s, (j + p - v d) / s]``.

    Args:
        grad: ``[N, O, OH, OW]``, any strides.
        values: as in :func:`lth_sparse.kernels.bsr_conv.forward`.
        ccol, row, perm: the transposed index: int32 ``[block_cols + 1]``, ``[nblocks]``, ``[nblocks]``.
        dx: ``[N, C, H, W]``, any strides: where the result is written.
        conv, tile: as in the forward.

    Returns:
        ``dx``.

    Raises:
        ValueError: ``tile.block_n`` does not divide the padded Cb, or there are 2**31 output pixels.
    """
    check_tile(padded(values.shape[2]), tile)
    if not dx.numel():
        return dx
    batch, _, *out = grad.shape
    channels, height, width = dx.shape[1:]
    index = (ccol, row, perm)
    check_pixels(batch * out[0] * out[1])
    if not grad.numel():
        return dx.zero_()
    if conv.taps == 1 and conv.padding == (0, 0):
        if conv.stride != (1, 1):
            dx.zero_()
        _columns(grad, values, index, dx[:, :, :: conv.stride[0], :: conv.stride[1]], conv, tile)
        return dx
    inner, size = batch_inner(dx), (channels * conv.taps, *out)
    images = min(batch, max(1, WORKSPACE // (4 * channels * conv.taps * out[0] * out[1])))
    buffer = grad.new_empty((*size, images) if inner else (images, *size), dtype=torch.float32)
    for first in range(0, batch, images):
        some, here = grad[first : first + images], dx[first : first + images]
        columns = (buffer.movedim(-1, 0) if inner else buffer)[: len(some)]
        _columns(some, values, index, columns, conv, tile)
        fold_kernel[(cdiv(here.numel(), FOLD_BLOCK),)](
            columns, here, here.numel(), len(some), channels, height, width, *out, *columns.stride(), *here.stride(),
            **conv.constants(), BATCH_INNER=inner, WIDE=wide(columns) or wide(here), BLOCK=FOLD_BLOCK,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return dx


def weight_gradient(
    grad: Tensor,
    x: Tensor,
    block: tuple[int, int],
    value_mask: Tensor | None,
    crow: Tensor,
    col: Tensor,
    conv: Conv,
    tile: Tile,
    splits: int,
    channels_last: bool = False,
    bias: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``dvalues[b] = dW`` at every stored block, ``dW[o, k] = sum_m grad[m, o] x[m, k]`` over gathered columns of x,
    and ``dbias[o] = sum_m grad[m, o]``, from the same loads.

    Args:
        grad: ``[N, O, OH, OW]``, any strides.
        x: ``[N, C, H, W]``, any strides, of the dtype of ``grad``.
        block: ``(R, Cb)``.
        value_mask: bool ``[nblocks, R, Cb]``, or None where every entry is live; entries that are not get 0.
        crow, col, conv, tile: as in the forward.
        splits: parts into which the pixels are cut, at least 1.
        channels_last: as in the forward.
        bias: whether the gradient of the bias is wanted.

    Returns:
        ``[nblocks, R, Cb]`` and ``[O]`` or None, of the dtype of ``grad``.

    Raises:
        ValueError: ``tile.block_n`` does not divide the padded R, or there are 2**31 output pixels.
    """
    (r, c), nblocks, (batch, rows, *out) = block, col.shape[0], grad.shape
    r_p, c_p = padded(r), padded(c, 1)
    check_tile(r_p, tile)
    dvalues, dbias = grad.new_empty(nblocks, r, c), grad.new_empty(rows) if bias else None
    if not nblocks and not (bias and rows):
        return dvalues, dbias
    channels, height, width = x.shape[1:]
    pixels = batch * out[0] * out[1]
    check_pixels(pixels)
    group_out, group_in = rows // conv.groups, channels // conv.groups
    pieces = pieces_of(r, group_out, conv.groups)
    flags = None if value_mask is None else value_mask.view(torch.uint8)
    split_size = cdiv(cdiv(pixels, tile.block_k), splits) * tile.block_k
    size, both = dvalues.numel(), dvalues.numel() + (rows if bias else 0)
    parts = grad.new_empty(splits, both, dtype=torch.float32) if splits > 1 else None
    targets = (dvalues, dbias) if parts is None else (parts, parts[0, size:] if bias else None)
    block_rows = crow.shape[0] - 1
    # The product takes x with columns before pixels: where Triton sees that columns are aligned runs, as they lie.
    in_place = (channels_last or conv.taps == 1) and x.stride(1) == 1 and group_in % 16 == 0
    grid = (nblocks * c_p // tile.block_m + block_rows, r_p // tile.block_n * pieces, splits)
    weight_kernel[grid](
        grad, x, flags, *targets, crow, col, pixels, block_rows, rows, group_in * conv.taps, group_out, group_in,
        conv.groups, batch, height, width, *out, split_size, both, *grad.stride(), *x.stride(),
        **conv.constants(), PER_TAP=cdiv(group_in, c) if channels_last else 0, R=r, R_P=r_p, C=c, C_P=c_p,
        PIECES=pieces,
        BATCH_INNER=batch_inner(x), G_INNER=pixels_inner(grad), X_INNER=in_place or pixels_inner(x),
        WIDE=wide(x) or wide(grad), PRECISION=tile.precision,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, SEARCH=min(padded(block_rows), 1024),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    if parts is not None:
        reduce_kernel[(cdiv(both, REDUCE_BLOCK),)](
            parts, dvalues, dbias, size, both, splits, BLOCK=REDUCE_BLOCK, num_warps=4, enable_fp_fusion=True
        )
    return dvalues, dbias

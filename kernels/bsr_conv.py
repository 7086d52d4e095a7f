"""Block-sparse (BSR) 2-D convolution in Triton, forward: an implicit GEMM that reads, multiplies and waits for stored
blocks alone.

The weight ``[O, C / groups, KH, KW]`` is its matrix view ``[O, K]``, ``K = C / groups * KH * KW``, in blocks of ``R x
Cb``. Column k stands for channel ``k // (KH KW)`` and tap ``k % (KH KW)``. A program owns a tile of output pixels and
one block row; for the columns of the row's stored blocks it gathers ``x[n, channel, row, column]`` into a tile
``[pixels, columns]`` (zero in the padding of the image) and multiplies it with the values. Unfolded activations are
never stored.

Any size, stride, padding, dilation, number of groups, and any strides of the tensors. Pixels lie on the rows of the
accumulator, as tokens do in ``bsr_linear``: images follow each other, or, where the batch is contiguous in memory,
the images of one pixel do. A block row that reaches over several groups has a program for each of them. Accumulation is
float32 in every dtype, and float32 is multiplied as three TF32 products unless the user allows one.

Limits: a column is an address of its own, so only a 1x1 kernel over channels_last activations reads columns in wide
loads; otherwise neighbouring *pixels* are what is contiguous. A block row over g groups multiplies g times as much:
depthwise convolutions gain nothing. The gradients are in ``bsr_conv_backward``. All of it is proven by Triton's
interpreter and by compilation ahead of time; it has run on no device, and nothing was timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from lth_sparse.kernels.launch import Tile, cdiv, padded

__all__ = ["Conv", "forward", "load_taps", "pixels_of", "taps_of"]

INT32_END = 2**31


@dataclass(frozen=True)
class Conv:
    """What a convolution is, besides its weight: two numbers each along height and width, and the groups."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def taps(self) -> int:
        """KH KW: columns of the weight's matrix view for each input channel."""
        return self.kernel[0] * self.kernel[1]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        high, wide = height + 2 * self.padding[0] - reach[0], width + 2 * self.padding[1] - reach[1]
        return high // self.stride[0] + 1, wide // self.stride[1] + 1

    def constants(self) -> dict[str, Any]:
        """The constants of the kernels that gather taps."""
        names = ("KERNEL", "STRIDE", "PAD", "DILATION")
        pairs = zip(names, (self.kernel, self.stride, self.padding, self.dilation), strict=True)
        return {f"{name}_{axis}": size for name, pair in pairs for axis, size in zip("HW", pair, strict=True)}


@triton.jit
def pixels_of(m, batch, out_h, out_w, BATCH_INNER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Image, row and column of the flat pixels ``m``: of ``[n, h, w]``, or of ``[h, w, n]`` if ``BATCH_INNER``."""
    if BATCH_INNER:
        image = m % batch
        pixel = m // batch
    else:
        image = m // (out_h * out_w)
        pixel = m % (out_h * out_w)
    return image, pixel // out_w, pixel % out_w


@triton.jit
def taps_of(  # type: ignore[no-untyped-def]
    column, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr
):
    """Channel of a column of the weight, and how far below and right of a window's corner its tap lies."""
    if KERNEL_H * KERNEL_W == 1:
        channel = column
        down = column * 0
        right = column * 0
    else:
        tap = column % (KERNEL_H * KERNEL_W)
        channel = column // (KERNEL_H * KERNEL_W)
        down = tap // KERNEL_W * DILATION_H
        right = tap % KERNEL_W * DILATION_W
    return channel, down, right


@triton.jit
def load_taps(  # type: ignore[no-untyped-def]
    x, image, top, left, in_pixels, channel, down, right, in_columns, height, width, x_n, x_c, x_h, x_w,
    PADDED: tl.constexpr, WIDE: tl.constexpr, PIXELS_INNER: tl.constexpr,
):  # fmt: skip
    """``x[image, channel, top + down, left + right]`` as a tile ``[pixels, columns]``, 0 outside the image."""
    if WIDE:
        pixel = image.to(tl.int64) * x_n + top.to(tl.int64) * x_h + left.to(tl.int64) * x_w
        step = channel.to(tl.int64) * x_c + down.to(tl.int64) * x_h + right.to(tl.int64) * x_w
    else:
        pixel = image * x_n + top * x_h + left * x_w
        step = channel * x_c + down * x_h + right * x_w
    if PIXELS_INNER:
        inside = in_columns[:, None] & in_pixels[None, :]
        if PADDED:
            row = down[:, None] + top[None, :]
            column = right[:, None] + left[None, :]
            inside = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        tile = tl.trans(tl.load(x + (step[:, None] + pixel[None, :]), mask=inside, other=0.0))
    else:
        inside = in_pixels[:, None] & in_columns[None, :]
        if PADDED:
            row = top[:, None] + down[None, :]
            column = left[:, None] + right[None, :]
            inside = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        tile = tl.load(x + (pixel[:, None] + step[None, :]), mask=inside, other=0.0)
    return tile


@triton.jit
def load_pixels(source, pixel, channel, in_pixels, in_channels, PIXELS_INNER: tl.constexpr):  # type: ignore[no-untyped-def]
    """``source[pixel + channel]`` as a tile ``[pixels, channels]``, 0 where either is outside.

    ``PIXELS_INNER``, here as elsewhere, is :func:`pixels_inner`: neighbouring threads take the last axis of a tile
    unless Triton finds runs in memory along another, so that axis is made what memory has side by side.
    """
    if PIXELS_INNER:
        inside = in_channels[:, None] & in_pixels[None, :]
        tile = tl.trans(tl.load(source + (channel[:, None] + pixel[None, :]), mask=inside, other=0.0))
    else:
        inside = in_pixels[:, None] & in_channels[None, :]
        tile = tl.load(source + (pixel[:, None] + channel[None, :]), mask=inside, other=0.0)
    return tile


@triton.jit
def store_pixels(target, tile, pixel, channel, in_pixels, in_channels, PIXELS_INNER: tl.constexpr):  # type: ignore[no-untyped-def]
    """``target[pixel + channel] = tile[pixels, channels]``, rounded to the dtype of ``target``."""
    tile = tile.to(target.dtype.element_ty)
    if PIXELS_INNER:
        inside = in_channels[:, None] & in_pixels[None, :]
        tl.store(target + (channel[:, None] + pixel[None, :]), tl.trans(tile), mask=inside)
    else:
        inside = in_pixels[:, None] & in_channels[None, :]
        tl.store(target + (pixel[:, None] + channel[None, :]), tile, mask=inside)


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    x, values, bias, y, offsets, indices, pixels, columns, out_size, group_out, group_in, batch,
    height, width, out_h, out_w, x_n, x_c, x_h, x_w, y_n, y_o, y_h, y_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    R: tl.constexpr, R_P: tl.constexpr, C: tl.constexpr, C_P: tl.constexpr, EVEN: tl.constexpr, PIECES: tl.constexpr,
    BATCH_INNER: tl.constexpr, X_INNER: tl.constexpr, Y_INNER: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``y[m, row R + n] = bias[row R + n] + sum x[m, column C + i] values[block, n, i]`` over a block row's blocks.

    ``PIECES``: programs of a block row, one for each group that its output channels belong to. ``EVEN``: C divides the
    columns. ``WIDE``: offsets into x exceed int32.
    """
    # Neighbouring programs share a tile of pixels, which so stays in L2, and go through the rows of the weight.
    row_tiles: tl.constexpr = R_P // BLOCK_N * PIECES
    rows = tl.cdiv(out_size, R) * row_tiles
    pid = tl.program_id(0)
    row = (pid % rows) // row_tiles
    group = (row * R) // group_out + pid % PIECES
    n = (pid % row_tiles) // PIECES * BLOCK_N + tl.arange(0, BLOCK_N)
    out = row * R + n
    in_out = (n < R) & (out < out_size)
    if PIECES > 1:
        if group * group_out >= tl.minimum(row * R + R, out_size):
            return
        in_out = in_out & (out // group_out == group)
    m = (pid // rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = m < pixels
    image, out_row, out_column = pixels_of(m, batch, out_h, out_w, BATCH_INNER)
    top = out_row * STRIDE_H - PAD_H
    left = out_column * STRIDE_W - PAD_W
    x += group.to(tl.int64) * group_in * x_c
    start = tl.load(offsets + row)
    positions = (tl.load(offsets + row + 1) - start) * C_P
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, positions, BLOCK_K):
        position = first + tl.arange(0, BLOCK_K)
        entry = start + position // C_P
        inside = position % C_P
        stored = position < positions
        column = tl.load(indices + entry, mask=stored, other=0) * C + inside
        if C != C_P:
            stored = stored & (inside < C)
        else:  # a fact that is lost when the load of the index is pipelined
            run: tl.constexpr = C_P if C_P < BLOCK_K else BLOCK_K
            column = tl.max_contiguous(tl.multiple_of(column, run), run)
        in_x = stored if EVEN else stored & (column < columns)
        channel, down, right = taps_of(column, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W)
        a = load_taps(
            x, image, top, left, in_m, channel, down, right, in_x, height, width, x_n, x_c, x_h, x_w,
            PAD_H + PAD_W > 0, WIDE, X_INNER,
        )  # fmt: skip
        w = values + (entry * (R * C) + inside)[:, None] + (n * C)[None, :]
        in_w = stored[:, None] if R == R_P else stored[:, None] & (n < R)[None, :]
        acc = tl.dot(a, tl.load(w, mask=in_w, other=0.0), acc, input_precision=PRECISION)
    if bias is not None:
        acc += tl.load(bias + out, mask=in_out, other=0.0).to(tl.float32)[None, :]
    y_m = image.to(tl.int64) * y_n + out_row.to(tl.int64) * y_h + out_column.to(tl.int64) * y_w
    store_pixels(y, acc, y_m, out.to(tl.int64) * y_o, in_m, in_out, Y_INNER)


def wide(tensor: Tensor) -> bool:
    """Whether an offset into ``tensor`` needs more than 31 bits, padding around its images included."""
    return 2 * sum(size * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) >= INT32_END


def batch_inner(tensor: Tensor) -> bool:
    """Whether the images of one pixel, and not its neighbours, lie side by side in memory."""
    return tensor.shape[0] > 1 and tensor.stride(0) == 1 and tensor.stride(3) != 1


def pixels_inner(tensor: Tensor) -> bool:
    """Whether pixels, and not channels, lie side by side in memory, and Triton cannot tell.

    It can where images of one pixel do in aligned runs of 16; told so again it would transpose, and lose wide copies.
    """
    if batch_inner(tensor):
        return tensor.shape[0] % 16 != 0
    return tensor.stride(3) == 1 and tensor.stride(1) != 1


def pieces_of(r: int, group_out: int, groups: int) -> int:
    """The most groups that the ``r`` output channels of one block row can belong to."""
    return 1 if group_out % r == 0 else min(groups, cdiv(r - 1, group_out) + 1)


def check_tile(side: int, tile: Tile) -> None:
    """Raise unless tiles of ``block_n`` columns make up a block's padded ``side``."""
    if side % tile.block_n:
        raise ValueError(f"block_n: expected a divisor of {side}, got {tile.block_n}")


def check_pixels(pixels: int) -> None:
    """Raise where a pixel's number exceeds int32."""
    if pixels + 1024 >= INT32_END:
        raise ValueError(f"x: expected fewer than 2**31 output pixels in all images, got {pixels}; split the batch")


def forward(
    x: Tensor, values: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor, y: Tensor, conv: Conv, tile: Tile
) -> Tensor:
    """``y[n, o, i, j] = b[o] + sum_{c, u, v} W[o, c, u, v] x[n, g C / groups + c, i s - p + u d, j s - p + v d]``.

    Args:
        x: ``[N, C, H, W]``, float16, bfloat16 or float32, any strides.
        values: ``[nblocks, R, Cb]`` contiguous, of the dtype of x; 0 wherever an entry is not live.
        bias: ``[O]`` contiguous, or None.
        crow, col: int32 ``[block_rows + 1]`` and ``[nblocks]``.
        y: ``[N, O, OH, OW]``, any strides: where the result is written.
        conv: kernel, stride, padding, dilation and groups.
        tile: launch configuration.

    Returns:
        ``y``.

    Raises:
        ValueError: ``tile.block_n`` does not divide the padded R, or there are 2**31 output pixels.
    """
    (r, c), (batch, rows, *out), (_, channels, height, width) = values.shape[1:], y.shape, x.shape
    r_p, c_p = padded(r), padded(c, 1)
    check_tile(r_p, tile)
    pixels = batch * out[0] * out[1]
    check_pixels(pixels)
    if not y.numel():
        return y
    group_out, group_in = rows // conv.groups, channels // conv.groups
    pieces = pieces_of(r, group_out, conv.groups)
    columns = group_in * conv.taps
    grid = (cdiv(pixels, tile.block_m) * cdiv(rows, r) * (r_p // tile.block_n) * pieces,)
    forward_kernel[grid](
        x, values, bias, y, crow, col, pixels, columns, rows, group_out, group_in, batch,
        height, width, *out, *x.stride(), *y.stride(), **conv.constants(),
        R=r, R_P=r_p, C=c, C_P=c_p, EVEN=columns % c == 0, PIECES=pieces,
        BATCH_INNER=batch_inner(x), X_INNER=pixels_inner(x), Y_INNER=pixels_inner(y), WIDE=wide(x),
        PRECISION=tile.precision,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    return y

"""What the block-sparse convolutions share: their geometry, and how tiles of pixels and channels are loaded and stored.

A tile has pixels on its rows, of all images in one line: images follow each other, or, where the batch is contiguous in
memory, the images of one pixel do. Any stride, padding and dilation, and any strides of the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from lth_sparse.kernels.launch import Tile, cdiv

__all__ = ["Conv", "batch_inner", "check_pixels", "check_tile", "load_pixels", "load_taps", "pieces_of", "pixels_inner",
           "pixels_of", "run_of", "store_pixels", "taps_of", "wide", "within"]  # fmt: skip

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
def within(i, size):  # type: ignore[no-untyped-def]
    """``0 <= i < size`` in one comparison: a negative number is a large one without its sign."""
    return i.to(tl.uint32, bitcast=True) < size


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
    PADDED: tl.constexpr, WIDE: tl.constexpr, PIXELS_INNER: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """``x[image, channel, top + down, left + right]`` as a tile ``[pixels, columns]``, 0 outside the image.

    ``RUN``: so many columns at a time have one ``down`` and one ``right``. Triton is told so at operations that it
    cannot fold away, and the hint with them.
    """
    if WIDE:
        pixel = image.to(tl.int64) * x_n + top.to(tl.int64) * x_h + left.to(tl.int64) * x_w
        below = down.to(tl.int64) * x_h
        beside = right.to(tl.int64) * x_w
        step = channel.to(tl.int64) * x_c
    else:
        pixel = image * x_n + top * x_h + left * x_w
        below = down * x_h
        beside = right * x_w
        step = channel * x_c
    up = 0 - down
    back = 0 - right
    if RUN > 1:
        below = tl.max_constancy(below, RUN)
        beside = tl.max_constancy(beside, RUN)
        up = tl.max_constancy(up, RUN)
        back = tl.max_constancy(back, RUN)
    step = step + below + beside
    if PIXELS_INNER:
        inside = in_columns[:, None] & in_pixels[None, :]
        if PADDED:
            row = top[None, :] - up[:, None]
            column = left[None, :] - back[:, None]
            inside = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        tile = tl.trans(tl.load(x + (step[:, None] + pixel[None, :]), mask=inside, other=0.0))
    else:
        inside = in_pixels[:, None] & in_columns[None, :]
        if PADDED:
            row = top[:, None] - up[None, :]
            column = left[:, None] - back[None, :]
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
def run_of(indices, start, end, low, high, SEARCH: tl.constexpr):  # type: ignore[no-untyped-def]
    """First and past-last position in ``[start, end)``, where ``indices`` ascend, of those in ``[low, high]``."""
    before = tl.zeros((SEARCH,), dtype=tl.int32)
    upto = tl.zeros((SEARCH,), dtype=tl.int32)
    for first in range(start, end, SEARCH):
        i = first + tl.arange(0, SEARCH)
        index = tl.load(indices + i, mask=i < end, other=0)
        before += ((i < end) & (index < low)).to(tl.int32)
        upto += ((i < end) & (index <= high)).to(tl.int32)
    return start + tl.sum(before, axis=0), start + tl.sum(upto, axis=0)


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

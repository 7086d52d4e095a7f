"""Block-sparse (BSR) 2-D convolution in Triton, forward: an implicit GEMM that reads, multiplies and waits for stored
blocks alone.

The weight ``[O, C / groups, KH, KW]`` is its matrix view ``[O, K]``, ``K = C / groups * KH * KW``, in blocks of ``R x
Cb``. A program owns a tile of output pixels and one block row; for the columns of the row's stored blocks it loads
``x[n, channel, row, column]`` into a tile ``[pixels, columns]`` (zero in the padding of the image) and multiplies it
with the values. Unfolded activations are never stored. The columns have one of two orders:

* of a contiguous weight: column k stands for channel ``k // (KH KW)`` and tap ``k % (KH KW)``, and is an address of its
  own. Only a 1x1 kernel over channels_last activations reads columns in wide loads; otherwise neighbouring *pixels* are
  what is contiguous.
* of a channels_last weight: a block is a run of channels of one tap, so a tile of channels_last activations is a
  contiguous run for each pixel, and one comparison with the image's edge holds for all of it (``bsr_conv_nhwc``).

Any size, stride, padding, dilation, number of groups, and any strides of the tensors. Pixels lie on the rows of the
accumulator, as tokens do in ``bsr_linear``. A block row that reaches over several groups has a program for each of
them. Accumulation is float32 in every dtype, and float32 is multiplied as three TF32 products unless the user allows
one.

Limits: a block row over g groups multiplies g times as much: depthwise convolutions gain nothing. The gradients are in
``bsr_conv_backward`` and ``bsr_conv_nhwc``. All of it is proven by Triton's interpreter and by compilation ahead of
time; it has run on no device, and nothing was timed.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lth_sparse.kernels.bsr_conv_nhwc import accumulate
from lth_sparse.kernels.conv_tiles import (
    Conv,
    batch_inner,
    check_pixels,
    check_tile,
    load_taps,
    pieces_of,
    pixels_inner,
    pixels_of,
    store_pixels,
    taps_of,
    wide,
)
from lth_sparse.kernels.epilogue import activate
from lth_sparse.kernels.launch import Tile, cdiv, padded

__all__ = ["Conv", "forward"]


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    x, values, bias, y, offsets, indices, pixels, columns, out_size, group_out, group_in, batch,
    height, width, out_h, out_w, x_n, x_c, x_h, x_w, y_n, y_o, y_h, y_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    PER_TAP: tl.constexpr, R: tl.constexpr, R_P: tl.constexpr, C: tl.constexpr, C_P: tl.constexpr,
    EVEN: tl.constexpr, PIECES: tl.constexpr, ACTIVATION: tl.constexpr,
    BATCH_INNER: tl.constexpr, X_INNER: tl.constexpr, Y_INNER: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``y[m, row R + n] = bias[row R + n] + sum x[m, column C + i] values[block, n, i]`` over a block row's blocks.

    ``PIECES``: programs of a block row, one for each group that its output channels belong to. ``PER_TAP``: block
    columns of a tap in a channels_last weight, else 0. ``EVEN``: C divides the columns, or those of a tap. ``WIDE``:
    offsets into x exceed int32.
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
    end = tl.load(offsets + row + 1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if PER_TAP > 0:
        acc = accumulate(
            acc, start, end, x, values, indices, None, image, top, left, in_m, n, 0, group_in, 0, 0,
            height, width, x_n, x_c, x_h, x_w, KERNEL_W, DILATION_H, DILATION_W, 1, 1, PER_TAP, C, C_P, R, R_P, 1, C,
            EVEN, PAD_H + PAD_W > 0, X_INNER, WIDE, PRECISION, BLOCK_K,
        )  # fmt: skip
    else:
        positions = (end - start) * C_P
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
                PAD_H + PAD_W > 0, WIDE, X_INNER, 1,
            )  # fmt: skip
            w = values + (entry * (R * C) + inside)[:, None] + (n * C)[None, :]
            in_w = stored[:, None] if R == R_P else stored[:, None] & (n < R)[None, :]
            acc = tl.dot(a, tl.load(w, mask=in_w, other=0.0), acc, input_precision=PRECISION)
    if bias is not None:
        acc += tl.load(bias + out, mask=in_out, other=0.0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION)
    y_m = image.to(tl.int64) * y_n + out_row.to(tl.int64) * y_h + out_column.to(tl.int64) * y_w
    store_pixels(y, acc, y_m, out.to(tl.int64) * y_o, in_m, in_out, Y_INNER)


def forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    y: Tensor,
    conv: Conv,
    tile: Tile,
    activation: str = "none",
    channels_last: bool = False,
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
        activation: applied to the result before it is rounded; one of ``epilogue.ACTIVATIONS``.
        channels_last: order of the weight's columns, see :class:`lth_sparse.formats.BSR`.

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
    per_tap, axis = (cdiv(group_in, c), group_in) if channels_last else (0, columns)
    grid = (cdiv(pixels, tile.block_m) * cdiv(rows, r) * (r_p // tile.block_n) * pieces,)
    forward_kernel[grid](
        x, values, bias, y, crow, col, pixels, columns, rows, group_out, group_in, batch,
        height, width, *out, *x.stride(), *y.stride(), **conv.constants(),
        PER_TAP=per_tap, R=r, R_P=r_p, C=c, C_P=c_p, EVEN=axis % c == 0, PIECES=pieces, ACTIVATION=activation,
        BATCH_INNER=batch_inner(x), X_INNER=pixels_inner(x), Y_INNER=pixels_inner(y), WIDE=wide(x),
        PRECISION=tile.precision,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    return y

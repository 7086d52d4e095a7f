"""``y = x W^T + b`` for a handful of tokens, from compact values and a bitmap, in Triton: the products of decoding.

With few tokens the time is that of reading the weight, so what is read must be small: one bit for each weight, pruned
or not, beside the live values in row-major order (the ``Dense`` layout: ``bits``, and ``rank``, the count of set bits
before every 4096th). At a density of .5 and 16-bit values that is 9/16 of the dense weight, at .1 it is 1/6; int32
column indices would be 3/2 and 3/10 of it.

A program owns ``BLOCK_N`` rows and, with ``splits``, a part of the columns. Its threads take words of 32 bits apart:
the weight of bit j lies ``popcount(bits below j)`` behind the first of the word, so no thread waits for another, and
neighbouring threads read neighbouring values. The tile is multiplied in place: on CUDA cores for one token, by
``tl.dot`` for up to 16 at a time. Only the first value of each row needs a search: the rank of its chunk plus the set
bits from there on. Rows need not begin at a whole word (``ALIGNED``). Sums are float32; the parts of a row are added in
order by a second kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from lth_sparse.kernels.epilogue import activate
from lth_sparse.kernels.launch import cdiv
from lth_sparse.kernels.launch_csr import Bitmap

__all__ = ["forward"]

#: Elements that one program of the last sum writes.
FINISH_BLOCK = 256


@triton.jit
def popcount(w):  # type: ignore[no-untyped-def]
    """Set bits of every uint32 as int32, in the form that LLVM knows as one instruction."""
    w = w - ((w >> 1) & 0x55555555)
    w = (w & 0x33333333) + ((w >> 2) & 0x33333333)
    w = (w + (w >> 4)) & 0x0F0F0F0F
    return ((w * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def lowest(count):  # type: ignore[no-untyped-def]
    """uint32 with the lowest ``count`` bits set, int32 of any sign: none below 1, all from 32 on."""
    some = tl.minimum(tl.maximum(count, 0), 31).to(tl.uint32)
    one = tl.full((), 1, tl.uint32)
    return tl.where(count >= 32, 0xFFFFFFFF, (one << some) - 1).to(tl.uint32)


@triton.jit
def first_values(words, rank, at, word_count):  # type: ignore[no-untyped-def]
    """Live weights before weight ``at``: the rank of its chunk of 4096 and the set bits of the chunk before it."""
    chunk = at // 4096
    before = at % 4096
    found = tl.load(rank + chunk)
    lane = tl.arange(0, 32)
    for step in tl.static_range(4):
        word = step * 32 + lane[None, :]
        left = before[:, None] - word * 32
        here = chunk[:, None] * 128 + word
        w = tl.load(words + here, mask=(left > 0) & (here < word_count), other=0)
        found += tl.sum(popcount(w & lowest(left)), axis=1)
    return found


@triton.jit
def bitmap_kernel(  # type: ignore[no-untyped-def]
    x, values, bias, y, words, rank, m_size, n_size, k_size, word_count, split_size, y_split, x_m, x_k, y_m, y_n,
    ALIGNED: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``y[m, n] = activation(bias[n] + sum_k x[m, k] W[n, k])``, or that sum over part ``split`` of the columns.

    ``ALIGNED``: 32 divides the number of columns, so that every row begins with a word.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = n < n_size
    split = tl.program_id(1)
    first_k = split * split_size
    last_k = tl.minimum(first_k + split_size, k_size)
    lane = tl.arange(0, 32)
    below = lowest(lane)[None, :]
    row = tl.where(in_n, n, 0) * k_size
    base = first_values(words, rank, row + tl.minimum(first_k, k_size), word_count)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = m < m_size
    x += tl.program_id(2).to(tl.int64) * BLOCK_M * x_m
    width: tl.constexpr = 32 if BLOCK_M == 1 else BLOCK_M
    acc = tl.zeros((BLOCK_N, width), dtype=tl.float32)
    for k0 in range(first_k, last_k, 32 * UNROLL):
        for step in tl.static_range(UNROLL):
            k = k0 + step * 32
            at = (row + k) // 32
            w = tl.load(words + at, mask=in_n & (k < last_k), other=0)
            if not ALIGNED:
                shift = ((row + k) % 32).to(tl.uint32)
                more = (k < last_k) & (at + 1 < word_count)
                high = tl.load(words + at + 1, mask=in_n & more, other=0)
                w = ((w >> shift) | ((high << 1) << (31 - shift))) & lowest(last_k - k)
            live = ((w[:, None] >> lane.to(tl.uint32)[None, :]) & 1) != 0
            where = base[:, None] + popcount(w[:, None] & below)
            weight = tl.load(values + where, mask=live, other=0.0)
            base += popcount(w)
            feature = k + lane
            # of whole words all or nothing is inside: a mask that leaves vectors of x whole
            in_k = tl.full((32,), 1, tl.int1) & (k < last_k) if ALIGNED else feature < last_k
            features = feature.to(tl.int64) * x_k
            if BLOCK_M == 1:
                a = tl.load(x + features, mask=in_k, other=0.0)
                acc += weight.to(tl.float32) * a.to(tl.float32)[None, :]
            else:
                tile = x + (features[:, None] + (tl.arange(0, BLOCK_M).to(tl.int64) * x_m)[None, :])
                a = tl.load(tile, mask=in_k[:, None] & in_m[None, :], other=0.0)
                acc = tl.dot(weight, a, acc, input_precision=PRECISION)
    total = tl.sum(acc, axis=1)[:, None] if BLOCK_M == 1 else acc
    if bias is not None:
        total += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)[:, None]
    total = activate(total, ACTIVATION)
    y += split.to(tl.int64) * y_split
    y_tile = y + (n.to(tl.int64)[:, None] * y_n + m.to(tl.int64)[None, :] * y_m)
    tl.store(y_tile, total.to(y.dtype.element_ty), mask=in_n[:, None] & in_m[None, :])


@triton.jit
def finish_kernel(  # type: ignore[no-untyped-def]
    parts, bias, y, n_size, splits, parts_split, y_m, y_n, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):
    """``y[m, n] = activation(bias[n] + sum_s parts[s, m, n])`` in the order of s."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = tl.program_id(1).to(tl.int64)
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    part = parts + m * n_size
    for _ in range(splits):
        acc += tl.load(part + n, mask=n < n_size, other=0.0)
        part += parts_split
    if bias is not None:
        acc += tl.load(bias + n, mask=n < n_size, other=0.0).to(tl.float32)
    y += m * y_m + n.to(tl.int64) * y_n
    tl.store(y, activate(acc, ACTIVATION).to(y.dtype.element_ty), mask=n < n_size)


def words_of(bits: Tensor) -> Tensor:
    """The bitmap as uint32; a copy where its bytes fill no whole words, or begin at none."""
    if bits.shape[0] % 4 or bits.data_ptr() % 4:
        bits = F.pad(bits, (0, -bits.shape[0] % 4))
    return bits.view(torch.uint32)


def forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    bits: Tensor,
    rank: Tensor,
    y: Tensor,
    tile: Bitmap,
    precision: str,
    activation: str = "none",
) -> Tensor:
    """``y = activation(x W^T + b)``, written to and returned as ``y``.

    Args:
        x: ``[M, K]``, float16, bfloat16 or float32, any strides; meant for M <= 16.
        values: ``[nnz]`` contiguous, of the dtype of x.
        bias: ``[N]`` contiguous or None.
        bits, rank: index of the ``Dense`` layout of W ``[N, K]``, contiguous.
        y: ``[M, N]``, of the dtype of x, any strides.
        tile: launch configuration.
        precision: ``tl.dot``'s ``input_precision``, of meaning for float32 alone.
        activation: a name of ``epilogue.ACTIVATIONS``, applied before rounding.
    """
    (m_size, n_size), k_size = y.shape, x.shape[1]
    if not y.numel():
        return y
    words = words_of(bits)
    step = 32 * tile.unroll
    split_size = cdiv(cdiv(k_size, step), tile.splits) * step
    alone = tile.splits == 1
    target = y if alone else x.new_empty(tile.splits, m_size, n_size, dtype=torch.float32)
    strides = y.stride() if alone else target.stride()[1:]
    grid = (cdiv(n_size, tile.block_n), tile.splits, cdiv(m_size, tile.block_m))
    bitmap_kernel[grid](
        x, values, bias if alone else None, target, words, rank, m_size, n_size, k_size, words.shape[0],
        split_size, m_size * n_size, *x.stride(), *strides,
        ALIGNED=k_size % 32 == 0, ACTIVATION=activation if alone else "none", PRECISION=precision,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, UNROLL=tile.unroll,
        num_warps=tile.num_warps, enable_fp_fusion=True,
    )  # fmt: skip
    if not alone:
        finish_kernel[(cdiv(n_size, FINISH_BLOCK), m_size)](
            target, bias, y, n_size, tile.splits, m_size * n_size, *y.stride(),
            ACTIVATION=activation, BLOCK=FINISH_BLOCK, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return y

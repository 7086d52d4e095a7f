"""Unstructured (CSR) linear products in Triton: ``y = x W^T + b``, ``dx = dy W`` and ``dW = dy^T x`` at live weights.

A live weight is used for one feature of x and every token, so tokens are the contiguous axis: all three products read
``x^T`` ``[K, M]``. Feature-major tensors are that already; contiguous ones are rearranged first, 2 M K elements
against the M elements that every live weight reads (:func:`tokens_inside`), into rows padded for aligned vectors.

* ``gather``: ``y`` and ``dx`` are one kernel. A program owns ``ROWS`` rows of W (of W^T for ``dx``, through the
  transposed index; values are read through ``perm``) and ``BLOCK_M`` tokens. ``LANES`` entries of each row advance
  side by side, each in partial sums of its own that are added at the end: a row much longer than others is shared by
  several warps, and with few tokens a whole warp reads the entries of one row. ``UNROLL`` such steps have all their
  loads under way at once. Neighbouring programs have the same tokens and near columns, and meet in the cache.
* ``scatter``: a program owns ``ENTRIES`` entries of a row at a time and runs over the tokens; the row of ``dy`` is
  loaded once for all of them. With few programs the tokens are split as in ``bsr_linear``: parts in float32, added in
  order by a second kernel.

All arithmetic is float32 on CUDA cores, in an order that sizes alone decide: the same inputs give the same bits.
Indices are int32 or uint16. Any size works, and a row without entries still writes its bias.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lth_sparse.kernels.bsr_linear import REDUCE_BLOCK, reduce_kernel
from lth_sparse.kernels.epilogue import activate
from lth_sparse.kernels.launch import cdiv
from lth_sparse.kernels.launch_csr import Gather, Scatter

__all__ = ["forward", "input_gradient", "tokens_inside", "tokens_outside", "weight_gradient"]

INT32_END = 2**31
#: Side of the square that the rearrangement moves at a time, and what it pads rows of tokens to: vectors of 16 bytes
#: in every dtype, whatever the number of tokens.
COPY_SIDE, ALIGNED = 64, 16


@triton.jit
def copy_kernel(  # type: ignore[no-untyped-def]
    source, target, source_rows, source_cols, target_rows, target_cols, s_r, s_c, t_r, t_c, SIDE: tl.constexpr
):
    """``target[i, j] = source[i, j]``, 0 beyond the source, whatever the strides: tiles turn over in shared memory."""
    tiles = tl.cdiv(target_cols, SIDE)
    row = (tl.program_id(0) // tiles) * SIDE + tl.arange(0, SIDE)
    col = (tl.program_id(0) % tiles) * SIDE + tl.arange(0, SIDE)
    row, col = row[:, None], col[None, :]
    where = source + (row.to(tl.int64) * s_r + col.to(tl.int64) * s_c)
    tile = tl.load(where, mask=(row < source_rows) & (col < source_cols), other=0.0)
    where = target + (row.to(tl.int64) * t_r + col.to(tl.int64) * t_c)
    tl.store(where, tile, mask=(row < target_rows) & (col < target_cols))


@triton.jit
def gather_kernel(  # type: ignore[no-untyped-def]
    x, values, bias, y, offsets, indices, perm, m_size, out_size, x_m, x_k, y_m, y_n,
    WIDE: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """``y[m, n] = activation(bias[n] + sum x[m, index] value)`` over the entries of row n.

    ``WIDE``: offsets into x exceed int32.
    """
    row_tiles = tl.cdiv(out_size, ROWS)
    first_row = (tl.program_id(0) % row_tiles) * ROWS
    m = (tl.program_id(0) // row_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = (m < m_size)[None, :]
    x_tokens = (m.to(tl.int64) * x_m if WIDE else m * x_m)[None, :]
    place = tl.arange(0, ROWS * LANES)
    row = first_row + place // LANES
    start = tl.load(offsets + row, mask=row < out_size, other=0)
    end = tl.load(offsets + row + 1, mask=row < out_size, other=0)
    longest = tl.max(end - start, axis=0)
    begin = start + place % LANES
    acc = tl.zeros((ROWS * LANES, BLOCK_M), dtype=tl.float32)
    for first in range(0, longest, LANES * UNROLL):
        for step in tl.static_range(UNROLL):
            entry = begin + (first + step * LANES)
            stored = entry < end
            feature = tl.load(indices + entry, mask=stored, other=0).to(tl.int32)
            where = entry if perm is None else tl.load(perm + entry, mask=stored, other=0)
            value = tl.load(values + where, mask=stored, other=0.0).to(tl.float32)
            x_rows = feature.to(tl.int64) * x_k if WIDE else feature * x_k
            a = tl.load(x + (x_rows[:, None] + x_tokens), mask=stored[:, None] & in_m, other=0.0)
            acc += value[:, None] * a.to(tl.float32)
    total = tl.sum(tl.reshape(acc, (ROWS, LANES, BLOCK_M)), axis=1)
    n = first_row + tl.arange(0, ROWS)
    in_n = n < out_size
    if bias is not None:
        total += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)[:, None]
    total = activate(total, ACTIVATION)
    y_tile = y + ((n.to(tl.int64) * y_n)[:, None] + (m.to(tl.int64) * y_m)[None, :])
    tl.store(y_tile, total.to(y.dtype.element_ty), mask=in_n[:, None] & in_m)


@triton.jit
def scatter_kernel(  # type: ignore[no-untyped-def]
    grad, x, target, offsets, indices, m_size, pieces, split_size, target_split, grad_m, grad_n, x_m, x_k,
    WIDE: tl.constexpr, ENTRIES: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """``target[e] = sum_m grad[m, row] x[m, index e]`` for the entries of a row, every ``pieces``-th group of them.

    ``target`` is ``dvalues`` itself, or part ``split`` of the float32 workspace.
    """
    row = tl.program_id(0) // pieces
    piece = tl.program_id(0) % pieces
    split = tl.program_id(1)
    start = tl.load(offsets + row)
    end = tl.load(offsets + row + 1)
    token = tl.arange(0, BLOCK_M)
    wide = tl.full((), 0, tl.int64)
    grad += (wide + row) * grad_n
    target += (wide + split) * target_split
    first_token = split * split_size
    last_token = tl.minimum(first_token + split_size, m_size)
    for first in range(start + piece * ENTRIES, end, pieces * ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        stored = entry < end
        feature = tl.load(indices + entry, mask=stored, other=0).to(tl.int32)
        x_rows = (feature.to(tl.int64) * x_k if WIDE else feature * x_k)[:, None]
        acc = tl.zeros((ENTRIES, BLOCK_M), dtype=tl.float32)
        for m0 in range(first_token, last_token, BLOCK_M):
            m = m0 + token
            in_m = m < m_size
            offset = m.to(tl.int64) if WIDE else m
            g = tl.load(grad + offset * grad_m, mask=in_m, other=0.0).to(tl.float32)
            a = tl.load(x + (x_rows + (offset * x_m)[None, :]), mask=stored[:, None] & in_m[None, :], other=0.0)
            acc += g[None, :] * a.to(tl.float32)
        tl.store(target + entry, tl.sum(acc, axis=1).to(target.dtype.element_ty), mask=stored)


def _copied(source: Tensor, target: Tensor) -> None:
    """Launch :func:`copy_kernel` between two matrices."""
    if not target.numel():
        return
    rows, cols = target.shape
    grid = (cdiv(rows, COPY_SIDE) * cdiv(cols, COPY_SIDE),)
    copy_kernel[grid](
        source, target, *source.shape, rows, cols, *source.stride(), *target.stride(), SIDE=COPY_SIDE, num_warps=8
    )


def tokens_inside(x: Tensor) -> Tensor:
    """``x`` ``[M, K]`` with its tokens contiguous: itself where they are, else a copy with zeros up to a padded M.

    The kernels may read the padding as tokens: their results for it are dropped by :func:`tokens_outside`.
    """
    m_size, k_size = x.shape
    if m_size <= 1 or x.stride(0) == 1:
        return x
    inside = x.new_empty(k_size, cdiv(m_size, ALIGNED) * ALIGNED)
    _copied(x.t(), inside)
    return inside.t()


def tokens_outside(y: Tensor, m_size: int) -> Tensor:
    """The first ``m_size`` rows of ``y``, contiguous: the way back."""
    outside = y.new_empty(m_size, y.shape[1])
    _copied(y[:m_size], outside)
    return outside


def _wide(tensor: Tensor) -> bool:
    """Whether an offset into ``tensor``, counted from its first element, may need more than 31 bits."""
    return (tensor.shape[0] + 4096) * tensor.stride(0) + tensor.shape[1] * tensor.stride(1) >= INT32_END


def _gather(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    indices: Tensor,
    perm: Tensor | None,
    y: Tensor,
    tile: Gather,
    activation: str,
) -> Tensor:
    """Launch :func:`gather_kernel` over W, or over W^T, into ``y`` ``[M, size]`` of any strides."""
    m_size, size = y.shape
    if y.numel():
        gather_kernel[(cdiv(m_size, tile.block_m) * cdiv(size, tile.rows),)](
            x, values, bias, y, offsets, indices, perm, m_size, size, *x.stride(), *y.stride(),
            WIDE=_wide(x), ACTIVATION=activation, ROWS=tile.rows, LANES=tile.lanes, UNROLL=tile.unroll,
            BLOCK_M=tile.block_m, num_warps=tile.num_warps, enable_fp_fusion=True,
        )  # fmt: skip
    return y


def forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    y: Tensor,
    tile: Gather,
    activation: str = "none",
) -> Tensor:
    """``y = activation(x W^T + b)``, written to and returned as ``y``.

    Args:
        x: ``[M, K]``, float16, bfloat16 or float32, any strides; fast where the tokens are contiguous, or few.
        values: ``[nnz]`` contiguous, of the dtype of x.
        bias: ``[N]`` contiguous or None.
        crow, col: int32 ``[N + 1]``; int32 or uint16 ``[nnz]``.
        y: ``[M, N]``, of the dtype of x, any strides.
        tile: launch configuration.
        activation: a name of ``epilogue.ACTIVATIONS``, applied before rounding.
    """
    return _gather(x, values, bias, crow, col, None, y, tile, activation)


def input_gradient(
    grad: Tensor, values: Tensor, ccol: Tensor, row: Tensor, perm: Tensor, dx: Tensor, tile: Gather
) -> Tensor:
    """``dx = dy W``: ``grad`` ``[M, N]`` -> ``dx`` ``[M, K]``, which is written and returned.

    Args:
        ccol, row, perm: the transposed index: int32 ``[K + 1]``, int32 or uint16 ``[nnz]``, int32 ``[nnz]``.
        The others as in :func:`forward`.
    """
    return _gather(grad, values, None, ccol, row, perm, dx, tile, "none")


def weight_gradient(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, tile: Scatter) -> Tensor:
    """``dvalues[e] = sum_m grad[m, row of e] x[m, column of e]`` for every live weight.

    Args:
        grad: ``[M, N]``, any strides; fast where the tokens are contiguous.
        x: ``[M, K]``, any strides, of the dtype of ``grad``.
        crow, col: as in :func:`forward`.
        tile: launch configuration; ``splits`` is the number of parts into which it cuts the tokens.

    Returns:
        ``[nnz]`` of the dtype of ``grad``.
    """
    # either may have been padded by tokens_inside
    m_size = min(grad.shape[0], x.shape[0])
    nnz, rows, splits = col.shape[0], crow.shape[0] - 1, tile.splits
    dvalues = grad.new_empty(nnz)
    if not nnz:
        return dvalues
    split_size = cdiv(cdiv(m_size, tile.block_m), splits) * tile.block_m
    parts = grad.new_empty(splits, nnz, dtype=torch.float32) if splits > 1 else dvalues
    scatter_kernel[(rows * tile.pieces, splits)](
        grad, x, parts, crow, col, m_size, tile.pieces, split_size, nnz, *grad.stride(), *x.stride(),
        WIDE=_wide(x) or _wide(grad), ENTRIES=tile.entries, BLOCK_M=tile.block_m,
        num_warps=tile.num_warps, enable_fp_fusion=True,
    )  # fmt: skip
    if splits > 1:
        reduce_kernel[(cdiv(nnz, REDUCE_BLOCK),)](
            parts, dvalues, nnz, splits, BLOCK=REDUCE_BLOCK, num_warps=4, enable_fp_fusion=True
        )
    return dvalues

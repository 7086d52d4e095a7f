"""Block-sparse (BSR) linear products in Triton: ``y = x W^T + b``, ``dx = dy W`` and ``dW = dy^T x`` at live blocks.

W is ``[N, K]`` in blocks of ``R x C``; only stored blocks are read, multiplied and written. Tokens lie on the rows of
every accumulator of the first two products, so that ``tl.dot`` can use the widest instruction of the device whatever
the block is (a block of 16 rows as the *left* operand would never reach a Hopper ``wgmma``).

* ``gather``: ``y`` and ``dx`` are one kernel. A program owns one tile of tokens and one block row of W (of W^T for
  ``dx``, through the transposed index lists; values never move). It walks the row's stored columns as one flat axis of
  positions, ``block_k`` at a time, so a step takes several small blocks or a part of a large one alike.
* ``scatter``: a program owns one block row and ``block_m`` positions of it: it loads the columns of ``dy`` once for
  all of them and runs over the tokens. With few programs the tokens are split: each part writes a float32 workspace,
  and a second kernel adds the parts in order. No atomics: the same inputs give the same bits.

Accumulation is float32 in every dtype. Sizes need not divide anything: block sides are padded to powers of two in
registers, edges are masked, and a block row without blocks still writes its bias. Strides of x and of the gradient
are free, so feature-major tensors need no copy.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lth_sparse.kernels.launch import Tile, cdiv, padded

__all__ = ["forward", "input_gradient", "weight_gradient", "weight_gradient_programs"]

INT32_END = 2**31
#: Elements that one program of the reduction adds up.
REDUCE_BLOCK = 1024


@triton.jit
def gather_kernel(  # type: ignore[no-untyped-def]
    x, values, bias, y, offsets, indices, perm, m_size, red_size, out_size, x_m, x_red, y_m, y_out,
    OUT: tl.constexpr, OUT_P: tl.constexpr, RED: tl.constexpr, RED_P: tl.constexpr,
    VALUE_OUT: tl.constexpr, VALUE_RED: tl.constexpr, EVEN_RED: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``y[m, row OUT + n] = bias[row OUT + n] + sum x[m, index RED + i] values[block, n, i]`` over a row's blocks.

    ``OUT`` and ``RED`` are the sides of a block along the output and the summed axis, ``_P`` padded to powers of two;
    ``VALUE_OUT`` and ``VALUE_RED`` are the strides of ``values`` along them. ``WIDE``: offsets into x exceed int32.
    """
    # Neighbouring programs share a tile of tokens, which so stays in L2, and go through the rows of W.
    row_tiles: tl.constexpr = OUT_P // BLOCK_N
    rows = tl.cdiv(out_size, OUT) * row_tiles
    pid = tl.program_id(0)
    first_m = (pid // rows) * BLOCK_M
    row = (pid % rows) // row_tiles
    n = (pid % row_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    in_m = first_m + m < m_size
    start = tl.load(offsets + row)
    positions = (tl.load(offsets + row + 1) - start) * RED_P
    x += first_m.to(tl.int64) * x_m
    x_rows = m.to(tl.int64) * x_m if WIDE else m * x_m
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, positions, BLOCK_K):
        position = first + tl.arange(0, BLOCK_K)
        entry = start + position // RED_P
        inside = position % RED_P
        stored = position < positions
        column = tl.load(indices + entry, mask=stored, other=0) * RED + inside
        block = entry if perm is None else tl.load(perm + entry, mask=stored, other=0)
        if RED != RED_P:
            stored = stored & (inside < RED)
        else:  # Triton 3.4 forgets it when it pipelines the load of the index, and then copies single elements
            run: tl.constexpr = RED_P if RED_P < BLOCK_K else BLOCK_K
            column = tl.max_contiguous(tl.multiple_of(column, run), run)
        in_x = stored if EVEN_RED else stored & (column < red_size)
        x_columns = column.to(tl.int64) * x_red if WIDE else column * x_red
        a = tl.load(x + x_rows[:, None] + x_columns[None, :], mask=in_m[:, None] & in_x[None, :], other=0.0)
        w = values + (block * (OUT * RED) + inside * VALUE_RED)[:, None] + (n * VALUE_OUT)[None, :]
        in_w = stored[:, None] if OUT == OUT_P else stored[:, None] & (n < OUT)[None, :]
        acc = tl.dot(a, tl.load(w, mask=in_w, other=0.0), acc, input_precision=PRECISION)
    out = row * OUT + n
    in_out = (n < OUT) & (out < out_size)
    if bias is not None:
        acc += tl.load(bias + out, mask=in_out, other=0.0).to(tl.float32)[None, :]
    y += first_m.to(tl.int64) * y_m
    y_tile = y + (m.to(tl.int64) * y_m)[:, None] + (out.to(tl.int64) * y_out)[None, :]
    tl.store(y_tile, acc.to(y.dtype.element_ty), mask=in_m[:, None] & in_out[None, :])


@triton.jit
def scatter_kernel(  # type: ignore[no-untyped-def]
    grad, x, value_mask, target, offsets, indices, m_size, rows, n_size, k_size, split_size, target_split,
    grad_m, grad_n, x_m, x_k,
    R: tl.constexpr, R_P: tl.constexpr, C: tl.constexpr, C_P: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SEARCH: tl.constexpr,
):  # fmt: skip
    """``target[block, n, i] = sum_m grad[m, row R + n] x[m, column C + i]`` for ``BLOCK_M`` positions of a block row.

    Row r owns the programs from ``crow[r] C_P // BLOCK_M + r`` on, at least one and enough for its positions, so the
    grid's size follows from shapes alone: no list of work, no wait for the device. What a row has too many ends here.
    ``target`` is ``dvalues`` itself, or part ``split`` of the float32 workspace.
    """
    pid = tl.program_id(0)
    below = tl.zeros((SEARCH,), dtype=tl.int32)
    for first in range(0, rows, SEARCH):
        candidate = first + tl.arange(0, SEARCH)
        owned = tl.load(offsets + candidate, mask=candidate < rows, other=0) * C_P // BLOCK_M + candidate
        below += ((owned <= pid) & (candidate < rows)).to(tl.int32)
    row = tl.sum(below, axis=0) - 1
    start = tl.load(offsets + row)
    positions = (tl.load(offsets + row + 1) - start) * C_P
    first_position = (pid - (start * C_P // BLOCK_M + row)) * BLOCK_M
    if first_position >= positions:
        return
    position = first_position + tl.arange(0, BLOCK_M)
    block = start + position // C_P
    inside = position % C_P
    live = (position < positions) & (inside < C)
    column = tl.load(indices + block, mask=position < positions, other=0) * C + inside
    in_x = live & (column < k_size)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    out = row * R + n
    in_n = (n < R) & (out < n_size)
    split = tl.program_id(2)
    token = tl.arange(0, BLOCK_K)
    if WIDE:
        x_tile = (column.to(tl.int64) * x_k)[:, None] + (token.to(tl.int64) * x_m)[None, :]
        grad_tile = (token.to(tl.int64) * grad_m)[:, None] + (out.to(tl.int64) * grad_n)[None, :]
    else:
        x_tile = (column * x_k)[:, None] + (token * x_m)[None, :]
        grad_tile = (token * grad_m)[:, None] + (out * grad_n)[None, :]
    first_token = split * split_size
    last_token = tl.minimum(first_token + split_size, m_size)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(first_token, last_token, BLOCK_K):
        in_m = first + token < m_size
        wide = tl.full((), 0, tl.int64) + first
        a = tl.load(x + wide * x_m + x_tile, mask=in_x[:, None] & in_m[None, :], other=0.0)
        g = tl.load(grad + wide * grad_m + grad_tile, mask=in_m[:, None] & in_n[None, :], other=0.0)
        acc = tl.dot(a, g, acc, input_precision=PRECISION)
    where = (block * (R * C) + inside)[:, None] + (n * C)[None, :]
    written = live[:, None] & (n < R)[None, :]
    if value_mask is not None:
        acc = tl.where(tl.load(value_mask + where, mask=written, other=0) != 0, acc, 0.0)
    target += split.to(tl.int64) * target_split
    tl.store(target + where, acc.to(target.dtype.element_ty), mask=written)


@triton.jit
def reduce_kernel(parts, total, size, splits, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """``total[i] = sum_s parts[s, i]`` in the order of s."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    part = parts
    for _ in range(splits):
        acc += tl.load(part + i, mask=i < size, other=0.0)
        part += size
    tl.store(total + i, acc.to(total.dtype.element_ty), mask=i < size)


def _wide(tensor: Tensor) -> bool:
    """Whether an offset into a tile of ``tensor``, counted from its first element, may need more than 31 bits."""
    return (tensor.shape[0] + 1024) * tensor.stride(0) + (tensor.shape[1] + 1024) * tensor.stride(1) >= INT32_END


def _gather(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    indices: Tensor,
    perm: Tensor | None,
    size: int,
    tile: Tile,
    *,
    transposed: bool,
) -> Tensor:
    """Launch :func:`gather_kernel` over W, or over W^T; ``size`` is the width of the result."""
    m_size, red_size = x.shape
    y = x.new_empty(m_size, size)
    if not y.numel():
        return y
    r, c = int(values.shape[1]), int(values.shape[2])
    out, red = (c, r) if transposed else (r, c)
    out_p, red_p = padded(out), padded(red, 1)
    if out_p % tile.block_n:
        raise ValueError(f"block_n: expected a divisor of {out_p}, got {tile.block_n}")
    grid = (cdiv(m_size, tile.block_m) * cdiv(size, out) * (out_p // tile.block_n),)
    gather_kernel[grid](
        x, values, bias, y, offsets, indices, perm, m_size, red_size, size, *x.stride(), *y.stride(),
        OUT=out, OUT_P=out_p, RED=red, RED_P=red_p,
        VALUE_OUT=1 if transposed else c, VALUE_RED=c if transposed else 1,
        EVEN_RED=red_size % red == 0, WIDE=_wide(x), PRECISION=tile.precision,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    return y


def forward(x: Tensor, values: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor, rows: int, tile: Tile) -> Tensor:
    """``y = x W^T + b``.

    Args:
        x: ``[M, K]``, float16, bfloat16 or float32, any strides.
        values: ``[nblocks, R, C]`` contiguous, of the dtype of x; 0 wherever an entry is not live.
        bias: ``[N]`` or None.
        crow, col: int32 ``[block_rows + 1]`` and ``[nblocks]``.
        rows: N.
        tile: launch configuration.

    Returns:
        ``[M, N]``, contiguous, of the dtype of x.
    """
    return _gather(x, values, bias, crow, col, None, rows, tile, transposed=False)


def input_gradient(
    grad: Tensor, values: Tensor, ccol: Tensor, row: Tensor, perm: Tensor, cols: int, tile: Tile
) -> Tensor:
    """``dx = dy W``: ``grad`` ``[M, N]`` -> ``[M, K]``, contiguous.

    Args:
        ccol, row, perm: the transposed index: int32 ``[block_cols + 1]``, ``[nblocks]``, ``[nblocks]``.
        cols: K. The others as in :func:`forward`.
    """
    return _gather(grad, values, None, ccol, row, perm, cols, tile, transposed=True)


def weight_gradient_programs(block: tuple[int, int], nblocks: int, tile: Tile) -> int:
    """Programs with work in a launch of :func:`weight_gradient` that splits no tokens, to one for each block row."""
    r_p, c_p = padded(block[0]), padded(block[1], 1)
    return cdiv(nblocks * c_p, tile.block_m) * (r_p // tile.block_n)


def weight_gradient(
    grad: Tensor,
    x: Tensor,
    block: tuple[int, int],
    value_mask: Tensor | None,
    crow: Tensor,
    col: Tensor,
    tile: Tile,
    splits: int,
) -> Tensor:
    """``dvalues[b] = grad[:, rows of b]^T x[:, columns of b]`` for every stored block, 0 where not live.

    Args:
        grad: ``[M, N]``, any strides.
        x: ``[M, K]``, any strides, of the dtype of ``grad``.
        block: ``(R, C)``.
        value_mask: bool ``[nblocks, R, C]`` or None where every entry is live.
        crow, col: as in :func:`forward`.
        splits: parts into which the tokens are cut, at least 1.

    Returns:
        ``[nblocks, R, C]`` of the dtype of ``grad``.
    """
    (r, c), nblocks, (m_size, n_size) = block, col.shape[0], grad.shape
    r_p, c_p = padded(r), padded(c, 1)
    if r_p % tile.block_n:
        raise ValueError(f"block_n: expected a divisor of {r_p}, got {tile.block_n}")
    dvalues = grad.new_empty(nblocks, r, c)
    if not nblocks:
        return dvalues
    rows = crow.shape[0] - 1
    flags = None if value_mask is None else value_mask.view(torch.uint8)
    split_size = cdiv(cdiv(m_size, tile.block_k), splits) * tile.block_k
    parts = grad.new_empty(splits, nblocks, r, c, dtype=torch.float32) if splits > 1 else dvalues
    grid = (nblocks * c_p // tile.block_m + rows, r_p // tile.block_n, splits)
    scatter_kernel[grid](
        grad, x, flags, parts, crow, col, m_size, rows, n_size, x.shape[1], split_size, dvalues.numel(),
        *grad.stride(), *x.stride(),
        R=r, R_P=r_p, C=c, C_P=c_p, WIDE=_wide(x) or _wide(grad), PRECISION=tile.precision,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, SEARCH=min(padded(rows), 1024),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    if splits > 1:
        reduce_kernel[(cdiv(dvalues.numel(), REDUCE_BLOCK),)](
            parts, dvalues, dvalues.numel(), splits, BLOCK=REDUCE_BLOCK, num_warps=4, enable_fp_fusion=True
        )
    return dvalues

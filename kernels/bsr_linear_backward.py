"""Block-sparse (BSR) linear layer in Triton: ``dW = dy^T x`` at the stored blocks, and ``db = sum dy`` beside it.

A program owns one block row and ``block_m`` positions of it: it loads the columns of ``dy`` once for all of them and
runs over the tokens. With few programs the tokens are split: each part writes a float32 workspace, and a second kernel
adds the parts in order. No atomics: the same inputs give the same bits. The first program of a block row adds up the
columns of ``dy`` that it reads anyway; a block row without blocks has that program for its bias alone.

The gradient for x is ``bsr_linear.input_gradient``: the forward's kernel over the transposed index.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lth_sparse.kernels.launch import Tile, beside_relu, cdiv, padded

__all__ = ["REDUCE_BLOCK", "before_relu", "reduce_kernel", "scatter_kernel", "weight_gradient",
           "weight_gradient_programs", "wide"]  # fmt: skip

INT32_END = 2**31
#: Elements that one program of the reduction adds up; block rows that a program looks at at once to find its own.
REDUCE_BLOCK, MOST_SEARCHED = 1024, 1024


@triton.jit
def before_relu(grad, activated):  # type: ignore[no-untyped-def]
    """The gradient in front of a ReLU that gave ``activated``; as torch's own, it lets a NaN of the layer pass."""
    return tl.where(activated <= 0.0, 0.0, grad).to(grad.dtype)


@triton.jit
def add_outer(  # type: ignore[no-untyped-def]
    grad, activated, x, first_token, last_token, m_size, position, in_x, column, out, in_n,
    grad_m, grad_n, a_m, a_n, x_m, x_k,
    BIAS: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``sum_m x[m, column] grad[m, out]`` over a range of tokens, and ``sum_m grad[m, out]`` if ``BIAS``."""
    token = tl.arange(0, BLOCK_K)
    if WIDE:
        token = token.to(tl.int64)
        column = column.to(tl.int64)
        out = out.to(tl.int64)
    x_tile = (column * x_k)[:, None] + (token * x_m)[None, :]
    grad_tile = (token * grad_m)[:, None] + (out * grad_n)[None, :]
    a_tile = (token * a_m)[:, None] + (out * a_n)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    # Added up apart and across threads only at the end: a sum in every step would need shared memory of its own.
    sums = tl.zeros((BLOCK_K if BIAS else 1, BLOCK_N), dtype=tl.float32)
    for first in range(first_token, last_token, BLOCK_K):
        in_m = first + token < m_size
        far = tl.full((), 0, tl.int64) + first
        a = tl.load(x + far * x_m + x_tile, mask=in_x[:, None] & in_m[None, :], other=0.0)
        live = in_m[:, None] & in_n[None, :]
        g = tl.load(grad + far * grad_m + grad_tile, mask=live, other=0.0)
        if activated is not None:
            g = before_relu(g, tl.load(activated + far * a_m + a_tile, mask=live, other=0.0))
        acc = tl.dot(a, g, acc, input_precision=PRECISION)
        if BIAS:
            sums += g.to(tl.float32)
    return acc, tl.sum(sums, axis=0)


@triton.jit
def scatter_kernel(  # type: ignore[no-untyped-def]
    grad, activated, x, value_mask, target, bias_target, offsets, indices,
    m_size, rows, n_size, k_size, split_size, target_split, grad_m, grad_n, a_m, a_n, x_m, x_k,
    R: tl.constexpr, R_P: tl.constexpr, C: tl.constexpr, C_P: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SEARCH: tl.constexpr,
):  # fmt: skip
    """``target[block, n, i] = sum_m grad[m, row R + n] x[m, column C + i]`` for ``BLOCK_M`` positions of a block row.

    Row r owns the programs from ``crow[r] C_P // BLOCK_M + r`` on, at least one and enough for its positions, so the
    grid's size follows from shapes alone: no list of work, no wait for the device. What a row has too many ends here.
    ``target`` is ``dvalues`` itself, or part ``split`` of the float32 workspace; ``bias_target`` likewise of ``dbias``.
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
    if bias_target is None:
        if first_position >= positions:
            return
    elif first_position >= tl.maximum(positions, 1):
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
    first_token = split * split_size
    last_token = tl.minimum(first_token + split_size, m_size)
    if bias_target is not None and first_position == 0:
        acc, sums = add_outer(
            grad, activated, x, first_token, last_token, m_size, position, in_x, column, out, in_n,
            grad_m, grad_n, a_m, a_n, x_m, x_k, True, WIDE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        bias_target += split.to(tl.int64) * n_size
        tl.store(bias_target + out, sums.to(bias_target.dtype.element_ty), mask=in_n)
    else:
        acc, sums = add_outer(
            grad, activated, x, first_token, last_token, m_size, position, in_x, column, out, in_n,
            grad_m, grad_n, a_m, a_n, x_m, x_k, False, WIDE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
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


def wide(*tensors: Tensor | None) -> bool:
    """Whether an offset into a tile of any of ``tensors``, counted from its first element, may need over 31 bits."""
    return any(
        (tensor.shape[0] + 1024) * tensor.stride(0) + (tensor.shape[1] + 1024) * tensor.stride(1) >= INT32_END
        for tensor in tensors
        if tensor is not None
    )


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
    *,
    activated: Tensor | None = None,
    bias: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``dvalues[b] = dy[:, rows of b]^T x[:, columns of b]`` for every stored block, 0 where not live; ``db = sum dy``.

    Args:
        grad: ``dy``, ``[M, N]``, any strides; with ``activated`` the gradient behind the ReLU that gave it.
        x: ``[M, K]``, any strides, of the dtype of ``grad``.
        block: ``(R, C)``.
        value_mask: bool ``[nblocks, R, C]`` or None where every entry is live.
        crow, col: int32 ``[block_rows + 1]`` and ``[nblocks]``.
        tile: launch configuration.
        splits: parts into which the tokens are cut, at least 1.
        activated: ``[M, N]``, any strides: ``grad`` counts only where it is positive; or None.
        bias: whether ``db`` is wanted.

    Returns:
        ``[nblocks, R, C]`` and ``[N]``, or None in place of the second, of the dtype of ``grad``.

    Raises:
        ValueError: ``tile.block_n`` does not divide the padded R.
    """
    (r, c), nblocks, (m_size, n_size), rows = block, col.shape[0], grad.shape, crow.shape[0] - 1
    r_p, c_p = padded(r), padded(c, 1)
    if r_p % tile.block_n:
        raise ValueError(f"block_n: expected a divisor of {r_p}, got {tile.block_n}")
    dvalues = grad.new_empty(nblocks, r, c)
    dbias = grad.new_empty(n_size) if bias else None
    if not nblocks and not (bias and rows):
        return dvalues, dbias
    parts, bias_parts = dvalues, dbias
    if splits > 1:
        parts = grad.new_empty(splits, nblocks, r, c, dtype=torch.float32)
        bias_parts = grad.new_empty(splits, n_size, dtype=torch.float32) if bias else None
    flags = None if value_mask is None else value_mask.view(torch.uint8)
    split_size = cdiv(cdiv(m_size, tile.block_k), splits) * tile.block_k
    if activated is not None:
        tile = beside_relu(tile, gathers=False)
    a_strides = (0, 0) if activated is None else activated.stride()
    grid = (nblocks * c_p // tile.block_m + rows, r_p // tile.block_n, splits)
    scatter_kernel[grid](
        grad, activated, x, flags, parts, bias_parts, crow, col,
        m_size, rows, n_size, x.shape[1], split_size, dvalues.numel(), *grad.stride(), *a_strides, *x.stride(),
        R=r, R_P=r_p, C=c, C_P=c_p, WIDE=wide(x, grad, activated), PRECISION=tile.precision,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, SEARCH=min(padded(rows), MOST_SEARCHED),
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    for part, total in ((parts, dvalues), (bias_parts, dbias)):
        if splits > 1 and part is not None and total is not None and total.numel():
            reduce_kernel[(cdiv(total.numel(), REDUCE_BLOCK),)](
                part, total, total.numel(), splits, BLOCK=REDUCE_BLOCK, num_warps=4, enable_fp_fusion=True
            )
    return dvalues, dbias

"""Block-sparse (BSR) linear layer in Triton: ``y = act(x W^T + b)`` and ``dx = dy W``.

W is ``[N, K]`` in blocks of ``R x C``; only stored blocks are read, multiplied and written. Tokens lie on the rows of
the accumulator, so that ``tl.dot`` can use the widest instruction of the device whatever the block is (a block of 16
rows as the *left* operand would never reach a Hopper ``wgmma``).

``y`` and ``dx`` are one kernel: a program owns one tile of tokens and one piece of a block row of W (of W^T for ``dx``,
through the transposed index lists; values never move). The pieces are those of ``formats.work``: longest first, and
rows over twice the mean cut into parts, whose sums meet in a float32 workspace and are added in order by a second
kernel. No atomics: the same inputs give the same bits. A piece's stored columns are one flat axis of positions, walked
``block_k`` at a time, so a step takes several small blocks or a part of a large one alike.

Tiles are loaded through pointers, or on Hopper, where a step lies inside a block and :func:`allows_tma`, through
descriptors: one thread then asks for a whole tile, and no register holds an address.

Accumulation is float32 in every dtype. Sizes need not divide anything: block sides are padded to powers of two in
registers, edges are masked, and a block row without blocks still writes its bias. Strides of all activations are free,
so feature-major tensors need no copy. The weight's gradient is in ``bsr_linear_backward``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lth_sparse.kernels.bsr_linear_backward import (
    REDUCE_BLOCK,
    before_relu,
    reduce_kernel,
    weight_gradient,
    weight_gradient_programs,
    wide,
)
from lth_sparse.kernels.epilogue import activate
from lth_sparse.kernels.launch import Tile, beside_relu, cdiv, padded, without_runs

__all__ = ["REDUCE_BLOCK", "allows_tma", "combine_kernel", "forward", "gather_kernel", "has_runs",
           "input_gradient",
           "prefers_tma", "reduce_kernel", "weight_gradient", "weight_gradient_programs"]  # fmt: skip

#: Elements of a tile that one program of ``combine_kernel`` adds up.
COMBINE_BLOCK = 2048
#: Triton 3.4 does not load the index of a later step ahead of a tile by descriptor: every step would wait for it.
#: 3.6 does; 3.5 was not looked at.
PIPELINES_DESCRIPTORS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)


@triton.jit
def finish(  # type: ignore[no-untyped-def]
    acc, bias, y, row, n, first_m, m, in_m, out_size, y_m, y_out, OUT: tl.constexpr, ACTIVATION: tl.constexpr
):  # fmt: skip
    """Add the bias, apply the activation, round, and store a tile of a block row's result."""
    out = row * OUT + n
    in_out = (n < OUT) & (out < out_size)
    if bias is not None:
        acc += tl.load(bias + out, mask=in_out, other=0.0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION)
    y += first_m.to(tl.int64) * y_m
    y_tile = y + (m.to(tl.int64) * y_m)[:, None] + (out.to(tl.int64) * y_out)[None, :]
    tl.store(y_tile, acc.to(y.dtype.element_ty), mask=in_m[:, None] & in_out[None, :])


@triton.jit
def gather_kernel(  # type: ignore[no-untyped-def]
    x, activated, values, bias, y, parts, work, indices, perm, items, m_size, red_size, out_size,
    x_m, x_red, a_m, a_red, y_m, y_out,
    OUT: tl.constexpr, OUT_P: tl.constexpr, RED: tl.constexpr, RED_P: tl.constexpr,
    VALUE_OUT: tl.constexpr, VALUE_RED: tl.constexpr, EVEN_RED: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``y[m, row OUT + n] = act(bias[row OUT + n] + sum x[m, index RED + i] values[block, n, i])`` over a row's blocks.

    ``OUT`` and ``RED`` are the sides of a block along the output and the summed axis, ``_P`` padded to powers of two;
    ``VALUE_OUT`` and ``VALUE_RED`` are the strides of ``values`` along them. With ``activated``, x counts only where
    that is positive. A part of a divided row stores its sums in ``parts`` ``[slots, m_size, OUT_P]``, None where no row
    is divided. ``WIDE``: offsets into x exceed int32. ``TMA``: x, ``activated`` and ``values`` are descriptors.
    """
    # Neighbouring programs share a tile of tokens, which so stays in L2, and go through the pieces, longest first.
    row_tiles: tl.constexpr = OUT_P // BLOCK_N
    programs = items * row_tiles
    pid = tl.program_id(0)
    first_m = (pid // programs) * BLOCK_M
    item = work + (pid % programs) // row_tiles * 4
    row = tl.load(item)
    start = tl.load(item + 1)
    positions = (tl.load(item + 2) - start) * RED_P
    first_n = (pid % row_tiles) * BLOCK_N
    n = first_n + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    in_m = first_m + m < m_size
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if TMA:
        for first in range(0, positions, BLOCK_K):
            entry = start + first // RED
            inside = first % RED
            column = tl.load(indices + entry) * RED + inside
            block = entry if perm is None else tl.load(perm + entry)
            a = x.load([first_m, column])
            if activated is not None:
                a = before_relu(a, activated.load([first_m, column]))
            if VALUE_OUT == 1:
                w = values.load([block * RED + inside, first_n])
            else:
                w = values.load([block * OUT + first_n, inside]).T
            acc = tl.dot(a, w, acc, input_precision=PRECISION)
    else:
        x += first_m.to(tl.int64) * x_m
        x_rows = m.to(tl.int64) * x_m if WIDE else m * x_m
        if activated is not None:
            activated += first_m.to(tl.int64) * a_m
            a_rows = m.to(tl.int64) * a_m if WIDE else m * a_m
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
            if WIDE:
                column = column.to(tl.int64)
            in_a = in_m[:, None] & in_x[None, :]
            a = tl.load(x + x_rows[:, None] + (column * x_red)[None, :], mask=in_a, other=0.0)
            if activated is not None:
                behind = activated + a_rows[:, None] + (column * a_red)[None, :]
                a = before_relu(a, tl.load(behind, mask=in_a, other=0.0))
            w = values + (block * (OUT * RED) + inside * VALUE_RED)[:, None] + (n * VALUE_OUT)[None, :]
            in_w = stored[:, None] if OUT == OUT_P else stored[:, None] & (n < OUT)[None, :]
            acc = tl.dot(a, tl.load(w, mask=in_w, other=0.0), acc, input_precision=PRECISION)
    if parts is None:
        finish(acc, bias, y, row, n, first_m, m, in_m, out_size, y_m, y_out, OUT, ACTIVATION)
    else:
        slot = tl.load(item + 3)
        if slot < 0:
            finish(acc, bias, y, row, n, first_m, m, in_m, out_size, y_m, y_out, OUT, ACTIVATION)
        else:
            parts += (slot.to(tl.int64) * m_size + first_m) * OUT_P
            tl.store(parts + (m * OUT_P)[:, None] + n[None, :], acc, mask=in_m[:, None])


@triton.jit
def combine_kernel(  # type: ignore[no-untyped-def]
    parts, bias, y, splits, rows, m_size, out_size, y_m, y_out,
    OUT: tl.constexpr, OUT_P: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Finish the divided rows: the sum of their parts in the order of the slots, then what :func:`finish` does."""
    row_tiles: tl.constexpr = OUT_P // BLOCK_N
    programs = rows * row_tiles
    pid = tl.program_id(0)
    first_m = (pid // programs) * BLOCK_M
    split = splits + (pid % programs) // row_tiles * 3
    n = (pid % row_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    in_m = first_m + m < m_size
    first = tl.load(split + 1)
    last = tl.load(split + 2)
    part = parts + (first.to(tl.int64) * m_size + first_m) * OUT_P + (m * OUT_P)[:, None] + n[None, :]
    step = tl.full((), OUT_P, tl.int64) * m_size
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(first, last):
        acc += tl.load(part, mask=in_m[:, None], other=0.0)
        part += step
    finish(acc, bias, y, tl.load(split), n, first_m, m, in_m, out_size, y_m, y_out, OUT, ACTIVATION)


def allows_tma(x: Tensor, block: tuple[int, int], nblocks: int) -> bool:
    """Whether descriptors can serve ``x`` ``[M, *]`` and blocks of this size in a product without edges inside blocks.

    A descriptor wants the last axis contiguous and all other steps in multiples of 16 bytes; a block of 64 or more on
    both sides holds whole steps. float32 stays with pointers: its three TF32 products take both operands from
    registers, where a descriptor saves nothing.
    """
    size = x.element_size()
    row, column = x.stride()
    return (
        size == 2
        and min(block) >= 64
        and all(side == padded(side) for side in block)
        and bool(nblocks and x.numel())
        and column == 1
        and row >= x.shape[1]
        and row * size % 16 == 0
        and x.data_ptr() % 16 == 0
    )


def prefers_tma(x: Tensor, block: tuple[int, int], nblocks: int) -> bool:
    """Whether descriptors can serve a product (:func:`allows_tma`), and this Triton makes good kernels of them."""
    return PIPELINES_DESCRIPTORS and allows_tma(x, block, nblocks)


def has_runs(x: Tensor, red: int) -> bool:
    """Whether Triton is sure to copy tiles of ``x`` asynchronously, which takes four aligned bytes side by side.

    It knows of a size or stride that 16 divides it, that it is 1, or nothing; and masks must hold for whole runs.
    """
    if x.element_size() >= 4:
        return True
    (m_size, red_size), (row, column) = x.shape, x.stride()
    if x.data_ptr() % 16 or red < 2 or red != padded(red, 1):
        return False
    in_rows = column == 1 and row % 16 == 0 and (red_size % red == 0 or red_size % 16 == 0)
    return in_rows or (row == 1 and column % 16 == 0 and m_size % 16 == 0)


def _gather(
    x: Tensor,
    activated: Tensor | None,
    values: Tensor,
    bias: Tensor | None,
    indices: Tensor,
    perm: Tensor | None,
    work: Tensor,
    splits: Tensor,
    y: Tensor,
    tile: Tile,
    activation: str,
    *,
    transposed: bool,
) -> Tensor:
    """Launch :func:`gather_kernel` over W, or over W^T, and :func:`combine_kernel` where rows are divided."""
    r, c = int(values.shape[1]), int(values.shape[2])
    out, red = (c, r) if transposed else (r, c)
    out_p, red_p = padded(out), padded(red, 1)
    if out_p % tile.block_n:
        raise ValueError(f"block_n: expected a divisor of {out_p}, got {tile.block_n}")
    if not y.numel():
        return y
    if activated is not None:
        tile = beside_relu(tile, gathers=True)
    if not (transposed or tile.tma or has_runs(x, red)):
        tile = without_runs(tile)
    (m_size, size), items, divided = y.shape, work.shape[0], splits.shape[0]
    slots = items - cdiv(size, out) + divided
    parts = x.new_empty(slots, m_size, out_p, dtype=torch.float32) if divided else None
    operands: list[Any] = [x, activated, values]
    if tile.tma:
        operands = _descriptors(x, activated, values, tile, red, transposed=transposed)
    a_strides = (0, 0) if activated is None else activated.stride()
    common = {"OUT": out, "OUT_P": out_p, "ACTIVATION": activation, "enable_fp_fusion": True}
    gather_kernel[(cdiv(m_size, tile.block_m) * items * (out_p // tile.block_n),)](
        *operands, bias, y, parts, work, indices, perm, items, m_size, x.shape[1], size,
        *x.stride(), *a_strides, *y.stride(), RED=red, RED_P=red_p,
        VALUE_OUT=1 if transposed else c, VALUE_RED=c if transposed else 1,
        EVEN_RED=x.shape[1] % red == 0, WIDE=wide(x, activated), PRECISION=tile.precision, TMA=tile.tma,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        num_warps=tile.num_warps, num_stages=tile.num_stages, **common,
    )  # fmt: skip
    if divided:
        block_n = min(out_p, 128)
        block_m = COMBINE_BLOCK // block_n
        combine_kernel[(cdiv(m_size, block_m) * divided * (out_p // block_n),)](
            parts, bias, y, splits, divided, m_size, size, *y.stride(),
            BLOCK_M=block_m, BLOCK_N=block_n, num_warps=4, **common,
        )  # fmt: skip
    return y


def _descriptors(
    x: Tensor, activated: Tensor | None, values: Tensor, tile: Tile, red: int, *, transposed: bool
) -> list[Any]:
    """The operands as :func:`gather_kernel` takes them with ``TMA``; the values as one matrix, block below block."""
    nblocks, r, c = values.shape
    if red % tile.block_k:
        raise ValueError(f"block_k: expected a divisor of {red} for tiles by descriptor, got {tile.block_k}")
    for name, tensor in (("x", x), ("activated", activated)):
        if tensor is not None and not allows_tma(tensor, (r, c), nblocks):
            got = f"{tensor.dtype}, shape {list(tensor.shape)}, strides {tensor.stride()}, blocks of {r}x{c}"
            raise ValueError(f"{name}: expected a tensor that allows_tma for a tile by descriptor, got {got}")
    rows = [tile.block_m, tile.block_k]
    weight = [tile.block_k, tile.block_n] if transposed else [tile.block_n, tile.block_k]
    return [
        TensorDescriptor.from_tensor(x, rows),
        None if activated is None else TensorDescriptor.from_tensor(activated, rows),
        TensorDescriptor.from_tensor(values.view(nblocks * r, c), weight),
    ]


def forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    col: Tensor,
    work: Tensor,
    splits: Tensor,
    y: Tensor,
    tile: Tile,
    activation: str = "none",
) -> Tensor:
    """``y = act(x W^T + b)``.

    Args:
        x: ``[M, K]``, float16, bfloat16 or float32, any strides.
        values: ``[nblocks, R, C]`` contiguous, of the dtype of x; 0 wherever an entry is not live.
        bias: ``[N]`` or None.
        col: int32 ``[nblocks]``.
        work, splits: ``row_work`` and ``row_splits`` of the layout, int32 ``[pieces, 4]`` and ``[divided rows, 3]``.
        y: ``[M, N]`` of the dtype of x, any strides: where the result is written.
        tile: launch configuration.
        activation: one of ``epilogue.ACTIVATIONS``.

    Returns:
        ``y``.

    Raises:
        ValueError: ``tile.block_n`` does not divide the padded R, or a tile by descriptor does not suit the operands.
    """
    return _gather(x, None, values, bias, col, None, work, splits, y, tile, activation, transposed=False)


def input_gradient(
    grad: Tensor,
    values: Tensor,
    row: Tensor,
    perm: Tensor,
    work: Tensor,
    splits: Tensor,
    dx: Tensor,
    tile: Tile,
    activated: Tensor | None = None,
) -> Tensor:
    """``dx = dy W``.

    Args:
        grad: ``dy``, ``[M, N]``, any strides; with ``activated`` the gradient behind the ReLU that gave it.
        row, perm: the transposed index: int32 ``[nblocks]`` each.
        work, splits: ``column_work`` and ``column_splits`` of the layout.
        dx: ``[M, K]`` of the dtype of ``grad``, any strides: where the result is written.
        activated: ``[M, N]``, any strides: ``grad`` counts only where it is positive; or None.
        values, tile: as in :func:`forward`, C in place of R.

    Returns:
        ``dx``.
    """
    return _gather(grad, activated, values, None, row, perm, work, splits, dx, tile, "none", transposed=True)

"""Blocked layouts worth timing for a mask that was not pruned in blocks: column vectors, and blocks after reordering.

Blocks are multiplied faster than single weights, but their padding is multiplied, too. Whether a mask can have full
enough blocks is estimated from a sample of its rows and columns in milliseconds; only where it may is an order searched
for, and only what then stores few enough zeros is timed. A mask without structure costs the estimate alone.

A layer has one layout for all its passes. Its values are one parameter in one order: to multiply forward in CSR and
backward in blocks, every step would have to copy all values into the other order and their gradient back, and the
layer to hold two indices, more memory than the values themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lth_sparse.formats import BSR, Layout, Reordered
from lth_sparse.formats.layout import matrix_view
from lth_sparse.formats.reorder import reorder

__all__ = ["LEAST_FILL", "block_candidates", "likely_fill"]

#: Blocks that are tried, by device: those for which there are the fastest kernels.
VECTORS = {"cpu": ((4, 1), (8, 1)), "cuda": ()}
BLOCKS = {"cpu": ((4, 1), (4, 4), (8, 8), (16, 16)), "cuda": ((16, 16), (32, 32), (64, 64))}

#: Share of the stored values that must be live for a blocked layout to be timed: kernels are at most about twice as
#: fast on full blocks as on single weights.
LEAST_FILL = 0.5

#: An order is searched for where the blocks may become so many times as full as they are, and as those of rows that
#: keep as many weights at random.
LEAST_GAIN = 1.2

#: Rows or columns that the estimate looks at.
SAMPLE = 256


def block_candidates(mask: Tensor, groups: int = 1) -> dict[str, Layout]:
    """Layouts by name, such as ``"bsr 4x1"`` or ``"reordered 16x16"``, that may beat CSR for ``mask``.

    Pruned weights inside their blocks stay pruned (``cover="zeros"``).

    Args:
        mask: bool ``[rows, cols, *kernel]``.
        groups: of a convolution; with more than one, channels are not reordered.
    """
    place = mask.device.type
    if place not in BLOCKS or mask.numel() == 0 or not bool(mask.any()):
        return {}
    found: dict[str, Layout] = {}
    for block in VECTORS[place]:
        vectors = BSR.from_mask(mask, block, "zeros")
        if _fill(vectors) >= LEAST_FILL:
            found[_name(vectors)] = vectors
    if groups > 1:
        return found
    matrix = matrix_view(mask)
    # Of a convolution whole channels move, with all their kernel positions.
    columns = matrix_view(mask.transpose(0, 1))
    for block in BLOCKS[place]:
        r, c = block
        if min(mask.shape[:2]) < max(block):
            continue
        likely = likely_fill(matrix, r) * likely_fill(columns, c)
        if likely < LEAST_FILL or likely < LEAST_GAIN * _fill(BSR.from_mask(mask, block, "zeros")):
            continue
        if likely < LEAST_GAIN * likely_fill(matrix, r, by_chance=True) * likely_fill(columns, c, by_chance=True):
            continue
        order = reorder(mask, block)
        layout = Reordered.from_mask(mask, block, "zeros", order=order)
        if not order.is_identity and _fill(layout) >= LEAST_FILL:
            found[_name(layout)] = layout
    return found


def likely_fill(matrix: Tensor, extent: int, by_chance: bool = False) -> float:
    """About how full vectors of ``extent`` rows can become by reordering: 1 for rows that come in like groups.

    Of the columns that a row keeps, the share that it and its ``extent - 1`` best partners keep, averaged over a sample
    of the rows. Partners are counted for every row alone, so that it is optimistic; how much, ``by_chance`` tells: the
    same for rows of which each keeps as many columns, but others.
    """
    rows = matrix.any(1).nonzero().view(-1)
    if extent == 1 or rows.numel() == 0:
        return 1.0
    sampled = rows[torch.linspace(0, rows.numel() - 1, min(SAMPLE, rows.numel())).round().to(torch.int64)]
    live = matrix.to(torch.float32)
    mine = live[sampled]
    degrees = mine.sum()
    if by_chance:
        order = torch.randperm(mine.shape[1], generator=torch.Generator().manual_seed(0))
        mine = mine[:, order.to(mine.device)]
    shared = mine @ live.t()
    shared.scatter_(1, sampled[:, None], 0.0)  # with itself, which is no partner
    best = shared.topk(min(extent - 1, shared.shape[1]), 1).values.sum()
    return float((degrees + best) / (extent * degrees))


def _fill(layout: BSR) -> float:
    """Share of the stored values that are live."""
    stored = layout.nblocks * layout.block[0] * layout.block[1]
    return layout.nnz / stored if stored else 1.0


def _name(layout: BSR) -> str:
    return f"{layout.kind} {layout.block[0]}x{layout.block[1]}"

"""The index of a compressed matrix after a change of its mask: entries go, others come, survivors keep their order.

On the CPU by ``csrc/csr_rebuild.cpp``, one merge and one counting sort; elsewhere by sorting, in plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import lth_sparse._C as _C
from lth_sparse.formats.layout import transpose_compressed

__all__ = ["Rebuilt", "merge", "rebuild", "rebuild_reference"]


@dataclass(frozen=True)
class Rebuilt:
    """A compressed matrix and its transpose, as in :class:`lth_sparse.formats.CSR`.

    Attributes:
        index: ``crow_indices, col_indices, ccol_indices, row_indices, perm``; columns and rows in the dtype of before.
        source: ``[nnz]`` integers, the entry that each was before; -1 for one that has come.
    """

    index: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    source: Tensor


def rebuild(crow: Tensor, col: Tensor, cols: int, keep: Tensor, grown: Tensor) -> Rebuilt:
    """Drop the entries that ``keep`` does not name and add those at ``grown``.

    Args:
        crow: int32 ``[rows + 1]``. col: int32 or uint16 ``[nnz]``, ascending within a row. cols: number of columns.
        keep: bool ``[nnz]``, False where an entry goes.
        grown: int64, ascending positions ``row * cols + col`` of what comes, none of it kept.

    Raises:
        ValueError: on the CPU, an array that is not as described.
    """
    if crow.device.type != "cpu":
        return rebuild_reference(crow, col, cols, keep, grown)
    crow, col, keep, grown = (tensor.contiguous() for tensor in (crow, col, keep, grown))
    kept = int(keep.sum())
    nnz = kept + grown.numel()
    new_crow, new_ccol = torch.empty_like(crow), crow.new_empty(cols + 1)
    new_col, new_row = col.new_empty(nnz), col.new_empty(nnz)
    perm, source = crow.new_empty(nnz), crow.new_empty(nnz)
    _C.csr_rebuild(
        crow.data_ptr(), col.data_ptr(), keep.data_ptr(), grown.data_ptr(),
        new_crow.data_ptr(), new_col.data_ptr(), new_ccol.data_ptr(), new_row.data_ptr(), perm.data_ptr(),
        source.data_ptr(), crow.numel() - 1, cols, col.numel(), kept, grown.numel(),
        16 if col.dtype == torch.uint16 else 32,
    )  # fmt: skip
    return Rebuilt((new_crow, new_col, new_ccol, new_row, perm), source)


def rebuild_reference(crow: Tensor, col: Tensor, cols: int, keep: Tensor, grown: Tensor) -> Rebuilt:
    """:func:`rebuild` in plain torch, on any device; checks nothing."""
    rows = crow.numel() - 1
    row = torch.repeat_interleave(torch.arange(rows, device=crow.device), crow.diff().to(torch.int64))
    positions, source = merge(row * cols + col.to(torch.int64), keep, grown)
    width = max(cols, 1)
    new_crow = torch.zeros_like(crow)
    counts = torch.bincount(positions // width, minlength=rows)
    torch.cumsum(counts, 0, dtype=torch.int32, out=new_crow[1:])
    new_col = (positions % width).to(torch.int32)
    ccol, new_row, perm = transpose_compressed(new_crow, new_col, cols)
    return Rebuilt((new_crow, new_col.to(col.dtype), ccol, new_row.to(col.dtype), perm), source.to(torch.int32))


def merge(positions: Tensor, keep: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending ``positions`` of which ``keep`` stay, with ``grown`` among them; and the entry that each was, or -1."""
    kept = keep.nonzero().view(-1)
    merged, order = torch.sort(torch.cat((positions[kept], grown)))
    return merged, torch.cat((kept, torch.full_like(grown, -1)))[order]

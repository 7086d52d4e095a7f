"""BSR, block compressed sparse rows: whole ``r x c`` blocks of the matrix view are kept or pruned together.

``values`` is ``[nblocks, r, c]`` in block-row-major order. The matrix need not be a multiple of the block: blocks at
the right and lower edge reach over it, and what lies outside is padding that stays zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats.layout import Layout, check_mask, compressed, matrix_view, transpose_compressed
from lth_sparse.formats.work import work_lists

__all__ = ["BSR"]

Cover = Literal["zeros", "train"]


@dataclass(frozen=True, eq=False, repr=False)
class BSR(Layout):
    """Index tensors of a block matrix and of its transpose.

    Attributes:
        crow_indices: ``[block_rows + 1]`` int32.
        col_indices: ``[nblocks]`` int32 block columns, ascending inside a block row.
        ccol_indices, row_indices, perm: the transposed index, as in CSR, over blocks.
        value_mask: ``[nblocks, r, c]`` bool; False where an entry of a stored block is not a live weight: outside the
            matrix, or pruned inside a block kept for another weight (``cover="zeros"``). Empty when all are live.
        row_work, row_splits: the block rows in pieces for GPU programs (:func:`lth_sparse.formats.work.work_lists`).
        column_work, column_splits: the block columns likewise, over the transposed index.
        block: ``(r, c)``.
    """

    kind: ClassVar[str] = "bsr"
    INDEX_NAMES: ClassVar[tuple[str, ...]] = (
        "crow_indices",
        "col_indices",
        "ccol_indices",
        "row_indices",
        "perm",
        "value_mask",
        "row_work",
        "row_splits",
        "column_work",
        "column_splits",
    )
    KEY_NAMES: ClassVar[tuple[str, ...]] = ("crow_indices", "col_indices", "value_mask")

    crow_indices: Tensor
    col_indices: Tensor
    ccol_indices: Tensor
    row_indices: Tensor
    perm: Tensor
    value_mask: Tensor
    row_work: Tensor
    row_splits: Tensor
    column_work: Tensor
    column_splits: Tensor
    block: tuple[int, int] = field(kw_only=True)
    live: int = field(kw_only=True)

    @classmethod
    def from_mask(cls, mask: Tensor, block: tuple[int, int], cover: Cover | None = None) -> BSR:
        """Index of the blocks that hold a True entry of ``mask``.

        Args:
            mask: bool, 2 to 4 dimensions; blocks are cut from its matrix view ``[rows, cols]``.
            block: ``(r, c)``, both positive.
            cover: what becomes of pruned weights inside a kept block. ``None``: there must be none. ``"zeros"``: they
                stay pruned and cost only padding. ``"train"``: they join the mask and are trained.

        Raises:
            ArgumentError: the mask is no union of blocks and ``cover`` is None.
        """
        r, c = check_block(block)
        if cover not in (None, "zeros", "train"):
            raise ArgumentError(expected("cover", "None, 'zeros' or 'train'", repr(cover)))
        flat = matrix_view(check_mask(mask))
        inside = _to_blocks(torch.ones_like(flat), (r, c))
        blocked = _to_blocks(flat, (r, c))
        occupied = blocked.any(3).any(2)
        partial = occupied[:, :, None, None] & inside & ~blocked
        if cover is None and bool(partial.any()):
            raise ArgumentError(
                expected(
                    "mask", f"a union of {r}x{c} blocks", f"{int(partial.sum())} pruned weights inside kept blocks"
                )
                + "; say cover='zeros' to keep them pruned as padding, or cover='train' to add them to the mask"
            )
        crow, col = compressed(occupied)
        value_mask = (inside if cover == "train" else blocked)[occupied]
        live = int(value_mask.sum())
        if live == value_mask.numel():
            value_mask = value_mask.new_empty(0)
        ccol, row, perm = transpose_compressed(crow, col, occupied.shape[1])
        work = (*work_lists(crow, c), *work_lists(ccol, r))
        return cls(tuple(mask.shape), crow, col, ccol, row, perm, value_mask, *work, block=(r, c), live=live)

    def with_index(self, index: tuple[Tensor, ...]) -> BSR:
        flags = index[self.INDEX_NAMES.index("value_mask")]
        live = int(flags.sum()) if flags.numel() else index[1].shape[0] * self.block[0] * self.block[1]
        return BSR(self.shape, *index, block=self.block, live=live)

    @property
    def nnz(self) -> int:
        return self.live

    @property
    def nblocks(self) -> int:
        """Number of stored blocks."""
        return self.col_indices.shape[0]

    @property
    def values_shape(self) -> tuple[int, ...]:
        return (self.nblocks, *self.block)

    def _block_positions(self) -> tuple[Tensor, Tensor]:
        """int64 block row and block column of every stored block."""
        counts = self.crow_indices.diff().to(torch.int64)
        rows = torch.arange(counts.numel(), device=self.device)
        return torch.repeat_interleave(rows, counts, output_size=self.nblocks), self.col_indices.to(torch.int64)

    def gather(self, dense: Tensor) -> Tensor:
        self.check_dense(dense)
        values = _to_blocks(matrix_view(dense), self.block)[self._block_positions()]
        return values * self.value_mask if self.value_mask.numel() else values

    def scatter(self, values: Tensor) -> Tensor:
        self.check_values(values)
        if self.value_mask.numel():
            values = values * self.value_mask
        r, c = self.block
        brows, bcols = -(-self.rows // r), -(-self.cols // c)
        blocked = values.new_zeros(brows, bcols, r, c).index_put(self._block_positions(), values)
        matrix = blocked.permute(0, 2, 1, 3).reshape(brows * r, bcols * c)[: self.rows, : self.cols]
        return matrix.reshape(self.shape)

    def mask(self) -> Tensor:
        live = self.value_mask if self.value_mask.numel() else torch.ones(self.values_shape, device=self.device)
        return self.scatter(live.to(torch.float32)) != 0

    def validate(self) -> None:
        r, c = check_block(self.block)
        brows, bcols, nblocks = -(-self.rows // r), -(-self.cols // c), self.nblocks
        self._check_index("crow_indices", brows + 1, 0, nblocks, ascending=True)
        self._check_index("col_indices", nblocks, 0, max(bcols - 1, 0))
        if int(self.crow_indices[0]) != 0 or int(self.crow_indices[-1]) != nblocks:
            ends = f"{int(self.crow_indices[0])} and {int(self.crow_indices[-1])}"
            raise ArgumentError(expected("crow_indices", f"0 first and nblocks = {nblocks} last", ends))
        rows, cols = self._block_positions()
        flat = rows * bcols + cols
        if bool((flat[1:] <= flat[:-1]).any()):
            raise ArgumentError(
                expected("col_indices", "strictly ascending columns in each block row", "a repeat or descent")
            )
        truth = transpose_compressed(self.crow_indices, self.col_indices, bcols)
        for name, right in zip(("ccol_indices", "row_indices", "perm"), truth, strict=True):
            self._check_index(name, right.numel(), 0, 2**31 - 1)
            if not torch.equal(getattr(self, name), right):
                raise ArgumentError(expected(name, "the transpose of crow_indices and col_indices", "another matrix"))
        work = (*work_lists(self.crow_indices, c), *work_lists(self.ccol_indices, r))
        for name, right in zip(self.INDEX_NAMES[-len(work) :], work, strict=True):
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != torch.int32 or not torch.equal(tensor, right):
                got = f"{tensor.dtype} {list(tensor.shape)} of other contents"
                raise ArgumentError(expected(name, f"the int32 {list(right.shape)} of work_lists", got))
        inside = _to_blocks(torch.ones(self.rows, self.cols, dtype=torch.bool, device=self.device), self.block)
        if self.value_mask.numel() == 0:
            live, right_live = inside[rows, cols].new_ones(self.values_shape), nblocks * r * c
        else:
            if tuple(self.value_mask.shape) != self.values_shape or self.value_mask.dtype != torch.bool:
                got = f"{self.value_mask.dtype} {list(self.value_mask.shape)}"
                raise ArgumentError(expected("value_mask", f"bool {list(self.values_shape)}", got))
            live, right_live = self.value_mask, int(self.value_mask.sum())
        if bool((live & ~inside[rows, cols]).any()):
            raise ArgumentError(expected("value_mask", "False outside the matrix", "True there"))
        if self.live != right_live:
            raise ArgumentError(expected("live", f"{right_live}, the live entries of the blocks", self.live))

    def _describe(self) -> dict[str, Any]:
        return {"block": f"{self.block[0]}x{self.block[1]}", "nblocks": self.nblocks}


def check_block(block: object) -> tuple[int, int]:
    """Return ``block`` as a pair of positive ints or raise, naming it."""
    if not isinstance(block, (tuple, list)) or len(block) != 2 or not all(type(size) is int for size in block):
        raise ArgumentTypeError(expected("block", "a pair of ints (rows, cols)", repr(block)))
    r, c = block
    if r < 1 or c < 1:
        raise ArgumentError(expected("block", "positive sizes", block))
    return r, c


def _to_blocks(matrix: Tensor, block: tuple[int, int]) -> Tensor:
    """``[rows, cols]`` -> ``[block_rows, block_cols, r, c]``, zero beyond the edges."""
    (rows, cols), (r, c) = matrix.shape, block
    if matrix.numel():
        padded = F.pad(matrix, (0, -cols % c, 0, -rows % r))
    else:  # torch 2.8 refuses to pad an empty matrix
        padded = matrix.new_zeros(rows + -rows % r, cols + -cols % c)
    return padded.reshape(-(-rows // r), r, -(-cols // c), c).permute(0, 2, 1, 3)

"""BSR, block compressed sparse rows: whole ``r x c`` blocks of the matrix view are kept or pruned together.

``values`` is ``[nblocks, r, c]`` in block-row-major order. The matrix need not be a multiple of the block: blocks at
the right and lower edge reach over it, and what lies outside is padding that stays zero.

Convolutions have two orders of the matrix's columns. By default they are those of a contiguous weight, channels and
within each its kernel positions (taps). With ``channels_last`` they are taps and within each its channels, the memory
order of torch's ``channels_last``: a block then lies within one tap (channels are padded up to its width), so that it
reads consecutive channels of a channels_last image, which is what block-sparse convolutions on GPUs want.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats.layout import (
    Layout,
    check_mask,
    compressed,
    from_tap_matrix,
    matrix_view,
    tap_matrix,
    transpose_compressed,
)
from lth_sparse.formats.work import work_lists

__all__ = ["BSR"]

Cover = Literal["zeros", "train"]


@dataclass(frozen=True, eq=False, repr=False)
class BSR(Layout):
    """Index tensors of a block matrix and of its transpose.

    Attributes:
        crow_indices: ``[block_rows + 1]`` int32.
        col_indices: ``[nblocks]`` int32 block columns, ascending inside a block row.
        ccol_indices, row_indices, perm: the transposed index, as in CSR, over blocks. With ``channels_last`` it is that
            of the weight with input and output channels exchanged, ``[in, *kernel, out]``: ``ccol_indices`` goes by
            (channel block, tap), and ``row_indices`` holds ``tap * block_rows + block_row``.
        value_mask: ``[nblocks, r, c]`` bool; False where an entry of a stored block is not a live weight: outside the
            matrix, or pruned inside a block kept for another weight (``cover="zeros"``). Empty when all are live.
        row_work, row_splits: the block rows in pieces for GPU programs (:func:`lth_sparse.formats.work.work_lists`).
        column_work, column_splits: the block columns likewise, over the transposed index.
        block: ``(r, c)``.
        channels_last: blocks are cut from ``[out, *kernel, in]`` and not from ``[out, in, *kernel]``. Always False for
            a weight of two dimensions, where both are one.
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
    channels_last: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.shape) == 2:
            object.__setattr__(self, "channels_last", False)

    @classmethod
    def from_mask(
        cls, mask: Tensor, block: tuple[int, int], cover: Cover | None = None, channels_last: bool = False
    ) -> BSR:
        """Index of the blocks that hold a True entry of ``mask``.

        Args:
            mask: bool, 2 to 4 dimensions; blocks are cut from its matrix view ``[rows, cols]``.
            block: ``(r, c)``, both positive.
            cover: what becomes of pruned weights inside a kept block. ``None``: there must be none. ``"zeros"``: they
                stay pruned and cost only padding. ``"train"``: they join the mask and are trained.
            channels_last: the order of the columns of a convolution's weight.

        Raises:
            ArgumentError: the mask is no union of blocks and ``cover`` is None.
        """
        r, c = check_block(block)
        if cover not in (None, "zeros", "train"):
            raise ArgumentError(expected("cover", "None, 'zeros' or 'train'", repr(cover)))
        if not isinstance(channels_last, bool):
            raise ArgumentTypeError(expected("channels_last", "True or False", channels_last))
        inside = to_blocks(torch.ones_like(check_mask(mask)), (r, c), channels_last)
        blocked = to_blocks(mask, (r, c), channels_last)
        occupied = blocked.any(3).any(2)
        partial = occupied[:, :, None, None] & inside & ~blocked
        if cover is None and bool(partial.any()):
            raise ArgumentError(
                expected(
                    "mask",
                    f"a union of {r}x{c} blocks" + " of consecutive channels" * (channels_last and mask.dim() > 2),
                    f"{int(partial.sum())} pruned weights inside kept blocks",
                )
                + "; say cover='zeros' to keep them pruned as padding, or cover='train' to add them to the mask"
            )
        crow, col = compressed(occupied)
        value_mask = (inside if cover == "train" else blocked)[occupied]
        live = int(value_mask.sum())
        if live == value_mask.numel():
            value_mask = value_mask.new_empty(0)
        order = channels_last and mask.dim() > 2
        ccol, row, perm = _transposed(crow, col, occupied.shape[1], mask.shape, order)
        work = (*work_lists(crow, c), *work_lists(ccol, r))
        index = (crow, col, ccol, row, perm, value_mask, *work)
        return cls(tuple(mask.shape), *index, block=(r, c), live=live, channels_last=order)

    def with_index(self, index: tuple[Tensor, ...]) -> BSR:
        flags = index[self.INDEX_NAMES.index("value_mask")]
        live = int(flags.sum()) if flags.numel() else index[1].shape[0] * self.block[0] * self.block[1]
        return BSR(self.shape, *index, block=self.block, live=live, channels_last=self.channels_last)

    def with_mask(self, mask: Tensor) -> BSR:
        """Layout of another mask of this shape, in blocks as these; what is pruned inside kept ones stays pruned."""
        return BSR.from_mask(mask, self.block, "zeros", self.channels_last)

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

    @property
    def grid(self) -> tuple[int, int]:
        """Block rows and block columns of the whole matrix."""
        r, c = self.block
        taps = math.prod(self.shape[2:]) if self.channels_last else 1
        return -(-self.rows // r), taps * -(-self.cols // taps // c) if taps else 0

    def _block_positions(self) -> tuple[Tensor, Tensor]:
        """int64 block row and block column of every stored block."""
        counts = self.crow_indices.diff().to(torch.int64)
        rows = torch.arange(counts.numel(), device=self.device)
        return torch.repeat_interleave(rows, counts, output_size=self.nblocks), self.col_indices.to(torch.int64)

    def gather(self, dense: Tensor) -> Tensor:
        self.check_dense(dense)
        values = to_blocks(dense, self.block, self.channels_last)[self._block_positions()]
        return values * self.value_mask if self.value_mask.numel() else values

    def scatter(self, values: Tensor) -> Tensor:
        self.check_values(values)
        if self.value_mask.numel():
            values = values * self.value_mask
        (r, c), (brows, bcols) = self.block, self.grid
        blocked = values.new_zeros(brows, bcols, r, c).index_put(self._block_positions(), values)
        matrix = blocked.permute(0, 2, 1, 3).reshape(brows * r, bcols * c)[: self.rows]
        if self.channels_last:
            return from_tap_matrix(matrix, self.shape, c)
        return matrix[:, : self.cols].reshape(self.shape)

    def mask(self) -> Tensor:
        live = self.value_mask if self.value_mask.numel() else torch.ones(self.values_shape, device=self.device)
        return self.scatter(live.to(torch.float32)) != 0

    def validate(self) -> None:
        r, c = check_block(self.block)
        (brows, bcols), nblocks = self.grid, self.nblocks
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
        truth = _transposed(self.crow_indices, self.col_indices, bcols, self.shape, self.channels_last)
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
        ones = torch.ones(self.shape, dtype=torch.bool, device=self.device)
        inside = to_blocks(ones, self.block, self.channels_last)
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
        order = {"channels_last": True} if self.channels_last else {}
        return {"block": f"{self.block[0]}x{self.block[1]}", "nblocks": self.nblocks, **order}


def check_block(block: object) -> tuple[int, int]:
    """Return ``block`` as a pair of positive ints or raise, naming it."""
    if not isinstance(block, (tuple, list)) or len(block) != 2 or not all(type(size) is int for size in block):
        raise ArgumentTypeError(expected("block", "a pair of ints (rows, cols)", repr(block)))
    r, c = block
    if r < 1 or c < 1:
        raise ArgumentError(expected("block", "positive sizes", block))
    return r, c


def _transposed(
    crow: Tensor, col: Tensor, bcols: int, shape: Sequence[int], channels_last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``ccol_indices``, ``row_indices`` and ``perm`` of a block matrix with ``bcols`` block columns."""
    if not channels_last:
        return transpose_compressed(crow, col, bcols)
    taps = max(math.prod(shape[2:]), 1)
    tap, part = (size.to(torch.int32) for size in (col // max(bcols // taps, 1), col % max(bcols // taps, 1)))
    ccol, row, perm = transpose_compressed(crow, part * taps + tap, bcols)
    return ccol, tap[perm] * (crow.numel() - 1) + row, perm


def to_blocks(dense: Tensor, block: tuple[int, int], channels_last: bool) -> Tensor:
    """Weight -> ``[block_rows, block_cols, r, c]``, zero beyond the edges."""
    matrix = tap_matrix(dense, block[1]) if channels_last and dense.dim() > 2 else matrix_view(dense)
    (rows, cols), (r, c) = matrix.shape, block
    if matrix.numel():
        padded = F.pad(matrix, (0, -cols % c, 0, -rows % r))
    else:  # torch 2.8 refuses to pad an empty matrix
        padded = matrix.new_zeros(rows + -rows % r, cols + -cols % c)
    return padded.reshape(-(-rows // r), r, -(-cols // c), c).permute(0, 2, 1, 3)

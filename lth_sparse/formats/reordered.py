"""Reordered: blocks of a matrix whose rows and columns were put in another order, with an index at the layer's edges.

Inside it is BSR of the permuted weight, where live weights lie together (:func:`lth_sparse.formats.reorder.reorder`).
A layer reads its input through the columns' order and writes its output through the rows', one pass over the
activations each; an axis that keeps its order costs nothing. Everything that speaks of the dense weight, its mask or
its shape, speaks of the original order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats.bsr import BSR, Cover
from lth_sparse.formats.layout import check_mask
from lth_sparse.formats.reorder import Reordering, is_identity, permuted, reorder

__all__ = ["Reordered"]


@dataclass(frozen=True, eq=False, repr=False)
class Reordered(BSR):
    """BSR of the weight with rows and columns in another order.

    Attributes:
        row_order: ``[rows]`` int32; row i of the blocked matrix is row ``row_order[i]`` of the weight. Empty when the
            rows keep their order.
        col_order: ``[cols]`` int32, likewise; of a convolution's weight the input channels.
        row_place, col_place: their inverses: row r of the weight is row ``row_place[r]`` of the blocked matrix.
    """

    kind: ClassVar[str] = "reordered"
    INDEX_NAMES: ClassVar[tuple[str, ...]] = (*BSR.INDEX_NAMES, "row_order", "col_order", "row_place", "col_place")
    KEY_NAMES: ClassVar[tuple[str, ...]] = (*BSR.KEY_NAMES, "row_order", "col_order")

    row_order: Tensor
    col_order: Tensor
    row_place: Tensor
    col_place: Tensor

    @classmethod
    def from_mask(
        cls,
        mask: Tensor,
        block: tuple[int, int],
        cover: Cover | None = None,
        channels_last: bool = False,
        order: Reordering | None = None,
    ) -> Reordered:
        """Index of the blocks that hold a True entry of ``mask`` in its new order.

        Args:
            mask, block, cover, channels_last: as for :meth:`BSR.from_mask`, of the mask in its new order.
            order: the order of rows and columns; by default that of :func:`lth_sparse.formats.reorder.reorder`.
        """
        check_mask(mask)
        if order is None:
            order = reorder(mask, block, channels_last=channels_last)
        if not isinstance(order, Reordering):
            raise ArgumentTypeError(expected("order", "a Reordering or None", type(order).__name__))
        for name, axis, size in (("rows", order.rows, mask.shape[0]), ("cols", order.cols, mask.shape[1])):
            _check_order(f"order.{name}", axis, size)
        orders = [order.rows.to(mask.device), order.cols.to(mask.device)]
        inner = BSR.from_mask(permuted(mask, *orders), block, cover, channels_last)
        kept = [axis.to(torch.int32)[: 0 if is_identity(axis) else None].contiguous() for axis in orders]
        index = (*inner.index, *kept, *(_inverse(axis) for axis in kept))
        return cls(inner.shape, *index, block=inner.block, live=inner.live, channels_last=inner.channels_last)

    @property
    def inner(self) -> BSR:
        """Of the weight in its new order."""
        index = self.index[: len(BSR.INDEX_NAMES)]
        return BSR(self.shape, *index, block=self.block, live=self.live, channels_last=self.channels_last)

    @property
    def order(self) -> Reordering:
        """The order of rows and columns, without a count of blocks before."""
        rows, cols = (
            axis.to(torch.int64) if axis.numel() else torch.arange(size, device=self.device)
            for axis, size in zip((self.row_order, self.col_order), self.shape, strict=False)
        )
        return Reordering(rows, cols, self.block, self.nblocks, self.nblocks, self.channels_last)

    def with_index(self, index: tuple[Tensor, ...]) -> Reordered:
        live = self.inner.with_index(index[: len(BSR.INDEX_NAMES)]).live
        return Reordered(self.shape, *index, block=self.block, live=live, channels_last=self.channels_last)

    def with_mask(self, mask: Tensor) -> Reordered:
        return Reordered.from_mask(mask, self.block, "zeros", self.channels_last, self.order)

    def gather(self, dense: Tensor) -> Tensor:
        self.check_dense(dense)
        return self.inner.gather(permuted(dense, _or_none(self.row_order), _or_none(self.col_order)))

    def scatter(self, values: Tensor) -> Tensor:
        self.check_values(values)
        return permuted(self.inner.scatter(values), _or_none(self.row_place), _or_none(self.col_place))

    def validate(self) -> None:
        self.inner.validate()
        for axis, size in zip(("row", "col"), self.shape, strict=False):
            order, place = getattr(self, f"{axis}_order"), getattr(self, f"{axis}_place")
            if order.numel():
                _check_order(f"{axis}_order", order, size)
            if place.dtype != torch.int32 or not torch.equal(place, _inverse(order)):
                raise ArgumentError(expected(f"{axis}_place", f"the int32 inverse of {axis}_order", "other numbers"))

    def _describe(self) -> dict[str, Any]:
        moved = [name for name in ("row", "col") if getattr(self, f"{name}_order").numel()]
        return {**super()._describe(), "reordered": "+".join(moved) or "nothing"}


def _or_none(axis: Tensor) -> Tensor | None:
    return axis if axis.numel() else None


def _inverse(order: Tensor) -> Tensor:
    """The place of every item of an int32 order; empty for an empty one."""
    items = torch.arange(order.numel(), dtype=torch.int32, device=order.device)
    return torch.empty_like(order).index_copy_(0, order.to(torch.int64), items)


def _check_order(name: str, order: Tensor, size: int) -> None:
    """Raise ``ArgumentError`` unless ``order`` holds every number below ``size`` once."""
    if not isinstance(order, Tensor) or order.dtype not in (torch.int32, torch.int64) or order.dim() != 1:
        raise ArgumentError(expected(name, "a vector of int32 or int64", order))
    whole = torch.arange(size, device=order.device)
    if order.numel() != size or not torch.equal(order.to(torch.int64).sort().values, whole):
        raise ArgumentError(expected(name, f"every number from 0 to {size - 1} once", "other numbers"))

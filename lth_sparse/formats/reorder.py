"""Orders of rows and columns in which a mask has few and full blocks.

A mask that was pruned weight by weight has a live weight in nearly every block of a blocked layout. Rows that keep the
same columns, put side by side, share their blocks; columns likewise. Which goes with which is searched for in C++
(``csrc/reorder.h``): like items are grouped greedily, and then exchanged while blocks get fewer or fuller, rows and
columns in turn. The weights themselves stay what they are, and whoever uses the order has to undo it at the layer's
edges (``layout="reordered"``) or in the neighbouring layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import lth_sparse._C as _C
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats.bsr import check_block, to_blocks
from lth_sparse.formats.layout import check_mask
from lth_sparse.formats.partition import PARTITIONERS, partition

__all__ = ["Member", "Reordering", "live_blocks", "reorder", "reorder_axis"]

#: Each item remembers so many items that are most like it; exchanges are tried with their neighbours.
NEIGHBOURS = 16

#: Rounds of exchanges over one axis, and of both axes in turn. All end earlier where nothing is gained.
SWEEPS, ROUNDS = 8, 4


@dataclass(frozen=True, eq=False)
class Reordering:
    """An order of a mask's rows and columns.

    Attributes:
        rows: int64 ``[rows]``; row i of the reordered matrix is row ``rows[i]`` of the mask.
        cols: int64 ``[cols]``, likewise; of a convolution's weight the input channels, whose kernels stay as they are.
        block: ``(r, c)`` for which the order was made.
        blocks_before, blocks_after: blocks with a live weight, before and after.
        channels_last: the blocks are those of a channels_last weight, see :class:`lth_sparse.formats.BSR`.
    """

    rows: Tensor
    cols: Tensor
    block: tuple[int, int]
    blocks_before: int
    blocks_after: int
    channels_last: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether everything stays in its place."""
        return is_identity(self.rows) and is_identity(self.cols)

    def apply(self, dense: Tensor) -> Tensor:
        """``dense``, a mask or weight ``[rows, cols, *kernel]``, in this order."""
        return permuted(dense, self.rows, self.cols)


class Member(NamedTuple):
    """One tensor that a shared order permutes, see :func:`reorder_axis`.

    Attributes:
        features: bool ``[size, m]``: what each item occupies of the tensor's other axis, whose blocks count as one.
        extent: items in a block.
        weight: what one live block costs, such as its number of weights.
    """

    features: Tensor
    extent: int
    weight: float = 1.0


def reorder(
    mask: Tensor,
    block: tuple[int, int],
    *,
    rows: bool = True,
    cols: bool = True,
    method: str = "greedy",
    exchanges: bool = True,
    seed: int = 0,
    channels_last: bool = False,
) -> Reordering:
    """An order in which ``mask`` has fewer live blocks; the one that it has where none was found.

    Deterministic: the same arguments give the same order on every machine. Of two orders with as many live blocks the
    one whose blocks are fuller counts as better, so that a mask with a stray weight in every block is ordered, too.

    Args:
        mask: bool, 2 to 4 dimensions. A convolution's rows are its output channels, its columns its input channels.
        block: ``(r, c)`` of the matrix view, as in :meth:`lth_sparse.formats.BSR.from_mask`.
        rows, cols: which axes may be permuted.
        method: what makes the first groups: ``"greedy"``, the search of this module, or ``"metis"`` or
            ``"mtkahypar"``, see :mod:`lth_sparse.formats.partition`.
        exchanges: False leaves the groups as ``method`` made them.
        seed: of the exchanges that are tried at random, and of the partitioners.
        channels_last: blocks are cut from the weight in channels_last memory order.

    Raises:
        ArgumentError, ArgumentTypeError: naming the argument.
        BackendError: the package of ``method`` is not installed.
    """
    check_mask(mask)
    r, c = check_block(block)
    flags = {"rows": rows, "cols": cols, "exchanges": exchanges, "channels_last": channels_last}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ArgumentTypeError(expected(name, "True or False", value))
    methods = ("greedy", *PARTITIONERS)
    if method not in methods:
        raise ArgumentError(expected("method", f"one of {', '.join(map(repr, methods))}", repr(method)))
    search = _Search(mask, (r, c), rows, cols, channels_last and mask.dim() > 2, _checked_seed(seed))
    search.run(method, exchanges)
    return search.result()


def reorder_axis(members: Sequence[Member | tuple[Tensor, int, float]], size: int, *, seed: int = 0) -> Tensor:
    """One order for all tensors that share an axis, such as the channels between two layers.

    Minimises the sum over ``members`` of live blocks times ``weight``; never worse than the order that they have.

    Args:
        members: each a :class:`Member` or such a tuple.
        size: items of the shared axis.
        seed: of the exchanges that are tried at random.

    Returns:
        int64 ``[size]`` on the CPU: the item at each place.

    Raises:
        ArgumentError, ArgumentTypeError: naming the member that does not fit.
    """
    checked = [_checked_member(member, f"members[{i}]", size) for i, member in enumerate(members)]
    sparse = [_Items.of(member.features, member.extent, 1, member.weight) for member in checked]
    identity = torch.arange(size)
    if not any(items.extent > 1 for items in sparse):
        return identity
    order, near = _cluster(sparse, size)
    _refine(sparse, order, near, _checked_seed(seed))

    def cost(order: Tensor) -> float:
        return sum(member.weight * _occupied(member, order) for member in checked)

    return order if cost(order) < cost(identity) else identity


def live_blocks(
    mask: Tensor,
    block: tuple[int, int],
    rows: Tensor | None = None,
    cols: Tensor | None = None,
    channels_last: bool = False,
) -> Tensor:
    """int64 ``[block_rows, block_cols]``: live weights in each block of ``mask``, its rows and columns put in an order.

    Args:
        mask: bool ``[rows, cols, *kernel]``.
        block: ``(r, c)``.
        rows, cols: as in :class:`Reordering`; None for those of the mask.
        channels_last: as there.
    """
    check_mask(mask)
    r, c = check_block(block)
    ordered = permuted(mask, rows, cols)
    return to_blocks(ordered, (r, c), channels_last).sum((2, 3))


def permuted(dense: Tensor, rows: Tensor | None, cols: Tensor | None) -> Tensor:
    """``dense`` ``[rows, cols, *kernel]`` with its first two axes in the order given; None leaves one as it is."""
    if rows is not None:
        dense = dense.index_select(0, rows)
    return dense if cols is None else dense.index_select(1, cols)


def is_identity(order: Tensor) -> bool:
    """Whether every item stays in its place."""
    return bool((order == torch.arange(order.numel(), device=order.device)).all())


@dataclass(frozen=True)
class _Items:
    """One member for the extension: the items of a count matrix, compressed; see csrc/reorder.h."""

    features: int
    offsets: Tensor
    feature: Tensor
    amount: Tensor
    extent: int
    width: int
    weight: float

    @classmethod
    def of(cls, counts: Tensor, extent: int, width: int, weight: float = 1.0) -> _Items:
        """Of a count or bool matrix ``[size, features]`` with counts of at most ``width``."""
        counts = counts.cpu()
        offsets = torch.zeros(counts.shape[0] + 1, dtype=torch.int64)
        live = counts != 0
        torch.cumsum(live.sum(1), 0, out=offsets[1:])
        feature = live.nonzero()[:, 1].to(torch.int32)
        return cls(counts.shape[1], offsets, feature, counts[live].to(torch.int32), extent, width, weight)

    def described(self) -> tuple[int, int, int, int, int, int, float]:
        pointers = (self.offsets.data_ptr(), self.feature.data_ptr(), self.amount.data_ptr())
        return (self.features, *pointers, self.extent, self.width, self.weight)


def _cluster(members: Sequence[_Items], size: int) -> tuple[Tensor, Tensor]:
    """An order in which like items are together, and for each item those most like it."""
    order, near = torch.empty(size, dtype=torch.int64), torch.empty(size, NEIGHBOURS, dtype=torch.int32)
    described = [items.described() for items in members]
    _C.reorder_cluster(described, size, NEIGHBOURS, order.data_ptr(), near.data_ptr())
    return order, near


def _refine(members: Sequence[_Items], order: Tensor, near: Tensor, seed: int) -> int:
    """Exchange items in ``order``, in place, while that gains; returns how many exchanges it took."""
    described = [items.described() for items in members]
    return _C.reorder_refine(described, order.numel(), near.shape[1], near.data_ptr(), SWEEPS, seed, order.data_ptr())


class _Search:
    """:func:`reorder` of one mask: both orders, improved in turn."""

    def __init__(
        self, mask: Tensor, block: tuple[int, int], rows: bool, cols: bool, channels_last: bool, seed: int
    ) -> None:
        self.mask, self.block, self.channels_last, self.seed = mask.cpu(), block, channels_last, seed
        self.device = mask.device
        self.taps = max(math.prod(mask.shape[2:]), 1)
        self.rows, self.cols = torch.arange(mask.shape[0]), torch.arange(mask.shape[1])
        r, c = block
        # Channels that a block spans. Where it lies within one, or cuts through them, their order hardly matters.
        self.channels = c if channels_last else c // self.taps
        live = bool(mask.any())
        self.moves_rows, self.moves_cols = rows and r > 1 and live, cols and self.channels > 1 and live

    def run(self, method: str, exchanges: bool) -> None:
        near: dict[str, Tensor] = {}
        if self.moves_rows:
            # What is fixed counts by blocks; what will move by single columns, which may still come together.
            alone = self.mask.flatten(1) if self.moves_cols else self._row_counts()
            self.rows, near["rows"] = self._grouped(method, alone != 0, self.block[0])
        if self.moves_cols:
            alone = self._by_column(self.mask).flatten(1) if self.moves_rows else self._column_counts()
            self.cols, near["cols"] = self._grouped(method, alone != 0, self.channels)
        if not exchanges:
            return
        for _ in range(ROUNDS if len(near) == 2 else len(near)):
            gained = 0
            if self.moves_rows:
                items = _Items.of(self._row_counts(), self.block[0], self.block[1])
                gained += _refine([items], self.rows, near["rows"], self.seed)
            if self.moves_cols:
                width = self.block[0] * (1 if self.channels_last else self.taps)
                items = _Items.of(self._column_counts(), self.channels, width)
                gained += _refine([items], self.cols, near["cols"], self.seed)
            if not gained:
                break

    def _grouped(self, method: str, live: Tensor, extent: int) -> tuple[Tensor, Tensor]:
        """A first order of one axis, and for each item those most like it."""
        order, near = _cluster([_Items.of(live, extent, 1)], live.shape[0])
        return (order if method == "greedy" else partition(method, live, extent, near, self.seed)), near

    def _row_counts(self) -> Tensor:
        """``[rows, block columns]``: live weights of each row, in its own order, in the blocks of ``cols``' order."""
        ordered = permuted(self.mask, None, self.cols)
        return to_blocks(ordered, (1, self.block[1]), self.channels_last).sum((2, 3), dtype=torch.int32)

    def _column_counts(self) -> Tensor:
        """``[cols, block rows (times taps)]``: live weights of each column in the block rows of ``rows``' order."""
        ordered = self._by_column(permuted(self.mask, self.rows, None))
        rows, r = ordered.shape[1], self.block[0]
        padded = ordered.new_zeros(ordered.shape[0], rows + -rows % r, self.taps)
        padded[:, :rows] = ordered
        counts = padded.view(ordered.shape[0], -1, r, self.taps).sum(2, dtype=torch.int32)
        return counts.flatten(1) if self.channels_last else counts.sum(2, dtype=torch.int32)

    @staticmethod
    def _by_column(mask: Tensor) -> Tensor:
        """``[rows, cols, *kernel]`` as ``[cols, rows, taps]``."""
        return mask.transpose(0, 1).reshape(mask.shape[1], mask.shape[0], math.prod(mask.shape[2:]))

    def result(self) -> Reordering:
        before = live_blocks(self.mask, self.block, None, None, self.channels_last)
        after = live_blocks(self.mask, self.block, self.rows, self.cols, self.channels_last)
        counts = [int((blocks > 0).sum()) for blocks in (before, after)]
        # Squares: as many weights in as many blocks, but more unevenly.
        fuller = int(after.square().sum()) > int(before.square().sum())
        if counts[1] > counts[0] or (counts[1] == counts[0] and not fuller):
            self.rows, self.cols = torch.arange(self.rows.numel()), torch.arange(self.cols.numel())
            counts[1] = counts[0]
        orders = self.rows.to(self.device), self.cols.to(self.device)
        return Reordering(*orders, self.block, counts[0], counts[1], self.channels_last)


def _occupied(member: Member, order: Tensor) -> int:
    """Live blocks of a member under an order."""
    features = member.features.cpu().index_select(0, order)
    return int(to_blocks(features, (member.extent, 1), False).any(2).sum()) if features.numel() else 0


def _checked_seed(seed: object) -> int:
    if type(seed) is not int or not 0 <= seed < 1 << 64:
        raise ArgumentError(expected("seed", "an int in [0, 2**64)", seed))
    return seed


def _checked_member(member: Member | tuple[Tensor, int, float], name: str, size: int) -> Member:
    if not isinstance(member, tuple) or len(member) not in (2, 3):
        raise ArgumentTypeError(expected(name, "a Member (features, extent, weight)", type(member).__name__))
    features, extent, weight = made = Member(*member)
    if not isinstance(features, Tensor) or features.dtype != torch.bool:
        got = str(features.dtype) if isinstance(features, Tensor) else type(features).__name__
        raise ArgumentTypeError(expected(f"{name}.features", "a bool tensor", got))
    if features.dim() != 2 or features.shape[0] != size:
        raise ArgumentError(expected(f"{name}.features", f"shape [{size}, m]", list(features.shape)))
    if type(extent) is not int or extent < 1:
        raise ArgumentError(expected(f"{name}.extent", "a positive int", extent))
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise ArgumentError(expected(f"{name}.weight", "a positive number", weight))
    return made

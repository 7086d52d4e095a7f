"""2:4, semi-structured: of every four consecutive weights in a row of the matrix view exactly two are stored.

``values`` is ``[rows, cols / 2]``: slots ``2 g`` and ``2 g + 1`` of a row hold two weights of group ``g``, columns
``4 g`` to ``4 g + 3``, in ascending order. That is the operand of the sparse tensor cores (NVIDIA, compute capability
8.0 and later) as it is: beside it they want only which two of four it holds, two bits a value, which the mask alone
decides. A group with fewer than two live weights stores slots that are not live; what they hold counts as zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats.layout import Layout, check_mask, matrix_view

__all__ = ["SemiStructured", "fits"]

#: Weights in a group, and how many of them are stored.
GROUP, STORED = 4, 2

#: The kernels' metadata comes in tiles of so many rows and columns of the dense matrix.
TILE = (32, 64)


@dataclass(frozen=True, eq=False, repr=False)
class SemiStructured(Layout):
    """Which two weights of every group are stored, for kernels and for everything else.

    Attributes:
        positions: ``[rows, ceil(groups / 2)]`` uint8 with ``groups = cols / 4``; two groups to a byte, the first in the
            low half: its first slot's column inside the group plus four times that of its second slot.
        value_mask: ``[rows, cols / 2]`` bool; False where a slot is not a live weight. Empty when all are live.
        meta: ``[rows, cols / 16]`` int16, the same positions in the order in which CUTLASS's sparse product for 16-bit
            operands reads them. Empty unless ``rows`` is a multiple of 32 and ``cols`` of 64.
        meta_t: ``[cols, rows / 16]`` int16, that of the transposed matrix, for a mask that is 2:4 along the columns,
            too ("transposable"), where ``cols`` is a multiple of 32 and ``rows`` of 64. Else empty.
        perm_t: ``[cols * rows / 2]`` int32 beside ``meta_t``: the position in ``values`` of the k-th value of the
            transposed matrix. One whose slot is not live points at a slot of ``values`` that is not live either.
        live: number of live weights.
    """

    kind: ClassVar[str] = "2:4"
    INDEX_NAMES: ClassVar[tuple[str, ...]] = ("positions", "value_mask", "meta", "meta_t", "perm_t")
    KEY_NAMES: ClassVar[tuple[str, ...]] = ("positions", "value_mask")

    positions: Tensor
    value_mask: Tensor
    meta: Tensor
    meta_t: Tensor
    perm_t: Tensor
    live: int = field(kw_only=True)

    @classmethod
    def from_mask(cls, mask: Tensor) -> SemiStructured:
        """Index of a mask that keeps at most two of every four consecutive weights of a row.

        Args:
            mask: bool, 2 to 4 dimensions; the groups are cut from its matrix view ``[rows, cols]``.

        Raises:
            ArgumentError: ``cols`` is no multiple of 4, or a group keeps more than two; the message says which.
        """
        flat = matrix_view(check_mask(mask))
        rows, cols = flat.shape
        if cols % GROUP:
            raise ArgumentError(
                expected("mask", f"in / groups * prod(kernel) a multiple of {GROUP} for layout='2:4'", str(cols))
            )
        groups = flat.reshape(rows, cols // GROUP, GROUP)
        _check_counts(groups)
        slots = _choose_slots(groups)
        live = groups.gather(2, slots).reshape(rows, cols // 2)
        nnz = int(live.sum())
        transposed = _transposed(flat, slots, live)
        # Empty when there is nothing to hide, as in BSR.
        value_mask = live.new_empty(0) if nnz == live.numel() else live
        return cls(tuple(mask.shape), _pack(slots), value_mask, _metadata(slots), *transposed, live=nnz)

    def with_index(self, index: tuple[Tensor, ...]) -> SemiStructured:
        return SemiStructured(self.shape, *index, live=self.live)

    @property
    def nnz(self) -> int:
        return self.live

    @property
    def values_shape(self) -> tuple[int, ...]:
        return (self.rows, self.cols // 2)

    def slots(self) -> Tensor:
        """``[rows, groups, 2]`` int64: the columns inside its group that each slot holds, ascending."""
        return _unpack(self.positions, self.cols // GROUP)

    def gather(self, dense: Tensor) -> Tensor:
        self.check_dense(dense)
        groups = dense.reshape(self.rows, self.cols // GROUP, GROUP)
        values = groups.gather(2, self.slots()).reshape(self.values_shape)
        return values * self.value_mask if self.value_mask.numel() else values

    def scatter(self, values: Tensor) -> Tensor:
        self.check_values(values)
        return self._scattered(values * self.value_mask if self.value_mask.numel() else values)

    def mask(self) -> Tensor:
        live = self.value_mask
        if not live.numel():
            live = torch.ones(self.values_shape, dtype=torch.bool, device=self.device)
        return self._scattered(live)

    def validate(self) -> None:
        rows, groups = self.rows, self.cols // GROUP
        if self.cols % GROUP:
            raise ArgumentError(expected("shape", f"a multiple of {GROUP} columns", str(self.cols)))
        wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]]
        wanted = {"positions": (torch.uint8, (rows, -(-groups // 2)))}
        if self.value_mask.numel() or self.value_mask.dtype != torch.bool:
            wanted["value_mask"] = (torch.bool, self.values_shape)
        for name, (dtype, shape) in wanted.items():
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                raise ArgumentError(expected(name, f"{dtype} {list(shape)}", f"{tensor.dtype} {list(tensor.shape)}"))
        truth = SemiStructured.from_mask(self.mask())
        for name in self.INDEX_NAMES:
            found, right = getattr(self, name), getattr(truth, name)
            if found.dtype != right.dtype or not torch.equal(found, right):
                raise ArgumentError(expected(name, "what follows from the mask", "something else"))
        if self.live != truth.live:
            raise ArgumentError(expected("live", f"{truth.live}, the live slots", self.live))

    def _scattered(self, values: Tensor) -> Tensor:
        groups = values.new_zeros(self.rows, self.cols // GROUP, GROUP)
        return groups.scatter(2, self.slots(), values.reshape(self.rows, self.cols // GROUP, STORED)).view(self.shape)


def _check_counts(groups: Tensor) -> None:
    """Refuse groups ``[rows, groups, 4]`` that keep more than two weights."""
    counts = groups.sum(2)
    full = (counts > STORED).nonzero()
    if len(full):
        row, group = full[0].tolist()
        kept = int(counts[row, group])
        others = f", and more than {STORED} in {len(full) - 1} other groups" if len(full) > 1 else ""
        raise ArgumentError(
            expected(
                "mask",
                f"at most {STORED} weights kept in every {GROUP} consecutive ones of a row",
                f"{kept} in group {group} of row {row} (columns {GROUP * group} to {GROUP * group + 3}){others}",
            )
        )


def _choose_slots(groups: Tensor) -> Tensor:
    """``[rows, groups, 2]`` int64, ascending: the live columns of each group of a bool ``[rows, groups, 4]``.

    A group that lacks one takes column 2, or 3 where 2 is live; one that lacks both takes 2 and 3. Any would do. These
    are what torch's conversion takes for zeros, so that its metadata and this one are the same.
    """
    table = []
    for pattern in range(1 << GROUP):
        kept = [column for column in range(GROUP) if pattern >> column & 1]
        table.append(sorted((kept + [column for column in (2, 3) if column not in kept])[:STORED]))
    bits = torch.tensor([1, 2, 4, 8], dtype=torch.uint8, device=groups.device)
    patterns = (groups.to(torch.uint8) * bits).sum(2, dtype=torch.int64)
    return torch.tensor(table, device=groups.device)[patterns]


def _pack(slots: Tensor) -> Tensor:
    """Slots ``[rows, groups, 2]`` as ``positions``."""
    codes = _codes(slots)
    rows, groups = codes.shape
    padded = codes.new_zeros(rows, groups + groups % 2)
    padded[:, :groups] = codes
    return (padded[:, 0::2] + 16 * padded[:, 1::2]).to(torch.uint8)


def _unpack(positions: Tensor, groups: int) -> Tensor:
    """``positions`` as slots ``[rows, groups, 2]`` int64."""
    shifts = torch.tensor([[0, 2], [4, 6]], dtype=torch.uint8, device=positions.device)
    slots = (positions[:, :, None, None] >> shifts) & 3
    return slots.flatten(1, 2)[:, :groups].to(torch.int64)


def _codes(slots: Tensor) -> Tensor:
    """Four bits a group, int32 ``[rows, groups]``: the first slot's column, and the second's times four."""
    return (slots[..., 0] + GROUP * slots[..., 1]).to(torch.int32)


def fits(rows: int, cols: int) -> bool:
    """Whether there is metadata, and so a kernel, for a matrix of this size."""
    return rows > 0 and cols > 0 and rows % TILE[0] == 0 and cols % TILE[1] == 0


def _metadata(slots: Tensor) -> Tensor:
    """Slots ``[rows, groups, 2]`` as ``meta``: 16 bits hold four groups, in the order of CUTLASS.

    Of 32 rows, those 8 apart come together. Of every two rows and two columns of that, the off-diagonal pair is
    exchanged. Then pairs of columns are stored one after another, as ``ColumnMajorInterleaved<2>`` has it.
    """
    rows, groups = slots.shape[:2]
    if not fits(rows, GROUP * groups):
        return slots.new_empty(0, dtype=torch.int16)
    places = torch.tensor([1, 16, 256, 4096], dtype=torch.int32, device=slots.device)
    words = (_codes(slots).view(rows, groups // 4, 4) * places).sum(2)
    words = torch.where(words < 1 << 15, words, words - (1 << 16)).to(torch.int16)
    #     row  =  32 * tile + 16 * high + 8 * low + octet      column  =  2 * pair + side
    tiles = words.view(rows // 32, 2, 2, 8, groups // 8, 2)  # tile, high, low, octet, pair, side
    return tiles.permute(4, 0, 3, 1, 5, 2).reshape(rows, groups // 4)


def _transposed(flat: Tensor, slots: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """``meta_t`` and ``perm_t`` of a bool matrix whose own slots are these; empty unless it is transposable."""
    rows, cols = flat.shape
    nothing = slots.new_empty(0, dtype=torch.int16), slots.new_empty(0, dtype=torch.int32)
    if not fits(cols, rows):
        return nothing
    groups = flat.t().reshape(cols, rows // GROUP, GROUP)
    if bool((groups.sum(2) > STORED).any()):
        return nothing
    # Both matrices have numel / 2 slots: where one of the transposed is dead, there is a dead one here to point at.
    dead = int(live.reshape(-1).to(torch.uint8).argmin())
    places = torch.arange(live.numel(), device=flat.device)
    places = torch.where(live.reshape(-1), places, dead).view(rows, cols // GROUP, STORED)
    dense = places.new_full((rows, cols // GROUP, GROUP), dead).scatter(2, slots, places)
    slots_t = _choose_slots(groups)
    perm = dense.view(rows, cols).t().reshape(cols, rows // GROUP, GROUP).gather(2, slots_t)
    return _metadata(slots_t), perm.reshape(-1).to(torch.int32)

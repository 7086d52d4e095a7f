"""Dense: compact values expanded into a dense weight at every forward pass, for layers that no kernel speeds up.

The optimiser still sees live weights alone (no momentum or decay for pruned ones), and the product is torch's own dense
one. One bit per weight says which are live, so the index costs 1/32 of a float32 weight at any density. A layer that
keeps everything never reads it: its values are the dense weight, reshaped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats.layout import Layout, check_mask

__all__ = ["Dense"]

#: Weights between two entries of ``rank``; csrc/expand.h has the same number.
CHUNK = 4096


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Layout):
    """Which weights of the flattened dense tensor are live.

    Attributes:
        bits: ``[ceil(numel / 8)]`` uint8; bit ``i % 8`` of byte ``i // 8`` is set when weight i is kept.
        rank: ``[ceil(numel / 4096) + 1]`` int32; live weights before every 4096th, and last the number of all.
        live: number of live weights.
    """

    kind: ClassVar[str] = "dense"
    INDEX_NAMES: ClassVar[tuple[str, ...]] = ("bits", "rank")
    KEY_NAMES: ClassVar[tuple[str, ...]] = ("bits",)

    bits: Tensor
    rank: Tensor
    live: int = field(kw_only=True)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Dense:
        """Pack ``mask`` (bool, 2 to 4 dimensions, any device)."""
        flat = check_mask(mask).reshape(-1)
        return cls(tuple(mask.shape), _pack(flat), _rank(flat), live=int(flat.sum()))

    def with_index(self, index: tuple[Tensor, ...]) -> Dense:
        return Dense(self.shape, *index, live=self.live)

    @property
    def nnz(self) -> int:
        return self.live

    @property
    def values_shape(self) -> tuple[int, ...]:
        return (self.live,)

    def gather(self, dense: Tensor) -> Tensor:
        self.check_dense(dense)
        flat = dense.reshape(-1)
        return flat if self.live == self.numel else flat.index_select(0, self.flat_positions())

    def flat_positions(self) -> Tensor:
        """``[live]`` int64 positions of the live weights in the flattened dense tensor, ascending."""
        flat = _unpack(self.bits, self.numel)
        return flat.nonzero().view(-1) if flat.device.type == "cpu" else _static_nonzero(flat, self.live)

    def scatter(self, values: Tensor) -> Tensor:
        self.check_values(values)
        if self.live == self.numel:
            return values.view(self.shape)
        return values.new_zeros(self.shape).masked_scatter(self.mask(), values)

    def mask(self) -> Tensor:
        return _unpack(self.bits, self.numel).view(self.shape)

    def validate(self) -> None:
        for name, dtype, length in (
            ("bits", torch.uint8, -(-self.numel // 8)),
            ("rank", torch.int32, -(-self.numel // CHUNK) + 1),
        ):
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != dtype or tuple(tensor.shape) != (length,):
                raise ArgumentError(expected(name, f"{dtype} [{length}]", f"{tensor.dtype} {list(tensor.shape)}"))
        flat = _unpack(self.bits, self.numel)
        if not torch.equal(_pack(flat), self.bits):
            raise ArgumentError(expected("bits", "zeros past the last weight", "set bits"))
        if not torch.equal(_rank(flat), self.rank):
            raise ArgumentError(expected("rank", "the running count of set bits", "other numbers"))
        if self.live != int(flat.sum()):
            raise ArgumentError(expected("live", f"{int(flat.sum())}, the number of set bits", self.live))


def _static_nonzero(flat: Tensor, live: int) -> Tensor:
    """Positions of the ``live`` True entries of a bool vector, without waiting for a device to count them."""
    # A scatter in which all False entries share one place too many. masked_fill, as `where` would copy a scalar over.
    place = (flat.cumsum(0) - 1).masked_fill_(~flat, live)
    positions = place.new_zeros(live + 1)
    return positions.scatter_(0, place, torch.arange(flat.numel(), device=flat.device))[:live]


def _pack(flat: Tensor) -> Tensor:
    """Eight bools to a byte, the first in the lowest bit."""
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=flat.device)
    return (_grouped(flat, 8).to(torch.uint8) * powers).sum(1, dtype=torch.uint8)


def _unpack(bits: Tensor, numel: int) -> Tensor:
    """The first ``numel`` bits as bools."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, None] >> shifts) & 1).reshape(-1)[:numel].to(torch.bool)


def _rank(flat: Tensor) -> Tensor:
    """int32 count of True before each chunk, and of all at the end."""
    rank = torch.zeros(-(-flat.numel() // CHUNK) + 1, dtype=torch.int32, device=flat.device)
    torch.cumsum(_grouped(flat, CHUNK).sum(1), 0, dtype=torch.int32, out=rank[1:])
    return rank


def _grouped(flat: Tensor, size: int) -> Tensor:
    """``[ceil(n / size), size]``, padded with False."""
    groups = math.ceil(flat.numel() / size)
    padded = flat.new_zeros(groups * size)  # F.pad of torch 2.8 refuses empty tensors
    padded[: flat.numel()] = flat
    return padded.view(groups, size)

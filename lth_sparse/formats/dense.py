"""Dense: compact values scattered into a dense weight at every forward pass, for layers that no kernel speeds up.

The optimiser still sees live weights alone (no momentum or decay for pruned ones), and the product is torch's own dense
one. A layer that keeps everything needs no index at all: its values are the dense weight, reshaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats.layout import Layout, check_mask

__all__ = ["Dense"]


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Layout):
    """Positions of the live weights in the flattened dense tensor.

    Attributes:
        flat_indices: ``[nnz]`` int32, strictly ascending. A layer that keeps all weights is recognised by
            ``nnz == numel`` and never reads them.
    """

    kind: ClassVar[str] = "dense"
    INDEX_NAMES: ClassVar[tuple[str, ...]] = ("flat_indices",)
    KEY_NAMES: ClassVar[tuple[str, ...]] = ("flat_indices",)

    flat_indices: Tensor

    @classmethod
    def from_mask(cls, mask: Tensor) -> Dense:
        """Index of the True positions of ``mask`` (bool, 2 to 4 dimensions, any device)."""
        flat = check_mask(mask).reshape(-1).nonzero()[:, 0]
        return cls(tuple(mask.shape), flat.to(torch.int32))

    def with_index(self, index: tuple[Tensor, ...]) -> Dense:
        return Dense(self.shape, *index)

    @property
    def nnz(self) -> int:
        return self.flat_indices.shape[0]

    @property
    def values_shape(self) -> tuple[int, ...]:
        return (self.nnz,)

    def gather(self, dense: Tensor) -> Tensor:
        self.check_dense(dense)
        if self.nnz == self.numel:
            return dense.reshape(-1)
        return dense.reshape(-1).index_select(0, self.flat_indices)

    def scatter(self, values: Tensor) -> Tensor:
        self.check_values(values)
        if self.nnz == self.numel:
            return values.view(self.shape)
        return values.new_zeros(self.numel).index_copy(0, self.flat_indices.to(torch.int64), values).view(self.shape)

    def mask(self) -> Tensor:
        flat = torch.zeros(self.numel, dtype=torch.bool, device=self.device)
        flat[self.flat_indices.to(torch.int64)] = True
        return flat.view(self.shape)

    def validate(self) -> None:
        self._check_index("flat_indices", self.nnz, 0, max(self.numel - 1, 0))
        if bool((self.flat_indices[1:] <= self.flat_indices[:-1]).any()):
            raise ArgumentError(expected("flat_indices", "strictly ascending positions", "a repeat or descent"))

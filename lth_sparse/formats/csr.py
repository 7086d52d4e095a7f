"""CSR, compressed sparse rows: single weights anywhere, the layout of an unstructured ticket.

``values`` is ``[nnz]`` in row-major order. The transposed index (CSC) is kept beside it, because the input gradient and
the weight gradient walk the matrix by columns; the values themselves are never copied, they are read through ``perm``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats.layout import Layout, check_mask, compressed, matrix_view, transpose_compressed

__all__ = ["CSR"]

#: A 16-bit index counts 65,536 positions.
NARROW_LIMIT = 1 << 16


@dataclass(frozen=True, eq=False, repr=False)
class CSR(Layout):
    """Index tensors of a CSR matrix and of its transpose.

    Attributes:
        crow_indices: ``[rows + 1]`` int32; row ``r`` owns entries ``crow_indices[r]`` to ``crow_indices[r + 1] - 1``.
        col_indices: ``[nnz]`` int32 (uint16 after :meth:`narrow`), ascending inside a row.
        ccol_indices: ``[cols + 1]`` int32; the same for columns.
        row_indices: ``[nnz]`` int32 (uint16 after :meth:`narrow`), column-major order, ascending inside a column.
        perm: ``[nnz]`` int32; row-major position of the k-th entry in column-major order.
    """

    kind: ClassVar[str] = "csr"
    INDEX_NAMES: ClassVar[tuple[str, ...]] = ("crow_indices", "col_indices", "ccol_indices", "row_indices", "perm")
    KEY_NAMES: ClassVar[tuple[str, ...]] = ("crow_indices", "col_indices")

    crow_indices: Tensor
    col_indices: Tensor
    ccol_indices: Tensor
    row_indices: Tensor
    perm: Tensor

    @classmethod
    def from_mask(cls, mask: Tensor) -> CSR:
        """Index of the True positions of ``mask`` (bool, 2 to 4 dimensions, any device)."""
        flat = matrix_view(check_mask(mask))
        return cls.from_compressed(tuple(mask.shape), *compressed(flat))

    @classmethod
    def from_compressed(cls, shape: tuple[int, ...], crow_indices: Tensor, col_indices: Tensor) -> CSR:
        """Complete a row-major index with its transpose. ``validate()`` it when it comes from outside."""
        transposed = transpose_compressed(crow_indices, col_indices, math.prod(shape[1:]))
        return cls(shape, crow_indices, col_indices, *transposed)

    def with_index(self, index: tuple[Tensor, ...]) -> CSR:
        return CSR(self.shape, *index)

    def narrow(self) -> CSR:
        """The same index with 16-bit ``col_indices`` and ``row_indices`` where they fit, else itself.

        CPU kernels stream the index once per strip of activations: 16 bits halve that traffic.
        """
        if self.col_indices.dtype == torch.uint16 or max(self.rows, self.cols) > NARROW_LIMIT:
            return self
        col, row = self.col_indices.to(torch.uint16), self.row_indices.to(torch.uint16)
        return CSR(self.shape, self.crow_indices, col, self.ccol_indices, row, self.perm)

    @property
    def nnz(self) -> int:
        return self.col_indices.shape[0]

    @property
    def values_shape(self) -> tuple[int, ...]:
        return (self.nnz,)

    def flat_positions(self) -> Tensor:
        """``[nnz]`` int64 positions of the live weights in the flattened dense tensor, row-major."""
        counts = self.crow_indices.diff().to(torch.int64)
        row = torch.repeat_interleave(torch.arange(self.rows, device=self.device), counts, output_size=self.nnz)
        return row * self.cols + self.col_indices.to(torch.int64)

    def gather(self, dense: Tensor) -> Tensor:
        self.check_dense(dense)
        return dense.reshape(-1).index_select(0, self.flat_positions())

    def scatter(self, values: Tensor) -> Tensor:
        self.check_values(values)
        return values.new_zeros(self.numel).index_copy(0, self.flat_positions(), values).view(self.shape)

    def mask(self) -> Tensor:
        flat = torch.zeros(self.numel, dtype=torch.bool, device=self.device)
        flat[self.flat_positions()] = True
        return flat.view(self.shape)

    def validate(self) -> None:
        nnz = self.nnz
        self._check_index("crow_indices", self.rows + 1, 0, nnz, ascending=True)
        self._check_index("col_indices", nnz, 0, max(self.cols - 1, 0))
        if int(self.crow_indices[0]) != 0 or int(self.crow_indices[-1]) != nnz:
            ends = f"{int(self.crow_indices[0])} and {int(self.crow_indices[-1])}"
            raise ArgumentError(expected("crow_indices", f"0 first and nnz = {nnz} last", ends))
        positions = self.flat_positions()
        if bool((positions[1:] <= positions[:-1]).any()):
            raise ArgumentError(
                expected("col_indices", "strictly ascending columns inside each row", "a repeat or descent")
            )
        truth = transpose_compressed(self.crow_indices, self.col_indices, self.cols)
        for name, right in zip(("ccol_indices", "row_indices", "perm"), truth, strict=True):
            self._check_index(name, right.numel(), 0, 2**31 - 1)
            if not torch.equal(getattr(self, name).to(torch.int32), right):
                raise ArgumentError(expected(name, "the transpose of crow_indices and col_indices", "another matrix"))

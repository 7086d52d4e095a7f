"""torch's products for 2:4 operands, emulated on the CPU with the demands of the real ones.

What CUTLASS's kernel wants of its operands is checked as torch and CUTLASS check it; the product itself is that of the
matrix which torch's own conversion reads out of values and reordered metadata. cuSPARSELt's buffer is emulated as
values in an order of its own followed by that metadata.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from lth_sparse.ops import cuda_semi, cusparselt
from lth_sparse.ops.backend import kernel_or_reference
from lth_sparse.ops.schemas import OPS
from lth_sparse.ops.sparse_cores import SEMI_DTYPES

HALVES = (torch.float16, torch.bfloat16)


def check_operands(values: Tensor, dense: Tensor, bias: Tensor | None) -> None:
    assert values.dtype == dense.dtype
    assert values.dtype in HALVES
    assert dense.dim() == 2
    assert 1 in dense.stride()
    leading = dense.stride(0) if dense.stride(1) == 1 else dense.stride(1)
    assert leading % 8 == 0
    assert dense.shape[1] % 8 == 0
    assert dense.shape[1] > 0
    assert values.data_ptr() % 16 == dense.data_ptr() % 16 == 0
    if bias is not None:
        assert bias.dtype == dense.dtype
        assert bias.is_contiguous()
        assert bias.data_ptr() % 16 == 0


def product(matrix: Tensor, dense: Tensor, bias: Tensor | None) -> Tensor:
    """Row-major, with a float32 sum."""
    y = matrix.float() @ dense.float()
    return (y if bias is None else y + bias.float()[:, None]).to(dense.dtype)


def cutlass_mm(values: Tensor, meta: Tensor, dense: Tensor, bias: Tensor | None = None) -> Tensor:
    check_operands(values, dense, bias)
    rows, half = values.shape
    assert values.is_contiguous()
    assert dense.shape[0] == 2 * half
    assert rows % 32 == half % 32 == 0
    assert meta.dtype == torch.int16
    assert meta.shape == (rows, half // 8)
    return product(sparse_semi_structured_to_dense_cutlass(values, meta), dense, bias)


def cutlass_addmm(bias: Tensor, values: Tensor, meta: Tensor, dense: Tensor) -> Tensor:
    assert bias.shape == values.shape[:1]
    return cutlass_mm(values, meta, dense, bias)


class CuSparseLt:
    """The two operators, over buffers whose values lie in the order ``shuffle(count)``."""

    def __init__(self, shuffle: Callable[[int], Tensor], honest: bool = True) -> None:
        self.shuffle, self.honest = shuffle, honest
        self.compressions = 0

    def compress(self, dense: Tensor) -> Tensor:
        self.compressions += 1
        assert dense.is_contiguous()
        assert bool(((dense != 0).view(dense.shape[0], -1, 4).sum(2) == 2).all()), "which slots are stored is undefined"
        values, meta = sparse_semi_structured_from_dense_cutlass(dense)
        order = self.shuffle(values.numel())
        return torch.cat((values.flatten()[order], meta.view(-1).view(dense.dtype)))

    def mm(self, packed: Tensor, dense: Tensor, bias: Tensor | None = None, transpose_result: bool = False) -> Tensor:
        check_operands(packed, dense, bias)
        cols = dense.shape[0]
        rows = packed.numel() * 16 // 9 // cols
        count = rows * cols // 2
        values = packed.new_empty(count)
        values[self.shuffle(count)] = packed[:count]
        if not self.honest:
            values = values.flip(0)
        meta = packed[count:].view(torch.int16).view(rows, cols // 16)
        y = product(sparse_semi_structured_to_dense_cutlass(values.view(rows, -1), meta), dense, bias)
        return y.t().contiguous() if transpose_result else y


def in_order(count: int) -> Tensor:
    return torch.arange(count)


def by_tiles(count: int) -> Tensor:
    return torch.arange(count).view(8, -1).t().flatten()


def install(monkeypatch: pytest.MonkeyPatch, route: str | None, library: CuSparseLt | None = None) -> None:
    """Let 2:4 linear layers on the CPU run the CUDA implementation over emulated products."""
    for name, kernel in (("linear", cuda_semi._linear), ("linear_backward", cuda_semi._linear_backward)):
        full = f"linear_semi_structured{name.removeprefix('linear')}"
        monkeypatch.setattr(getattr(OPS["2:4"], name), "cpu", kernel_or_reference(full, kernel, SEMI_DTYPES))
    monkeypatch.setattr(cuda_semi, "product_of", lambda _: route)
    monkeypatch.setattr(cusparselt, "_packings", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def unexpected(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("the other library was called")

    ours = {"_sparse_semi_structured_mm": cutlass_mm, "_sparse_semi_structured_addmm": cutlass_addmm}
    theirs = {"_cslt_compress": library.compress, "_cslt_sparse_mm": library.mm} if library is not None else {}
    for name in (*ours, "_cslt_compress", "_cslt_sparse_mm"):
        chosen = (ours if route == "cutlass" else theirs).get(name, unexpected)
        monkeypatch.setattr(torch, name, chosen)

"""csr_rebuild: the index after a change of the mask, against one made from the new mask, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lth_sparse import _C
from lth_sparse.formats import CSR
from lth_sparse.ops.rebuild import Rebuilt, rebuild, rebuild_reference

NAMES = ("crow_indices", "col_indices", "ccol_indices", "row_indices", "perm")


def problem(rows: int, cols: int, seed: int, narrow: bool) -> tuple[CSR, Tensor, Tensor, CSR, Tensor]:
    """A layout, which of its entries stay, what comes; the layout afterwards and the source of its entries.

    A third of the entries that go come again at once, as new ones.
    """
    generator = torch.Generator().manual_seed(seed)

    def coin(density: float) -> Tensor:
        return torch.rand(rows, cols, generator=generator) < density

    def share() -> float:
        return (0.0, 0.2, 0.7, 1.0)[int(torch.randint(4, (), generator=generator))]

    before, stays = coin(share()), coin(share())
    kept = before & stays
    comes = coin(share()) & ~kept
    before_layout, after_layout = CSR.from_mask(before), CSR.from_mask(kept | comes)
    number = before.flatten().cumsum(0) - 1
    source = torch.where(kept.flatten(), number, -1)[(kept | comes).flatten()]
    if narrow:
        before_layout, after_layout = before_layout.narrow(), after_layout.narrow()
    return before_layout, stays[before], comes.flatten().nonzero().view(-1), after_layout, source


def assert_right(made: Rebuilt, layout: CSR, source: Tensor) -> None:
    for name, found in zip(NAMES, made.index, strict=True):
        right = getattr(layout, name)
        assert found.dtype == right.dtype
        assert torch.equal(found.to(torch.int64), right.to(torch.int64)), name
    assert torch.equal(made.source.to(torch.int64), source)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 13), st.integers(0, 13), st.integers(0, 10**6), st.booleans())
def test_the_kernel_and_plain_torch_make_the_index_of_the_new_mask(
    rows: int, cols: int, seed: int, narrow: bool
) -> None:
    before, keep, grown, after, source = problem(rows, cols, seed, narrow)
    arguments = (before.crow_indices, before.col_indices, cols, keep, grown)
    assert_right(rebuild(*arguments), after, source)
    assert_right(rebuild_reference(*arguments), after, source)


@pytest.mark.parametrize(("rows", "cols"), [(300, 784), (3, 70_000), (65_536, 2)])
def test_the_kernel_makes_large_indices(rows: int, cols: int) -> None:
    before, keep, grown, after, source = problem(rows, cols, 3, True)
    assert_right(rebuild(before.crow_indices, before.col_indices, cols, keep, grown), after, source)


def call(bits: int = 32, **changes: Any) -> None:
    """A change of a 2x3 matrix of three entries, one of which goes for another, with some arguments replaced."""
    tensors = {
        "crow": torch.tensor([0, 2, 3], dtype=torch.int32),
        "col": torch.tensor([0, 2, 1], dtype=torch.int32),
        "keep": torch.tensor([1, 0, 1], dtype=torch.uint8),
        "grown": torch.tensor([1, 5]),
        "new_crow": torch.empty(3, dtype=torch.int32),
        "new_col": torch.empty(4, dtype=torch.int32),
        "new_ccol": torch.empty(4, dtype=torch.int32),
        "new_row": torch.empty(4, dtype=torch.int32),
        "new_perm": torch.empty(4, dtype=torch.int32),
        "source": torch.empty(4, dtype=torch.int32),
    }
    sizes = {"rows": 2, "cols": 3, "nnz": 3, "kept": 2, "grown_count": 2, "index_bits": bits}
    for name, value in changes.items():
        if isinstance(value, list):
            tensors[name] = torch.tensor(value, dtype=tensors[name].dtype)
        else:
            sizes[name] = value
    addresses = {name: 0 if name == changes.get("null") else tensor.data_ptr() for name, tensor in tensors.items()}
    sizes.pop("null", None)
    _C.csr_rebuild(**addresses, **sizes)


def test_the_change_that_the_refusals_start_from_is_fine() -> None:
    call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crow": [1, 2, 3]}, "crow: expected 0 first, got 1 at 0"),
        ({"crow": [0, 4, 3]}, "crow: expected ascending entries, got 3 at 2"),
        ({"crow": [0, 2, 2]}, "crow: expected nnz last, got 2 at 2"),
        ({"col": [2, 0, 1]}, "col: expected ascending columns below cols, got 0 at 1"),
        ({"col": [0, 3, 1]}, "col: expected ascending columns below cols, got 3 at 1"),
        ({"kept": 3}, "kept: expected 2, the number of flags set in keep, got 3"),
        ({"grown": [5, 1]}, "grown: expected ascending positions below rows \\* cols, got 1 at 1"),
        ({"grown": [1, 6]}, "grown: expected ascending positions below rows \\* cols, got 6 at 1"),
        ({"grown": [-1, 1]}, "grown: expected ascending positions below rows \\* cols, got -1 at 0"),
        ({"grown": [1, 4]}, "grown: expected positions of no entry that is kept, got 4 at 1"),
        ({"rows": -1}, "rows: expected at least 0, got -1"),
        ({"grown_count": -1}, "grown_count: expected at least 0, got -1"),
        ({"index_bits": 8}, "index_bits: expected 16 or 32, got 8"),
        ({"index_bits": 16, "cols": 65_537}, "index_bits: expected 32 for more than 65536 rows or columns, got 16"),
        ({"cols": 2**31}, "rows: expected rows \\* cols below 2\\^31"),
        *(({"null": name}, f"{name}: expected a pointer, got 0") for name in ("crow", "keep", "new_ccol", "source")),
    ],
)
def test_impossible_arguments_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call(**changes)

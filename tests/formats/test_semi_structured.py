"""The 2:4 layout: a lossless view of a mask with at most two of every four weights, with metadata as torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from semi_cases import semi_mask, transposable_mask
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from lth_sparse.errors import ArgumentError
from lth_sparse.formats import SemiStructured, make_layout

SHAPES = [(7, 12), (1, 4), (5, 0), (0, 8), (3, 20), (4, 4, 3), (6, 2, 3, 2), (32, 64)]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SHAPES), st.sampled_from([0.0, 0.3, 0.9, 1.0]), st.integers(0, 1000), st.sampled_from([False, True])
)
def test_gather_then_scatter_is_the_masked_dense_tensor(
    shape: tuple[int, ...], share: float, seed: int, random_padding: bool
) -> None:
    mask = semi_mask(shape, share, torch.Generator().manual_seed(seed))
    layout = SemiStructured.from_mask(mask)
    dense = torch.randn(shape, dtype=torch.float64)
    layout.validate()
    values = layout.gather(dense)
    if random_padding and layout.value_mask.numel():  # what a slot that is not live holds must not matter
        values = values + torch.randn_like(values) * ~layout.value_mask
    assert torch.equal(layout.scatter(values), dense * mask)
    assert torch.equal(layout.mask(), mask)
    assert layout.nnz == int(mask.sum())
    assert layout.nbytes == sum(tensor.nbytes for tensor in layout.index)


def test_values_are_two_of_four_in_ascending_order() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    layout = make_layout("2:4", mask)
    assert layout.values_shape == (2, 4)
    dense = torch.arange(1.0, 17.0).view(2, 8)
    assert layout.gather(dense).tolist() == [[2, 4, 5, 6], [0, 0, 0, 16]]
    assert (layout.nnz, layout.density) == (5, 5 / 16)
    assert "nnz=5" in repr(layout)


def test_two_bits_a_value_identify_the_mask() -> None:
    layout = SemiStructured.from_mask(semi_mask((8, 24), 1.0))
    assert {name: getattr(layout, name).nbytes for name in layout.KEY_NAMES} == {
        "positions": 8 * 12 * 2 // 8,
        "value_mask": 0,
    }


def test_the_gradient_of_scatter_is_gather_and_the_other_way_round() -> None:
    layout = SemiStructured.from_mask(semi_mask((6, 12), 0.8))
    values = layout.gather(torch.randn(6, 12)).requires_grad_()
    upstream, dense = torch.randn(6, 12), torch.randn(6, 12, requires_grad=True)
    (grad,) = torch.autograd.grad(layout.scatter(values), values, upstream)
    assert torch.equal(grad, layout.gather(upstream))
    (grad,) = torch.autograd.grad(layout.gather(dense), dense, values.detach())
    assert torch.equal(grad, layout.scatter(values.detach()))


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(32, 64), (64, 128), (96, 64), (32, 192), (160, 320)])
def test_values_and_metadata_are_those_of_torch_bit_for_bit(
    shape: tuple[int, int], share: float, dtype: torch.dtype
) -> None:
    mask = semi_mask(shape, share)
    dense = (torch.rand(shape) + 0.5).to(dtype) * mask  # no live zeros, which torch would take for pruned
    layout = SemiStructured.from_mask(mask)
    values, meta = sparse_semi_structured_from_dense_cutlass(dense)
    assert layout.meta.dtype == meta.dtype
    assert torch.equal(layout.meta, meta)
    assert torch.equal(layout.gather(dense), values)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(layout.gather(dense), layout.meta), dense)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(64, 32), (64, 64), (128, 64), (64, 192)])
def test_a_transposable_mask_has_the_transposes_metadata(shape: tuple[int, int], share: float) -> None:
    mask = transposable_mask(shape, share)
    layout = SemiStructured.from_mask(mask)
    layout.validate()
    dense = torch.randn(shape).half() * mask
    values = layout.gather(dense)
    transposed = values.flatten().index_select(0, layout.perm_t).view(shape[1], shape[0] // 2)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(transposed, layout.meta_t), dense.t())


def test_no_metadata_where_no_kernel_takes_the_shape_or_the_transpose() -> None:
    for shape in ((16, 64), (32, 32), (33, 64), (32, 68), (0, 64), (32, 0)):
        assert SemiStructured.from_mask(semi_mask(shape, 1.0)).meta.numel() == 0
    rows_only = SemiStructured.from_mask(torch.tensor([[True, True, False, False]]).repeat(64, 32))
    assert (rows_only.meta.numel(), rows_only.meta_t.numel(), rows_only.perm_t.numel()) == (64 * 8, 0, 0)
    assert SemiStructured.from_mask(transposable_mask((32, 64), 1.0)).meta_t.numel() == 0


def test_a_group_with_three_weights_is_refused_by_row_and_columns() -> None:
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[1, 4:7] = True
    message = r"mask: expected at most 2 weights kept in every 4 .*, got 3 in group 1 of row 1 \(columns 4 to 7\)$"
    with pytest.raises(ArgumentError, match=message):
        SemiStructured.from_mask(mask)
    mask[2, 8:] = True
    with pytest.raises(ArgumentError, match=r"and more than 2 in 1 other groups$"):
        SemiStructured.from_mask(mask)


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 3, 3), (2, 1)])
def test_rows_of_another_length_than_a_multiple_of_four_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"mask: expected .* a multiple of 4 for layout='2:4', got \d+"):
        SemiStructured.from_mask(torch.zeros(shape, dtype=torch.bool))


@pytest.mark.parametrize("option", [{"block": (2, 2)}, {"cover": "zeros"}])
def test_block_and_cover_are_refused(option: dict) -> None:
    with pytest.raises(ArgumentError, match="expected None with layout='2:4'"):
        make_layout("2:4", torch.zeros(4, 4, dtype=torch.bool), **option)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("positions", lambda t: t[1:]),
        ("positions", lambda t: t.to(torch.int32)),
        ("positions", torch.zeros_like),
        ("positions", lambda t: t ^ 0b0001),
        ("value_mask", lambda t: t[1:]),
        ("value_mask", lambda t: t.to(torch.uint8)),
        ("meta", lambda t: t.flip(0)),
        ("meta", lambda t: t.new_empty(0)),
        ("meta_t", lambda t: t.flip(0)),
        ("perm_t", lambda t: t.flip(0)),
        ("perm_t", lambda t: t.long()),
    ],
)
@pytest.mark.usefixtures("seed")
def test_validate_names_the_damaged_field(field: str, change: Callable[[Tensor], Tensor]) -> None:
    layout = SemiStructured.from_mask(transposable_mask((64, 64), 0.6))
    layout.validate()
    with pytest.raises(ArgumentError, match=field):
        replace(layout, **{field: change(getattr(layout, field).clone())}).validate()


def test_validate_counts_the_live_slots() -> None:
    layout = SemiStructured.from_mask(semi_mask((4, 8), 0.5))
    with pytest.raises(ArgumentError, match="live: expected"):
        replace(layout, live=layout.live + 1).validate()

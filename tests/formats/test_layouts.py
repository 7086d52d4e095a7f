"""Every layout is a lossless view of a masked dense tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_cases import shuffled as reordered
from torch import Tensor

from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.formats import BSR, CSR, LAYOUTS, Dense, Layout, Reordered, make_layout
from lth_sparse.formats.dense import _static_nonzero

MAKERS: dict[str, Callable[[Tensor], Layout]] = {
    "csr": CSR.from_mask,
    "csr_narrow": lambda mask: CSR.from_mask(mask).narrow(),
    "bsr": lambda mask: BSR.from_mask(mask, (2, 3), "zeros"),
    "bsr_1x1": lambda mask: BSR.from_mask(mask, (1, 1)),
    "bsr_channels_last": lambda mask: BSR.from_mask(mask, (2, 3), "zeros", channels_last=True),
    "reordered": lambda mask: reordered(mask, (2, 3)),
    "reordered_searched": lambda mask: Reordered.from_mask(mask, (2, 3), "zeros"),
    "reordered_channels_last": lambda mask: reordered(mask, (2, 3), channels_last=True),
    "dense": Dense.from_mask,
}

SHAPES = [(7, 5), (1, 1), (5, 0), (0, 3), (4, 3, 3), (6, 2, 3, 2), (8, 12)]


def masks() -> st.SearchStrategy[Tensor]:
    """Masks of random shape and density, rows and columns without weights among them."""

    def draw(shape: tuple[int, ...], density: float, seed: int) -> Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density

    sizes = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)
    return st.builds(draw, sizes, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 1000))


@pytest.mark.parametrize("maker", MAKERS)
@settings(max_examples=40, deadline=None)
@given(mask=masks())
def test_gather_then_scatter_is_the_masked_dense_tensor(maker: str, mask: Tensor) -> None:
    layout = MAKERS[maker](mask)
    dense = torch.randn(mask.shape, dtype=torch.float64)
    layout.validate()
    assert torch.equal(layout.scatter(layout.gather(dense)), dense * mask)
    assert torch.equal(layout.mask(), mask)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("maker", MAKERS)
def test_counts_and_shapes_agree_with_the_mask(maker: str, shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) < 0.4
    layout = MAKERS[maker](mask)
    assert layout.nnz == int(mask.sum())
    assert layout.density == pytest.approx(layout.nnz / max(mask.numel(), 1))
    assert layout.shape == shape
    assert tuple(layout.gather(torch.randn(shape)).shape) == layout.values_shape
    assert layout.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in layout.index)
    assert len(layout.index) == len(layout.INDEX_NAMES)
    assert repr(layout.nnz) in repr(layout)


@pytest.mark.parametrize("maker", MAKERS)
def test_gradient_of_scatter_is_gather(maker: str) -> None:
    mask = torch.rand(7, 5) < 0.4
    layout = MAKERS[maker](mask)
    values = layout.gather(torch.randn(7, 5)).requires_grad_()
    upstream = torch.randn(7, 5)
    (grad,) = torch.autograd.grad(layout.scatter(values), values, upstream)
    assert torch.equal(grad, layout.gather(upstream))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_csr_index_is_that_of_torch() -> None:
    mask = torch.rand(13, 9) < 0.3
    theirs = mask.to(torch.float32).to_sparse_csr()
    ours = CSR.from_mask(mask)
    assert torch.equal(ours.crow_indices.long(), theirs.crow_indices())
    assert torch.equal(ours.col_indices.long(), theirs.col_indices())


def test_csr_perm_reads_the_values_column_by_column() -> None:
    dense = torch.randn(13, 9) * (torch.rand(13, 9) < 0.3)
    layout = CSR.from_mask(dense != 0)
    transposed = CSR.from_mask(dense.t() != 0)
    assert torch.equal(layout.gather(dense)[layout.perm.long()], transposed.gather(dense.t().contiguous()))
    assert torch.equal(layout.ccol_indices, transposed.crow_indices)
    assert torch.equal(layout.row_indices, transposed.col_indices)


def test_csr_narrow_halves_positions_and_keeps_wide_matrices_as_they_are() -> None:
    layout = CSR.from_mask(torch.rand(5, 6) < 0.5)
    assert layout.narrow().col_indices.dtype == torch.uint16
    assert layout.narrow().nbytes == layout.nbytes - 4 * layout.nnz
    wide = CSR.from_mask(torch.rand(1, 65_537) < 0.01)
    assert wide.narrow() is wide


def test_index_tensors_are_int32() -> None:
    mask = torch.rand(6, 8) < 0.5
    for layout in (CSR.from_mask(mask), BSR.from_mask(mask, (2, 2), "zeros")):
        assert {
            tensor.dtype for name, tensor in zip(layout.INDEX_NAMES, layout.index, strict=True) if name != "value_mask"
        } == {torch.int32}


def test_bsr_refuses_a_mask_that_is_no_union_of_blocks() -> None:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 0] = True
    with pytest.raises(ArgumentError, match=r"mask: expected a union of 2x2 blocks, got 3 pruned weights.*cover="):
        BSR.from_mask(mask, (2, 2))


def test_bsr_accepts_a_union_of_blocks_with_ragged_edges() -> None:
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[4:, 6:] = True
    layout = BSR.from_mask(mask, (2, 2))
    assert (layout.nblocks, layout.nnz) == (1, 1)
    assert torch.equal(layout.mask(), mask)


def test_bsr_cover_train_adds_the_padding_inside_the_matrix_to_the_mask() -> None:
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[2, 2] = mask[0, 0] = True
    layout = BSR.from_mask(mask, (2, 2), "train")
    layout.validate()
    expected = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    assert torch.equal(layout.mask(), expected)


def test_bsr_cover_zeros_keeps_padding_out_of_the_dense_weight_whatever_the_values_hold() -> None:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1, 2] = True
    layout = BSR.from_mask(mask, (2, 2), "zeros")
    assert int((layout.scatter(torch.ones(layout.values_shape)) != 0).sum()) == 1


def test_bsr_channels_last_blocks_are_consecutive_channels_of_one_tap() -> None:
    mask = torch.zeros(4, 5, 3, 3, dtype=torch.bool)
    mask[2:, 3:, 1, 2] = True  # the second and last channel block, of which one channel is padding, at tap 5
    layout = BSR.from_mask(mask, (2, 3), channels_last=True)
    assert (layout.nblocks, layout.nnz, layout.grid) == (1, 4, (2, 9 * 2))
    assert layout.col_indices.tolist() == [5 * 2 + 1]
    assert "channels_last=True" in repr(layout)
    with pytest.raises(ArgumentError, match="a union of 2x3 blocks of consecutive channels, got"):
        BSR.from_mask(mask.transpose(1, 2).reshape(mask.shape), (2, 3), channels_last=True)


def test_bsr_channels_last_transposed_index_is_that_of_the_weight_with_its_channels_exchanged() -> None:
    """Of [in, *kernel, out]: by channel block, tap and block row."""
    weight = torch.randn(7, 5, 3, 2)
    layout = BSR.from_mask(torch.rand(weight.shape) < 0.3, (2, 3), "zeros", channels_last=True)
    blocks, entry = layout.gather(weight), 0
    for part in range(2):
        for tap in range(6):
            start, end = layout.ccol_indices[part * 6 + tap : part * 6 + tap + 2].tolist()
            assert start == entry
            for entry in range(start, end):
                row = int(layout.row_indices[entry]) - tap * 4
                here = torch.zeros(2, 3)
                real = weight[2 * row : 2 * row + 2, 3 * part : 3 * part + 3, tap // 2, tap % 2]
                here[: real.shape[0], : real.shape[1]] = real
                block = blocks[int(layout.perm[entry])]
                assert torch.equal(block, here * (block != 0))
            entry = end
    assert entry == layout.nblocks > 20


def test_bsr_of_a_matrix_has_one_order() -> None:
    layout = BSR.from_mask(torch.ones(4, 4, dtype=torch.bool), (2, 2), channels_last=True)
    assert not layout.channels_last
    assert not replace(layout, channels_last=True).channels_last
    assert "channels_last" not in repr(layout)


def test_bsr_channels_last_survives_a_copy() -> None:
    layout = MAKERS["bsr_channels_last"](torch.rand(4, 3, 3, 3) < 0.3)
    assert layout.with_index(layout.index).channels_last
    assert layout.to("meta").channels_last


def test_moving_a_layout_to_its_own_device_changes_nothing() -> None:
    for maker in MAKERS.values():
        layout = maker(torch.rand(3, 4) < 0.5)
        assert layout.to("cpu") is layout


@pytest.mark.parametrize("maker", MAKERS)
def test_a_moved_layout_says_the_same_and_has_no_16_bit_indices(maker: str) -> None:
    layout = MAKERS[maker](torch.rand(6, 4) < 0.5)
    moved = layout.to("meta")
    assert repr(moved) == repr(layout)
    for there, here in zip(moved.index, layout.index, strict=True):
        assert there.is_meta
        assert there.shape == here.shape
        assert there.dtype == (torch.int32 if here.dtype == torch.uint16 else here.dtype)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_positions_are_found_without_counting(density: float) -> None:
    flat = torch.rand(9001) < density
    assert torch.equal(_static_nonzero(flat, int(flat.sum())), flat.nonzero().view(-1))
    layout = Dense.from_mask(flat[:9000].view(90, 100))
    assert torch.equal(layout.flat_positions(), flat[:9000].nonzero().view(-1))


def damaged(layout: Layout, field: str, change: Callable[[Tensor], Tensor]) -> Layout:
    return replace(layout, **{field: change(getattr(layout, field).clone())})


def swapped(tensor: Tensor) -> Tensor:
    return tensor.flip(0)


@pytest.mark.parametrize(
    ("maker", "field", "change"),
    [
        ("csr", "crow_indices", lambda t: t[:-1]),
        ("csr", "crow_indices", lambda t: t + 1),
        ("csr", "crow_indices", swapped),
        ("csr", "col_indices", lambda t: t + 100),
        ("csr", "col_indices", lambda t: t - 100),
        ("csr", "col_indices", swapped),
        ("csr", "col_indices", lambda t: t.long()),
        ("csr", "ccol_indices", lambda t: t[1:]),
        ("csr", "row_indices", swapped),
        ("csr", "perm", swapped),
        ("bsr", "crow_indices", swapped),
        ("bsr", "col_indices", lambda t: t + 100),
        ("bsr", "perm", swapped),
        ("bsr_channels_last", "row_indices", swapped),
        ("bsr_channels_last", "ccol_indices", swapped),
        ("bsr", "value_mask", lambda t: t[1:]),
        ("bsr", "value_mask", torch.ones_like),
        ("bsr", "row_work", swapped),
        ("bsr", "row_splits", lambda t: torch.zeros(1, 3, dtype=torch.int32)),
        ("bsr", "column_work", lambda t: t.long()),
        ("bsr", "column_splits", lambda t: t[:, :2]),
        ("reordered", "row_order", lambda t: t[1:]),
        ("reordered", "col_order", torch.zeros_like),
        ("reordered", "row_place", swapped),
        ("reordered", "crow_indices", swapped),
        ("dense", "bits", lambda t: t[1:]),
        ("dense", "bits", lambda t: t.int()),
        ("dense", "rank", swapped),
        ("dense", "rank", lambda t: t + 1),
    ],
)
def test_validate_names_the_damaged_field(maker: str, field: str, change: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    layout = MAKERS[maker](torch.rand(7, 8) < 0.4)
    with pytest.raises(ArgumentError, match=field):
        damaged(layout, field, change).validate()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"kind": "coo"},
            ArgumentError,
            "layout: expected one of 'csr', 'bsr', 'dense', '2:4', 'reordered', got 'coo'",
        ),
        ({"kind": "bsr"}, ArgumentError, "block: expected"),
        ({"kind": "csr", "block": (2, 2)}, ArgumentError, "block: expected None with layout='csr'"),
        ({"kind": "dense", "cover": "zeros"}, ArgumentError, "cover: expected None"),
        ({"kind": "bsr", "block": (0, 2)}, ArgumentError, "block: expected positive"),
        ({"kind": "bsr", "block": 16}, ArgumentTypeError, "block: expected a pair of ints"),
        ({"kind": "bsr", "block": (2.0, 2)}, ArgumentTypeError, "block: expected a pair of ints"),
        ({"kind": "bsr", "block": (2, 2), "cover": "ones"}, ArgumentError, "cover: expected"),
        (
            {"kind": "bsr", "block": (2, 2), "channels_last": 1},
            ArgumentTypeError,
            "channels_last: expected True or False",
        ),
        ({"kind": "csr", "channels_last": True}, ArgumentError, "channels_last: expected False with layout='csr'"),
        (
            {"kind": "csr", "mask": torch.ones(3, 3)},
            ArgumentError,
            "mask: expected dtype torch.bool, got torch.float32",
        ),
        ({"kind": "csr", "mask": [[True]]}, ArgumentTypeError, "mask: expected a bool tensor, got list"),
        ({"kind": "csr", "mask": torch.ones(3, dtype=torch.bool)}, ArgumentError, "mask: expected 2 to 4 dimensions"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_layout(**({"mask": torch.ones(4, 4, dtype=torch.bool)} | arguments))


@pytest.mark.parametrize("maker", MAKERS)
def test_values_of_the_wrong_shape_or_dtype_are_refused(maker: str) -> None:
    layout = MAKERS[maker](torch.rand(7, 8) < 0.4)
    with pytest.raises(ArgumentError, match="values: expected shape"):
        layout.scatter(torch.randn(3))
    with pytest.raises(ArgumentError, match="values: expected a floating dtype"):
        layout.scatter(torch.ones(layout.values_shape, dtype=torch.int32))
    with pytest.raises(ArgumentError, match=r"dense: expected shape \[7, 8\]"):
        layout.gather(torch.randn(8, 7))


def test_the_registry_holds_every_layout_under_its_own_kind() -> None:
    assert {kind: layout.kind for kind, layout in LAYOUTS.items()} == {kind: kind for kind in LAYOUTS}

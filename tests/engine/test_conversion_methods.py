"""Methods of conversion on the mask of one layer: what each keeps, adds and drops, exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lth_sparse.engine.conversion import Method
from lth_sparse.engine.conversion.methods import refilled_rows, regrouped
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.formats import BSR, SemiStructured

SHAPES = [(13, 29), (16, 8), (7, 3, 3, 3), (5, 4, 3), (1, 1)]


def layer(shape: tuple[int, ...], density: float = 0.2) -> tuple[Tensor, Tensor]:
    """A mask with at least one live weight, and magnitudes that are zero where pruned."""
    mask = torch.rand(shape) < density
    mask.view(-1)[0] = True
    return mask, torch.rand(shape, dtype=torch.float64) * mask


def blocks_of(mask: Tensor, block: tuple[int, int]) -> Tensor:
    """Live weights of each block of the matrix view, by plain slicing."""
    matrix = mask.reshape(mask.shape[0], -1)
    rows, cols = block
    return torch.tensor(
        [
            [int(matrix[i : i + rows, j : j + cols].sum()) for j in range(0, matrix.shape[1], cols)]
            for i in range(0, matrix.shape[0], rows)
        ]
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block", [(4, 1), (4, 4), (3, 5)], ids=str)
def test_cover_keeps_every_live_weight_and_adds_only_within_its_blocks(
    shape: tuple[int, ...], block: tuple[int, int], seed: int
) -> None:
    mask, magnitude = layer(shape)
    made = Method("cover", block).remake(mask, magnitude, None)
    assert torch.equal(made.mask, mask)
    filled = Method("cover", block, "theta").remake(mask, magnitude, None)
    assert not bool((mask & ~filled.mask).any())
    assert torch.equal(blocks_of(filled.mask, block) > 0, blocks_of(mask, block) > 0)
    BSR.from_mask(filled.mask, block)  # a union of blocks, else it raises


def test_cover_of_a_union_of_blocks_needs_no_padding(seed: int) -> None:
    mask = (torch.rand(3, 5) < 0.5).repeat_interleave(4, 0)
    assert Method("cover", (4, 1)).remake(mask, mask.double(), None).cover is None


@pytest.mark.parametrize("order", [False, True])
def test_cover_of_a_convolution_in_channels_last_order_is_a_union_of_its_blocks(order: bool, seed: int) -> None:
    mask, magnitude = layer((8, 6, 3, 3), 0.1)
    made = Method("cover", (4, 4), "theta").remake(mask, magnitude, None, order)
    layout = BSR.from_mask(made.mask, (4, 4), channels_last=order)
    assert layout.nnz == int(made.mask.sum())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_drop_keeps_the_blocks_of_largest_magnitude(shape: tuple[int, ...], seed: int) -> None:
    mask, magnitude = layer(shape, 0.5)
    made = Method("drop", (2, 3), density=0.3).remake(mask, magnitude, None)
    before, after = blocks_of(mask, (2, 3)), blocks_of(made.mask, (2, 3))
    count = min(int((before > 0).sum()), math.ceil(0.3 * before.numel()))
    assert int((after > 0).sum()) == count
    weight = torch.tensor(
        [
            [float(magnitude.reshape(shape[0], -1)[i : i + 2, j : j + 3].sum()) for j in range(0, mask[0].numel(), 3)]
            for i in range(0, shape[0], 2)
        ]
    )
    if count < int((before > 0).sum()):
        assert weight[after > 0].min() >= weight[(after == 0) & (before > 0)].max()


def test_drop_to_a_share_of_the_magnitude_is_the_fewest_blocks_that_hold_it(seed: int) -> None:
    mask, magnitude = layer((40, 30), 0.3)
    kept = Method("drop", (4, 2), "zeros", magnitude=0.7).remake(mask, magnitude, None).mask
    total = float(magnitude.sum())
    assert float((magnitude * kept).sum()) >= 0.7 * total
    sums = torch.stack([magnitude[i : i + 4, j : j + 2].sum() for i in range(0, 40, 4) for j in range(0, 30, 2)])
    fewest = int((sums.sort(descending=True).values.cumsum(0) < 0.7 * total).sum()) + 1
    assert int((blocks_of(kept, (4, 2)) > 0).sum()) == fewest


def test_drop_to_the_whole_magnitude_keeps_everything(seed: int) -> None:
    mask, magnitude = layer((40, 30), 0.3)
    assert torch.equal(Method("drop", (4, 2), "zeros", magnitude=1.0).remake(mask, magnitude, None).mask, mask)


def test_drop_by_live_weights_keeps_exactly_the_blocks_with_so_many(seed: int) -> None:
    mask, magnitude = layer((21, 17), 0.3)
    kept = Method("drop", (3, 3), "zeros", least=3).remake(mask, magnitude, None).mask
    before, after = blocks_of(mask, (3, 3)), blocks_of(kept, (3, 3))
    assert torch.equal(after, before * (before >= 3))


@pytest.mark.parametrize(("name", "block"), [("drop", (4, 4)), ("vectors", (4, 1)), ("vectors", (8, 1))])
def test_by_default_dropping_leaves_as_many_weights_as_the_ticket_has(
    name: str, block: tuple[int, int], seed: int
) -> None:
    mask, magnitude = layer((64, 96), 0.1)
    made = Method(name, block).remake(mask, magnitude, None)
    tile = block[0] * block[1]
    assert int(made.mask.sum()) == round(int(mask.sum()) / tile) * tile
    assert made.cover is None
    grown = Method(name, block, growth=1.5).remake(mask, magnitude, None)
    assert int(grown.mask.sum()) == round(1.5 * int(mask.sum()) / tile) * tile
    assert not bool((made.mask & ~grown.mask).any())


def test_padding_with_zeros_adds_no_weight(seed: int) -> None:
    mask, magnitude = layer((64, 96), 0.1)
    for name in ("cover", "drop"):
        assert not bool((Method(name, (4, 4), "zeros").remake(mask, magnitude, None).mask & ~mask).any())
    assert not bool((Method("2:4").remake(mask, magnitude, None).mask & ~mask).any())


def test_blocks_without_a_live_weight_are_never_kept() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[0, 0] = True
    kept = Method("drop", (4, 4), density=1.0).remake(mask, mask.double(), None).mask
    assert kept.sum() == 16
    assert kept[:4, :4].all()
    nothing = Method("drop", (4, 4)).remake(torch.zeros_like(mask), torch.zeros(8, 8), None).mask
    assert not nothing.any()


@pytest.mark.parametrize(
    ("live", "extra", "k"), [(29, 0.0, 1), (58, 0.0, 2), (57, 0.0, 1), (3, 0.0, 1), (58, 0.5, 7), (377, 0.0, 13)]
)
def test_refill_keeps_as_many_rows_as_the_live_weights_would_fill(live: int, extra: float, k: int) -> None:
    mask = torch.zeros(13, 29, dtype=torch.bool)
    mask.view(-1)[torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(1))[:live]] = True
    assert int(refilled_rows(mask, mask.double(), extra).sum()) == k


@pytest.mark.parametrize("shape", [(13, 29), (12, 3, 3, 3)], ids=str)
def test_refill_takes_the_rows_of_largest_masked_norm_whole(shape: tuple[int, ...], seed: int) -> None:
    mask, magnitude = layer(shape, 0.4)
    made = Method("refill").remake(mask, magnitude + 5.0 * ~mask, None).mask.reshape(shape[0], -1)
    rows = made.any(1)
    assert torch.equal(rows, made.all(1))
    norm = magnitude.reshape(shape[0], -1).sum(1)
    assert norm[rows].min() >= norm[~rows].max()
    more = Method("refill+", extra=0.3).remake(mask, magnitude, None).mask.reshape(shape[0], -1)
    assert not bool((made & ~more).any())
    assert more.sum() > made.sum()


def test_refill_of_equal_rows_keeps_the_first(seed: int) -> None:
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[:, 1:] = False
    assert refilled_rows(mask, mask.double()).tolist() == [True] + [False] * 5
    assert not refilled_rows(torch.zeros_like(mask), mask.double()).any()


def test_regroup_makes_dense_groups_of_rows_that_hold_the_bulk_of_each(seed: int) -> None:
    mask = torch.rand(22, 40) < 0.15
    made = regrouped(mask, 8, ratio=1.5)
    for start in range(0, 22, 8):
        rows, group = mask[start : start + 8], made[start : start + 8]
        columns = group.any(0)
        assert torch.equal(group, columns.expand_as(group))  # all rows of a group read the same columns
        if columns.any():
            assert int(columns.sum()) > 1.5 * int(rows[:, ~columns].sum(1).max())
            used = rows.sum(0)
            assert used[columns].min() >= used[~columns].max()
    BSR.from_mask(made, (8, 1))


def test_regroup_of_what_is_grouped_already_changes_nothing() -> None:
    mask = torch.zeros(8, 20, dtype=torch.bool)
    mask[:4, 3:9] = True
    assert torch.equal(regrouped(mask, 4), mask)


def test_regroup_fills_no_column_that_nobody_uses() -> None:
    mask = torch.zeros(4, 30, dtype=torch.bool)
    mask[0, 5] = mask[2, 7] = True
    assert set(regrouped(mask, 4, ratio=10.0).any(0).nonzero().view(-1).tolist()) <= {5, 7}


@pytest.mark.parametrize("shape", [(9, 16), (6, 4, 3, 3)], ids=str)
def test_two_of_four_keeps_the_largest_live_ones(shape: tuple[int, ...], seed: int) -> None:
    mask, magnitude = layer(shape, 0.6)
    kept = Method("2:4").remake(mask, magnitude, None).mask
    SemiStructured.from_mask(kept)
    groups = mask.reshape(-1, 4), kept.reshape(-1, 4), magnitude.reshape(-1, 4)
    for live, chosen, weight in zip(*groups, strict=True):
        assert int(chosen.sum()) == min(2, int(live.sum()))
        if (live & ~chosen).any():
            assert weight[chosen].min() >= weight[live & ~chosen].max()


def test_two_of_four_is_filled_with_the_largest_theta_when_asked(seed: int) -> None:
    mask, magnitude = layer((9, 16), 0.2)
    theta = torch.randn(9, 16)
    kept = Method("2:4", padding="theta").remake(mask, magnitude, theta).mask
    assert bool((kept.reshape(-1, 4).sum(1) == 2).all())
    assert torch.equal(Method("2:4").remake(mask, magnitude, None).mask, kept & mask)
    for live, chosen, values in zip(mask.reshape(-1, 4), kept.reshape(-1, 4), theta.abs().reshape(-1, 4), strict=True):
        added, left = chosen & ~live, ~chosen & ~live
        if added.any() and left.any():
            assert values[added].min() >= values[left].max()


@pytest.mark.parametrize(
    "text",
    [
        *("cover", "cover:4x4:theta", "drop:16x16:zeros", "vectors:8x1", "refill+", "2:4", "2:4:theta", "regroup"),
        *(
            "drop:4x4:unordered:least=3",
            "vectors:8x1:growth=1.5",
            "refill+:extra=0.1",
            "regroup:ratio=2",
            "cover:4x4:edge",
        ),
    ],
)
def test_a_spelling_is_read_back(text: str) -> None:
    method = Method.parse(text)
    assert method.text == text
    assert Method.parse(method.text) == method


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: Method.parse("blocks"), ArgumentError, "method"),
        (lambda: Method.parse("drop:16"), ArgumentError, "method"),
        (lambda: Method.parse(3), ArgumentTypeError, "method"),
        (lambda: Method("vectors", (4, 4)), ArgumentError, "block"),
        (lambda: Method("refill", (4, 4)), ArgumentError, "block"),
        (lambda: Method("drop", (0, 4)), ArgumentError, "block"),
        (lambda: Method("drop", padding="ones"), ArgumentError, "padding"),
        (lambda: Method("drop", magnitude=0.5, density=0.5), ArgumentError, "one of"),
        (lambda: Method("drop", magnitude=1.5), ArgumentError, "magnitude"),
        (lambda: Method("drop", density="half"), ArgumentTypeError, "density"),
        (lambda: Method("drop", least=0), ArgumentError, "least"),
        (lambda: Method("cover", density=0.5), ArgumentError, "density"),
        (lambda: Method("refill+", extra=1.0), ArgumentError, "extra"),
        (lambda: Method("regroup", ratio=0.0), ArgumentError, "ratio"),
        (lambda: Method("drop", growth=-1.0), ArgumentError, "growth"),
        (lambda: Method("drop", reorder="rows"), ArgumentError, "reorder"),
        (lambda: Method.parse("drop:least=1.5"), ArgumentError, "least"),
        (lambda: Method.parse("drop:size=2"), ArgumentError, "method"),
    ],
)
def test_bad_options_name_themselves(make: object, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        make()  # type: ignore[operator]

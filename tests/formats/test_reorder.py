"""Orders of rows and columns: permutations, never worse than none, and hidden blocks come to light again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.formats import BSR
from lth_sparse.formats.reorder import Member, Reordering, live_blocks, reorder, reorder_axis


def random_mask(shape: tuple[int, ...], density: float, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def shuffled(mask: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(mask.shape[0], generator=generator)
    return mask[rows][:, torch.randperm(mask.shape[1], generator=generator)]


def is_permutation(order: Tensor, size: int) -> bool:
    return order.dtype == torch.int64 and torch.equal(order.sort().values, torch.arange(size))


def occupied(mask: Tensor, result: Reordering) -> int:
    """Blocks that BSR stores for the reordered mask."""
    return BSR.from_mask(result.apply(mask), result.block, "zeros", result.channels_last).nblocks


SHAPES = st.lists(st.integers(0, 20), min_size=2, max_size=2) | st.lists(st.integers(1, 7), min_size=3, max_size=4)


@settings(max_examples=40, deadline=None)
@given(
    shape=SHAPES.map(tuple),
    density=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    block=st.tuples(st.integers(1, 7), st.integers(1, 9)),
    axes=st.sampled_from([(True, True), (True, False), (False, True), (False, False)]),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_an_order_is_a_permutation_and_never_has_more_live_blocks(
    shape: tuple[int, ...],
    density: float,
    block: tuple[int, int],
    axes: tuple[bool, bool],
    channels_last: bool,
    seed: int,
) -> None:
    mask = random_mask(shape, density, seed)
    result = reorder(mask, block, rows=axes[0], cols=axes[1], channels_last=channels_last, seed=seed)
    assert is_permutation(result.rows, shape[0])
    assert is_permutation(result.cols, shape[1])
    assert result.blocks_after <= result.blocks_before
    assert result.blocks_after == occupied(mask, result)
    assert result.blocks_before == BSR.from_mask(mask, block, "zeros", channels_last).nblocks
    for order, allowed in zip((result.rows, result.cols), axes, strict=True):
        assert allowed or torch.equal(order, torch.arange(order.numel()))


@pytest.mark.parametrize(
    ("size", "block"),
    [((64, 96), (16, 16)), ((64, 96), (4, 1)), ((96, 64), (1, 8)), ((50, 70), (8, 4)), ((33, 47), (16, 16))],
)
def test_shuffled_blocks_are_found_again(size: tuple[int, int], block: tuple[int, int]) -> None:
    grid = -(-size[0] // block[0]), -(-size[1] // block[1])
    kept = random_mask(grid, 0.2)
    mask = kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: size[0], : size[1]]
    result = reorder(shuffled(mask), block)
    # The short block rows and columns at ragged edges are searched for without knowing which they are.
    ragged = size[0] % block[0] or size[1] % block[1]
    assert result.blocks_after <= int(kept.sum()) * (1.1 if ragged else 1.0) < result.blocks_before


@pytest.mark.parametrize(("channels_last", "block"), [(True, (8, 4)), (False, (8, 18)), (False, (8, 3))])
def test_filters_and_channels_of_a_convolution_are_found_again(channels_last: bool, block: tuple[int, int]) -> None:
    """Whole groups of filters that read whole groups of channels; a block within a channel leaves those alone."""
    kept = random_mask((4, 6), 0.3)
    mask = kept.repeat_interleave(8, 0).repeat_interleave(4, 1)[..., None, None].expand(-1, -1, 3, 3)
    result = reorder(shuffled(mask.contiguous()), block, channels_last=channels_last)
    assert result.blocks_after == BSR.from_mask(mask.contiguous(), block, "zeros", channels_last).nblocks
    assert torch.equal(result.cols, torch.arange(24)) == (block[1] == 3)


def test_fuller_blocks_count_where_every_block_is_alive() -> None:
    full = random_mask((8, 8), 0.3).repeat_interleave(8, 0).repeat_interleave(8, 1)
    mask = shuffled(full | random_mask((64, 64), 0.2, seed=1))
    result = reorder(mask, (8, 8))
    before, after = live_blocks(mask, (8, 8)), live_blocks(mask, (8, 8), result.rows, result.cols)
    assert int((before > 0).sum()) == int((after > 0).sum()) == 64
    assert int((after == 64).sum()) >= int((full.view(8, 8, 8, 8).sum((1, 3)) == 64).sum()) > int((before == 64).sum())


def test_the_same_seed_gives_the_same_order() -> None:
    mask = random_mask((90, 70), 0.2)
    first, second = (reorder(mask, (4, 4), seed=3) for _ in range(2))
    assert torch.equal(first.rows, second.rows)
    assert torch.equal(first.cols, second.cols)


@pytest.mark.parametrize("mask", [torch.zeros(9, 7, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool)])
def test_what_no_order_improves_stays_as_it_is(mask: Tensor) -> None:
    assert reorder(mask, (4, 4)).is_identity


def test_live_blocks_counts_the_weights_of_every_block() -> None:
    mask = random_mask((5, 7), 0.5)
    rows, cols = torch.tensor([4, 2, 0, 1, 3]), torch.arange(7).flip(0)
    ordered = torch.zeros(6, 8, dtype=torch.int64)
    ordered[:5, :7] = mask[rows][:, cols]
    truth = ordered.view(3, 2, 2, 4).sum((1, 3))
    assert torch.equal(live_blocks(mask, (2, 4), rows, cols), truth)


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(0, 24),
    shapes=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6), st.integers(1, 40)), max_size=3),
    density=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 99),
)
def test_a_shared_order_is_a_permutation_and_never_costs_more(
    size: int, shapes: list[tuple[int, int, int]], density: float, seed: int
) -> None:
    members = [
        Member(random_mask((size, m), density, seed + i), extent, weight)
        for i, (m, extent, weight) in enumerate(shapes)
    ]
    order = reorder_axis(members, size, seed=seed)
    assert is_permutation(order, size)

    def cost(order: Tensor) -> float:
        found = 0.0
        for member in members:
            if member.features.numel():
                found += member.weight * int((live_blocks(member.features[order], (member.extent, 1)) > 0).sum())
        return found

    assert cost(order) <= cost(torch.arange(size))


def test_one_order_serves_two_tensors_with_blocks_of_their_own() -> None:
    """The rows of one in blocks of 8, the columns of the next in blocks of 4 that lie within them."""
    writer = random_mask((6, 40), 0.3).repeat_interleave(8, 0)
    reader = random_mask((12, 30), 0.3, seed=1).repeat_interleave(4, 0)
    shuffle = torch.randperm(48, generator=torch.Generator().manual_seed(2))
    members = [Member(writer[shuffle], 8, 8), Member(reader[shuffle], 4, 4)]
    order = reorder_axis(members, 48)
    for member, hidden in zip(members, (writer, reader), strict=True):
        least = int((live_blocks(hidden, (member.extent, 1)) > 0).sum())
        assert int((live_blocks(member.features[order], (member.extent, 1)) > 0).sum()) == least


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": torch.ones(4, 4)}, ArgumentError, "mask: expected dtype torch.bool"),
        ({"block": (0, 2)}, ArgumentError, "block: expected positive sizes"),
        ({"block": 4}, ArgumentTypeError, "block: expected a pair of ints"),
        ({"rows": 1}, ArgumentTypeError, "rows: expected True or False"),
        ({"method": "best"}, ArgumentError, "method: expected one of 'greedy', 'metis', 'mtkahypar'"),
        ({"seed": -1}, ArgumentError, "seed: expected an int in"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        reorder(**({"mask": random_mask((4, 4), 0.5), "block": (2, 2)} | arguments))


@pytest.mark.parametrize(
    ("member", "error", "message"),
    [
        (7, ArgumentTypeError, r"members\[0\]: expected a Member"),
        ((torch.ones(4, 3), 2, 1), ArgumentTypeError, r"members\[0\].features: expected a bool tensor"),
        ((random_mask((3, 3), 0.5), 2, 1), ArgumentError, r"members\[0\].features: expected shape \[4, m\]"),
        ((random_mask((4, 3), 0.5), 0, 1), ArgumentError, r"members\[0\].extent: expected a positive int"),
        ((random_mask((4, 3), 0.5), 2, 0), ArgumentError, r"members\[0\].weight: expected a positive number"),
    ],
)
def test_bad_members_are_named(member: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        reorder_axis([member], 4)

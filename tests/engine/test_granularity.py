"""Tiles over weights: parsing, pooling, expanding."""

from __future__ import annotations

import pytest
import torch

from lth_sparse.engine.granularity import Granularity
from lth_sparse.errors import ArgumentError, ArgumentTypeError


@pytest.mark.parametrize("text", ["block", "block:16", "block:0x4", "block:4x-1", "1:4", "", "Weight"])
def test_unknown_granularity_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="granularity: expected 'weight', 'row', 'block:RxC'"):
        Granularity.parse(text)


def test_granularity_must_be_a_string() -> None:
    with pytest.raises(ArgumentTypeError, match="granularity"):
        Granularity.parse(4)  # type: ignore[arg-type]


def test_block_is_none_unless_it_is_one() -> None:
    assert [Granularity.parse(t).block for t in ("weight", "row", "block:1x1", "block:2x3")] == [
        None,
        None,
        None,
        (2, 3),
    ]


@pytest.mark.parametrize("text", ["weight", "row", "block:4x4", "block:3x5", "block:100x100"])
@pytest.mark.parametrize("shape", [(8, 12), (7, 11), (5, 3, 3, 3), (1, 1), (6, 2, 5)])
def test_pool_sums_what_expand_copies(text: str, shape: tuple[int, ...]) -> None:
    tile = Granularity.parse(text)
    numbers = torch.arange(len(tile.sizes(shape)))
    labels = tile.expand(numbers, shape)
    assert tuple(labels.shape) == shape
    weight = torch.rand(shape, dtype=torch.float64)
    expected = torch.stack([weight[labels == number].sum() for number in numbers])
    torch.testing.assert_close(tile.pool(weight), expected)


@pytest.mark.parametrize("text", ["weight", "row", "block:4x4"])
def test_sizes_add_up_to_the_weights(text: str) -> None:
    assert int(Granularity.parse(text).sizes((7, 11)).sum()) == 77


def test_two_of_four_keeps_the_two_best_of_every_four_and_never_a_pruned_one() -> None:
    tile = Granularity.parse("2:4")
    assert tile.block is None
    score = torch.tensor([[3.0, 1.0, 2.0, 4.0, 1.0, 1.0, 1.0, 1.0, 5.0, 6.0, 7.0, 8.0]])
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, 9:] = False
    kept = tile.best(score, mask)
    # equal scores: what comes first goes first, as everywhere
    assert kept.int().tolist() == [[1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0]]


def test_two_of_four_refuses_rows_of_another_length_by_name() -> None:
    with pytest.raises(ArgumentError, match=r"granularity: .* a multiple of 4 .*, got conv.weight with rows of 27"):
        Granularity.parse("2:4").check("conv.weight", (8, 3, 3, 3))
    Granularity.parse("2:4").check("fc.weight", (3, 8))
    Granularity.parse("block:2x4").check("conv.weight", (8, 3, 3, 3))

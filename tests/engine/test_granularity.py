"""Tiles over weights: parsing, pooling, expanding."""

from __future__ import annotations

import pytest
import torch

from lth_sparse.engine.granularity import Granularity
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.formats import BSR


@pytest.mark.parametrize("text", ["block", "block:16", "block:0x4", "block:4x-1", "2:4", "", "block:4x4:nhwc"])
def test_unknown_granularity_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="granularity: expected 'weight', 'row' or 'block:RxC'"):
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


@pytest.mark.parametrize("text", ["weight", "row", "block:4x4", "block:3x5", "block:99x99", "block:3x2:channels_last"])
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


@pytest.mark.parametrize("shape", [(7, 11), (5, 3, 3, 3), (6, 5, 4), (3, 8, 1, 1)])
def test_channels_last_tiles_are_the_blocks_of_a_channels_last_layout(shape: tuple[int, ...]) -> None:
    tile = Granularity.parse("block:3x2:channels_last")
    assert (tile.block, tile.channels_last) == ((3, 2), True)
    numbers = torch.arange(len(tile.sizes(shape)))
    for number in numbers[:: max(len(numbers) // 5, 1)]:
        layout = BSR.from_mask(tile.expand(numbers, shape) == number, (3, 2), channels_last=True)
        assert layout.nblocks == 1
    assert layout.grid[0] * layout.grid[1] == len(numbers)

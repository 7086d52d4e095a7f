"""Tiles over weights: parsing, pooling, expanding, and the layers that a granularity does not apply to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lth_sparse.engine.granularity import FORMS, Granularity
from lth_sparse.engine.scope import prune
from lth_sparse.engine.selection import check_granularity
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.formats import BSR

TILES = ["weight", "row", "column", "block:4x4", "block:3x5", "block:100x100", "vector:4x1", "vector:1x3", "filter"]
VIEWS = ["channel", "kernel", "block:3x2:channels_last"]
SHAPES = [(8, 12), (7, 11), (5, 3, 3, 3), (1, 1), (6, 2, 5)]


@pytest.mark.parametrize(
    "text",
    [
        "block",
        "block:16",
        "block:0x4",
        "block:4x-1",
        "2-4",
        "",
        "Weight",
        "vector:4",
        "0:4",
        "rows",
        "2:4x",
        "kernels",
        "block:4x4:nhwc",
    ],
)
def test_unknown_granularity_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="granularity: expected 'weight', 'row', 'block:RxC'") as caught:
        Granularity.parse(text)
    assert all(form.spelling in str(caught.value) for form in FORMS)


@pytest.mark.parametrize(("text", "hint"), [("4:2", "N below M"), ("4:4", "N below M"), ("vector:4x2", "vector:Rx1")])
def test_numbers_that_make_no_sense_are_refused(text: str, hint: str) -> None:
    with pytest.raises(ArgumentError, match=f"granularity: expected .*{hint}.*got '{text}'"):
        Granularity.parse(text)


def test_granularity_must_be_a_string() -> None:
    with pytest.raises(ArgumentTypeError, match="granularity"):
        Granularity.parse(4)  # type: ignore[arg-type]


def test_block_is_none_unless_it_is_one() -> None:
    texts = ("weight", "row", "column", "channel", "kernel", "filter", "2:4", "block:1x1", "block:2x3", "vector:4x1")
    assert [Granularity.parse(t).block for t in texts] == [None] * 8 + [(2, 3), (4, 1)]


@pytest.mark.parametrize("text", TILES + VIEWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pool_sums_what_expand_copies(text: str, shape: tuple[int, ...]) -> None:
    tile = Granularity.parse(text)
    numbers = torch.arange(len(tile.sizes(shape)))
    labels = tile.expand(numbers, shape)
    assert tuple(labels.shape) == shape
    assert labels.is_contiguous()
    weight = torch.rand(shape, dtype=torch.float64)
    expected = torch.stack([weight[labels == number].sum() for number in numbers])
    torch.testing.assert_close(tile.pool(weight), expected)


@pytest.mark.parametrize("text", TILES + VIEWS)
def test_pooling_does_not_mind_strides(text: str) -> None:
    tile = Granularity.parse(text)
    weight = torch.rand(6, 4, 3, 3, dtype=torch.float64)
    strided = weight.to(memory_format=torch.channels_last)
    assert torch.equal(tile.pool(weight), tile.pool(strided))


@pytest.mark.parametrize("text", TILES + VIEWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sizes_add_up_to_the_weights(text: str, shape: tuple[int, ...]) -> None:
    assert int(Granularity.parse(text).sizes(shape).sum()) == torch.ones(shape).numel()


def test_tiles_are_what_they_are_called() -> None:
    shape = (4, 3, 2, 2)

    def tiles(text: str) -> list[set[tuple[int, ...]]]:
        tile = Granularity.parse(text)
        labels = tile.expand(torch.arange(len(tile.sizes(shape))), shape)
        return [{tuple(at) for at in (labels == i).nonzero().tolist()} for i in labels.unique().tolist()]

    everywhere = [(o, i, h, w) for o in range(4) for i in range(3) for h in range(2) for w in range(2)]
    assert tiles("filter") == tiles("row") == [{at for at in everywhere if at[0] == o} for o in range(4)]
    assert tiles("channel") == [{at for at in everywhere if at[1] == i} for i in range(3)]
    assert tiles("kernel") == [{at for at in everywhere if at[:2] == (o, i)} for o in range(4) for i in range(3)]
    assert {(0, 1, 0, 1), (1, 1, 0, 1)} in tiles("vector:2x1")
    assert {(o, 1, 0, 1) for o in range(4)} in tiles("column")


def test_channel_of_a_linear_layer_is_an_input_feature() -> None:
    scores = {"a": torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.5, 2.0]])}
    masks = {"a": torch.ones(2, 3, dtype=torch.bool)}
    for text in ("channel", "column"):
        found = prune(scores, masks, {"a": 0.3}, 1, granularity=Granularity.parse(text)).masks["a"]
        assert found.tolist() == [[True, False, True]] * 2


@pytest.mark.parametrize("text", TILES + VIEWS)
def test_shuffled_tiles_are_as_many_and_still_whole(text: str) -> None:
    tile, shape = Granularity.parse(text), (6, 5, 3, 3)
    kept = torch.rand(len(tile.sizes(shape))) > 0.5
    mask = tile.expand(kept, shape)
    found = tile.shuffled(mask, torch.Generator().manual_seed(1))
    assert int(found.sum()) == int(mask.sum())
    counts = tile.pool(found)
    assert bool(((counts == 0) | (counts == tile.sizes(shape))).all())


# --- layers it does not apply to ------------------------------------------------------------------------------------


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv1d(3, 4, 3), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("filter", "3.weight"),
        ("kernel", "3.weight"),
        ("channel", "1.weight"),
        ("weight", None),
        ("row", None),
        ("column", None),
        ("vector:2x1", None),
        ("2:4", None),
    ],
)
def test_a_layer_of_another_kind_is_refused_by_name(model: nn.Module, text: str, refused: str | None) -> None:
    names = [f"{i}.weight" for i in range(4)]
    tile = Granularity.parse(text)
    if refused is None:
        check_granularity(model, names, tile)
        return
    with pytest.raises(ArgumentError, match=rf"granularity: expected .*{refused}.*freeze.*got '{text}', but it is a"):
        check_granularity(model, names, tile)
    check_granularity(model, [name for name in names if name != refused], tile)


@pytest.mark.parametrize("shape", [(7, 11), (5, 3, 3, 3), (6, 5, 4), (3, 8, 1, 1)])
def test_channels_last_tiles_are_the_blocks_of_a_channels_last_layout(shape: tuple[int, ...]) -> None:
    tile = Granularity.parse("block:3x2:channels_last")
    assert (tile.block, tile.channels_last) == ((3, 2), True)
    numbers = torch.arange(len(tile.sizes(shape)))
    for number in numbers[:: max(len(numbers) // 5, 1)]:
        layout = BSR.from_mask(tile.expand(numbers, shape) == number, (3, 2), channels_last=True)
        assert layout.nblocks == 1
    assert layout.grid[0] * layout.grid[1] == len(numbers)

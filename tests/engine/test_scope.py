"""Exact counts, the paper's ladder, ties, nesting, the floor: pure mask arithmetic with random scores, no training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lth_sparse.engine.granularity import Granularity
from lth_sparse.engine.scope import prune, survivors
from lth_sparse.engine.selection import layer_rates

LENET = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "output.weight": (10, 100)}


def conv_net(*channels: int, flat: int) -> dict[str, tuple[int, ...]]:
    """Weights of Conv-2, Conv-4 or Conv-6 on 32x32 colour images."""
    shapes: dict[str, tuple[int, ...]] = {}
    width = 3
    for i, out in enumerate(channels, 1):
        shapes[f"conv{i}.weight"] = (out, width, 3, 3)
        width = out
    return {**shapes, "fc1.weight": (256, flat), "fc2.weight": (256, 256), "output.weight": (10, 256)}


def resnet20() -> dict[str, tuple[int, ...]]:
    """The paper's "Resnet-18": 3 stages of 3 blocks, 1x1 convolutions where the width changes."""
    shapes: dict[str, tuple[int, ...]] = {"conv.weight": (16, 3, 3, 3)}
    width = 16
    for stage, out in enumerate((16, 32, 64)):
        for block in range(3):
            shapes[f"blocks.{stage}.{block}.conv1.weight"] = (out, width, 3, 3)
            shapes[f"blocks.{stage}.{block}.conv2.weight"] = (out, out, 3, 3)
            if width != out:
                shapes[f"blocks.{stage}.{block}.shortcut.weight"] = (out, width, 1, 1)
            width = out
    return {**shapes, "fc.weight": (10, 64)}


def vgg19() -> dict[str, tuple[int, ...]]:
    widths = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    shapes = {f"conv{i}.weight": (w, p, 3, 3) for i, (p, w) in enumerate(zip([3, *widths], widths, strict=False))}
    return {**shapes, "fc.weight": (10, 512)}


CONV6 = conv_net(64, 64, 128, 128, 256, 256, flat=4096)
CONV_RATES = {"conv*": 0.1}
GLOBAL = {"scope": "global"}
#: network -> shapes, keywords of layer_rates, keywords of prune, {level: percent left}, weights in all.
LADDERS = {
    "lenet": (LENET, {}, {}, {3: 51.3, 7: 21.1, 9: 13.5, 15: 3.6, 18: 1.9, 20: 1.2}, 266_200),
    "conv2": (conv_net(64, 64, flat=16384), {"rates": CONV_RATES}, {}, {11: 8.8, 14: 4.6}, 4_300_992),
    "conv4": (
        conv_net(64, 64, 128, 128, flat=8192),
        {"rates": CONV_RATES},
        {},
        {11: 11.1, 12: 9.2, 15: 5.4},
        2_425_024,
    ),
    "resnet": (
        resnet20(),
        {"freeze": ["*.shortcut", "fc"]},
        GLOBAL,
        {4: 41.7, 6: 27.1, 7: 21.9, 10: 11.8},
        270_896,
    ),
}


def random_scores(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def everything(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}


def percent_left(masks: dict[str, torch.Tensor]) -> float:
    return 100 * sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())


@pytest.mark.parametrize("network", LADDERS)
def test_ladder_of_the_paper_is_met_within_a_tenth(network: str) -> None:
    shapes, rate_keywords, prune_keywords, ladder, weights = LADDERS[network]
    rates = layer_rates(shapes, rate=0.2, **rate_keywords)
    scores, masks = random_scores(shapes), everything(shapes)
    assert sum(mask.numel() for mask in masks.values()) == weights
    # The large networks skip levels: counts come from a level's number, not from its predecessor.
    for level in range(1, max(ladder) + 1) if weights < 1_000_000 else ladder:
        masks = prune(scores, masks, rates, level, **prune_keywords).masks
        if level in ladder:
            assert percent_left(masks) == pytest.approx(ladder[level], abs=0.1)


@pytest.mark.parametrize(
    ("shapes", "keywords", "weights", "ladder", "within"),
    [
        (vgg19(), {"freeze": "fc"}, 20_024_000, {12: 6.9, 15: 3.5, 19: 1.5}, 0.1),
        (CONV6, {"rates": {"conv*": 0.15}}, 2_261_184, {7: 26.4, 10: 15.1, 12: 10.5}, 0.3),
    ],
    ids=["vgg19", "conv6"],
)
def test_ladder_of_the_largest_networks_by_counts_alone(
    shapes: dict[str, tuple[int, ...]], keywords: dict[str, Any], weights: int, ladder: dict[int, float], within: float
) -> None:
    numel = {name: math.prod(shape) for name, shape in shapes.items()}
    assert sum(numel.values()) == weights
    rates = layer_rates(shapes, rate=0.2, **keywords)
    for level, expected in ladder.items():
        kept = sum(survivors(count, rates[name], level) for name, count in numel.items())
        assert float(100 * kept / weights) == pytest.approx(expected, abs=within)


@pytest.mark.parametrize(("rate", "expected"), [(0.05, 95.0), (0.325, 67.5), (0.825, 17.6), (0.95, 5.17)])
def test_one_shot_densities_of_lenet(rate: float, expected: float) -> None:
    masks = prune(random_scores(LENET), everything(LENET), layer_rates(LENET, rate=rate), 1).masks
    assert percent_left(masks) == pytest.approx(expected, abs=0.1)


def test_counts_are_exact_and_rounding_never_adds_up() -> None:
    shapes = {"a": (7, 11), "b": (3, 5)}
    scores, masks = random_scores(shapes), everything(shapes)
    for level in range(1, 12):
        masks = prune(scores, masks, {"a": 0.1, "b": 0.2}, level).masks
        for name, rate in (("a", 0.1), ("b", 0.2)):
            exact = masks[name].numel() * (1 - rate) ** level
            assert abs(int(masks[name].sum()) - max(exact, 1)) <= 0.5


def test_each_level_keeps_a_subset_of_the_level_before() -> None:
    shapes = {"a": (20, 30), "b": (10, 20)}
    masks = everything(shapes)
    for level in range(1, 8):
        new = prune(
            {n: torch.rand(s, generator=torch.Generator().manual_seed(level)) for n, s in shapes.items()},
            masks,
            {"a": 0.2, "b": 0.2},
            level,
            scope="global",
        ).masks
        assert all(not bool((new[name] & ~masks[name]).any()) for name in shapes)
        masks = new


def test_smallest_scores_go_first() -> None:
    scores = {"a": torch.tensor([[3.0, 1.0, 2.0, 5.0, 4.0]])}
    mask = prune(scores, everything({"a": (1, 5)}), {"a": 0.4}, 1).masks["a"]
    assert mask.tolist() == [[True, False, False, True, True]]


def test_pruned_weights_are_not_counted_again() -> None:
    # Score 0 of a pruned weight must not take the place of a survivor.
    scores = {"a": torch.tensor([[0.0, 0.0, 1.0, 2.0]])}
    before = {"a": torch.tensor([[False, False, True, True]])}
    mask = prune(scores, before, {"a": 0.5}, 2).masks["a"]
    assert mask.tolist() == [[False, False, False, True]]


def test_ties_go_by_flat_index_and_never_one_too_many() -> None:
    mask = prune({"a": torch.ones(4, 25)}, everything({"a": (4, 25)}), {"a": 0.3}, 1).masks["a"]
    assert int(mask.sum()) == 70
    assert mask.reshape(-1).tolist() == [False] * 30 + [True] * 70


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.99])
def test_the_lowest_are_the_first_of_a_stable_sort(rate: float) -> None:
    scores = torch.randint(7, (60, 50)).float()
    scores[0, :3] = torch.tensor([float("inf"), 0.0, -0.0])
    mask = prune({"a": scores}, everything({"a": (60, 50)}), {"a": rate}, 1).masks["a"]
    gone = torch.sort(scores.reshape(-1), stable=True).indices[: 3000 - int(mask.sum())]
    expected = torch.ones(3000, dtype=torch.bool)
    expected[gone] = False
    assert torch.equal(mask.reshape(-1), expected)


def test_ties_across_layers_go_by_the_order_of_the_layers() -> None:
    shapes = {"b": (1, 10), "a": (1, 10)}
    masks = prune(
        {n: torch.ones(s) for n, s in shapes.items()}, everything(shapes), {"b": 0.25, "a": 0.25}, 1, **GLOBAL
    )
    assert int(masks.masks["b"].sum()) == 5
    assert int(masks.masks["a"].sum()) == 10


def test_global_scope_compares_over_layers() -> None:
    shapes = {"small": (2, 10), "large": (2, 10)}
    scores = {"small": torch.rand(2, 10), "large": 1 + torch.rand(2, 10)}
    masks = prune(scores, everything(shapes), {"small": 0.4, "large": 0.4}, 1, **GLOBAL).masks
    assert int(masks["small"].sum()) == 4
    assert bool(masks["large"].all())


def test_global_scope_keeps_layers_of_another_rate_apart() -> None:
    shapes = {"hidden": (10, 10), "output": (10, 10)}
    scores = {"hidden": 1 + torch.rand(10, 10), "output": torch.rand(10, 10)}
    masks = prune(scores, everything(shapes), {"hidden": 0.2, "output": 0.1}, 1, **GLOBAL).masks
    assert int(masks["hidden"].sum()) == 80
    assert int(masks["output"].sum()) == 90


def test_no_layer_collapses_and_the_total_stays_exact_under_global_scope() -> None:
    shapes = {"doomed": (2, 5), "strong": (10, 10)}
    scores = {"doomed": torch.rand(2, 5) * 1e-6, "strong": 1 + torch.rand(10, 10)}
    pruned = prune(scores, everything(shapes), {"doomed": 0.5, "strong": 0.5}, 1, scope="global", min_kept=3)
    assert pruned.floored == ["doomed"]
    assert int(pruned.masks["doomed"].sum()) == 3
    assert int(pruned.masks["strong"].sum()) == 52


def test_the_floor_keeps_a_layers_best_weights() -> None:
    scores = {"a": torch.tensor([[1.0, 4.0, 3.0, 2.0]])}
    pruned = prune(scores, everything({"a": (1, 4)}), {"a": 0.9}, 3, min_kept=2)
    assert pruned.masks["a"].tolist() == [[False, True, True, False]]
    assert pruned.floored == ["a"]


def test_a_layer_above_the_floor_is_not_reported() -> None:
    pruned = prune({"a": torch.rand(4, 5)}, everything({"a": (4, 5)}), {"a": 0.5}, 1, min_kept=10)
    assert pruned.floored == []
    assert int(pruned.masks["a"].sum()) == 10


def test_rate_zero_leaves_a_layer_alone_without_scores() -> None:
    shapes = {"a": (2, 2), "b": (4, 4)}
    masks = prune({"b": torch.rand(4, 4)}, everything(shapes), {"a": 0.0, "b": 0.5}, 1).masks
    assert list(masks) == ["a", "b"]
    assert bool(masks["a"].all())


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_blocks_live_and_die_as_a_whole(scope: str) -> None:
    tile = Granularity.parse("block:4x4")
    shapes = {"a": (32, 48), "b": (16, 4, 3, 3)}
    masks = everything(shapes)
    for level in range(1, 4):
        masks = prune(random_scores(shapes), masks, {"a": 0.25, "b": 0.25}, level, scope=scope, granularity=tile).masks
    for name, shape in shapes.items():
        counts = tile.pool(masks[name])
        assert set(counts.tolist()) <= {0, *tile.sizes(shape).tolist()}
    total = sum(int(mask.sum()) for mask in masks.values())
    assert total == pytest.approx((32 * 48 + 16 * 36) * 0.75**3, abs=16)


def test_ragged_blocks_come_as_near_as_whole_blocks_allow() -> None:
    tile = Granularity.parse("block:4x4")
    masks = prune({"a": torch.rand(10, 7)}, everything({"a": (10, 7)}), {"a": 0.5}, 1, granularity=tile).masks
    assert abs(int(masks["a"].sum()) - 35) <= 8


def test_block_scores_are_sums_of_magnitudes() -> None:
    weight = torch.tensor([[1.0, -1.0, 0.9, 0.9], [1.0, -1.0, 0.9, -0.9]])
    tile = Granularity.parse("block:2x2")
    mask = prune({"a": weight.abs()}, everything({"a": (2, 4)}), {"a": 0.5}, 1, granularity=tile).masks["a"]
    assert mask.tolist() == [[True, True, False, False]] * 2


def test_rows_are_whole_filters() -> None:
    tile = Granularity.parse("row")
    scores = {"a": torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 2, 3, 3)}
    mask = prune(scores, everything({"a": (4, 2, 3, 3)}), {"a": 0.5}, 1, granularity=tile).masks["a"]
    assert mask.reshape(4, -1).all(1).tolist() == [False, False, True, True]


def test_rows_of_different_width_compete_by_their_mean_under_global_scope() -> None:
    # By sums, the narrow layer would lose every row although each of its weights is larger.
    shapes = {"narrow": (4, 2), "wide": (4, 100)}
    scores = {"narrow": torch.full((4, 2), 1.0), "wide": torch.full((4, 100), 0.5)}
    rates = {"narrow": 0.5, "wide": 0.5}
    masks = prune(scores, everything(shapes), rates, 1, scope="global", granularity=Granularity.parse("row")).masks
    assert bool(masks["narrow"].all())

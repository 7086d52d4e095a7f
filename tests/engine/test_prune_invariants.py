"""What holds for every scope, granularity, rate and score: masks are nested, counts exact, the better survives."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lth_sparse.engine.granularity import Granularity
from lth_sparse.engine.scope import SCOPES, prune, survivors

TEXTS = ["weight", "row", "column", "block:2x3", "vector:4x1", "channel", "2:4"]
SHAPES: list[dict[str, tuple[int, ...]]] = [
    {"a": (8, 12), "b": (4, 6)},
    {"conv": (6, 4, 3, 3), "fc": (7, 11), "out": (3, 7)},
    {"a": (5, 5)},
]
CASE = {
    "shapes": st.sampled_from(SHAPES),
    "text": st.sampled_from(TEXTS),
    "scope": st.sampled_from(SCOPES),
    "rate": st.sampled_from([0.05, 0.2, 0.37, 0.5]),
    "seed": st.integers(0, 10_000),
    "values": st.sampled_from([2, 5, 1000]),  # few values: many ties
}


def scores_of(shapes: dict[str, tuple[int, ...]], seed: int, values: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randint(values, shape, generator=generator).float() for name, shape in shapes.items()}


def everything(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}


@settings(max_examples=80, deadline=None)
@given(**CASE)
def test_masks_are_nested_and_counts_as_near_as_tiles_allow(
    shapes: dict[str, tuple[int, ...]], text: str, scope: str, rate: float, seed: int, values: int
) -> None:
    tile, masks = Granularity.parse(text), everything(shapes)
    rates = dict.fromkeys(shapes, rate)
    for level in range(1, 5):
        pruned = prune(scores_of(shapes, seed + level, values), masks, rates, level, scope=scope, granularity=tile)
        assert all(not bool((new & ~masks[name]).any()) for name, new in pruned.masks.items())
        masks = pruned.masks
        parts = [[name] for name in shapes] if scope == "layer" else [list(shapes)]
        for part in parts:
            goal = survivors(sum(masks[name].numel() for name in part), rate, level)
            kept = sum(int(masks[name].sum()) for name in part)
            largest = max(int(tile.sizes(shapes[name]).max()) for name in part)
            slack = Fraction(largest, 2) * (len(part) if scope == "erk" else 1) + Fraction(len(part), 2) * (largest > 1)
            if not pruned.floored:
                assert abs(kept - goal) <= slack
            assert all(bool(masks[name].any()) for name in part)  # no layer is pruned to nothing
        for mask in masks.values():
            counts = tile.pool(mask)
            assert bool(((counts == 0) | (counts == tile.sizes(mask.shape))).all())


@settings(max_examples=40, deadline=None)
@given(**CASE)
def test_what_is_kept_scores_no_less_than_what_is_pruned(
    shapes: dict[str, tuple[int, ...]], text: str, scope: str, rate: float, seed: int, values: int
) -> None:
    tile, scores = Granularity.parse(text), scores_of(shapes, seed, values)
    masks = prune(scores, everything(shapes), dict.fromkeys(shapes, rate), 1, scope=scope, granularity=tile).masks
    if text == "2:4" or len({int(n) for shape in shapes.values() for n in tile.sizes(shape)}) > 1:
        return  # protected groups, and tiles of several sizes, have tests of their own
    kept: dict[str, list[float]] = {}
    gone: dict[str, list[float]] = {}
    for name, mask in masks.items():
        pool = "all" if scope == "global" else name
        alive, values_of = tile.pool(mask) > 0, tile.pool(scores[name])
        kept.setdefault(pool, []).extend(values_of[alive].tolist())
        gone.setdefault(pool, []).extend(values_of[~alive].tolist())
    assert all(min(kept[pool]) >= max(gone[pool]) for pool in kept if gone[pool] and kept[pool])


@settings(max_examples=40, deadline=None)
@given(**CASE, factor=st.sampled_from([2.0, 0.5, 64.0]))
def test_scale_and_equal_scores_do_not_matter(
    shapes: dict[str, tuple[int, ...]], text: str, scope: str, rate: float, seed: int, values: int, factor: float
) -> None:
    scores, rates = scores_of(shapes, seed, values), dict.fromkeys(shapes, rate)
    options = {"scope": scope, "granularity": Granularity.parse(text)}
    first = prune(scores, everything(shapes), rates, 1, **options).masks  # type: ignore[arg-type]
    scaled = {name: factor * values for name, values in scores.items()}
    again = prune(scaled, everything(shapes), rates, 1, **options).masks  # type: ignore[arg-type]
    assert all(torch.equal(first[name], again[name]) for name in shapes)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rate=st.sampled_from([0.1, 0.5, 0.8]), bonus=st.sampled_from([1.0, 3.0]))
def test_a_survivor_whose_score_grows_stays_a_survivor(seed: int, rate: float, bonus: float) -> None:
    scores = scores_of({"a": (6, 9)}, seed, 5)
    mask = prune(scores, everything({"a": (6, 9)}), {"a": rate}, 1).masks["a"]
    place = int(mask.reshape(-1).nonzero()[seed % int(mask.sum())])
    scores["a"].view(-1)[place] += bonus
    assert bool(prune(scores, everything({"a": (6, 9)}), {"a": rate}, 1).masks["a"].view(-1)[place])


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("text", TEXTS)
def test_equal_scores_prune_the_first_places_and_no_tile_too_many(scope: str, text: str) -> None:
    tile, shapes = Granularity.parse(text), {"a": (8, 12)}
    mask = prune({"a": torch.ones(8, 12)}, everything(shapes), {"a": 0.5}, 1, scope=scope, granularity=tile).masks["a"]
    assert int(mask.sum()) == pytest.approx(48, abs=float(tile.sizes((8, 12)).max()) / 2)
    if text != "2:4":
        tiles = (tile.pool(mask) > 0).tolist()
        assert tiles == sorted(tiles)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_layer_is_never_pruned_to_nothing_without_a_word(scope: str) -> None:
    shapes = {"doomed": (2, 3), "strong": (10, 10)}
    scores = {"doomed": torch.zeros(2, 3), "strong": torch.rand(10, 10)}
    pruned = prune(scores, everything(shapes), dict.fromkeys(shapes, 0.99), 1, scope=scope, min_kept=2)
    assert all(int(mask.sum()) >= 2 for mask in pruned.masks.values())
    assert "doomed" in pruned.floored


def test_between_two_levels_counts_are_exponential() -> None:
    assert survivors(1000, 0.75, 0.5) == 500
    assert survivors(1000, 0.75, 2) == Fraction(125, 2)
    mask = prune({"a": torch.rand(100, 10)}, everything({"a": (100, 10)}), {"a": 0.75}, 1.5).masks["a"]
    assert int(mask.sum()) == 125

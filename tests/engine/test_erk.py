"""Erdos-Renyi-Kernel densities: the formula, exact totals, and counts that only fall."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lth_sparse.engine.erk import erk_counts
from lth_sparse.engine.granularity import Granularity
from lth_sparse.engine.scope import prune, survivors

CONV4 = [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (256, 8192), (256, 256), (10, 256)]
SHAPES = st.lists(st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6)


def densities(shapes: list[tuple[int, ...]], total: float) -> list[float]:
    """As RigL's text has it: eps (out + in + kh + kw) / (out * in * kh * kw), full layers taken out one by one."""
    full: set[int] = set()
    while True:
        left = total - sum(math.prod(shapes[i]) for i in full)
        free = [i for i in range(len(shapes)) if i not in full]
        if not free:
            return [1.0] * len(shapes)
        eps = left / sum(sum(shapes[i]) for i in free)
        over = [i for i in free if eps * sum(shapes[i]) > math.prod(shapes[i])]
        if not over:
            return [1.0 if i in full else eps * sum(s) / math.prod(s) for i, s in enumerate(shapes)]
        full.add(max(over, key=lambda i: sum(shapes[i]) / math.prod(shapes[i])))


@pytest.mark.parametrize("density", [0.9, 0.5, 0.2, 0.05, 0.01])
def test_densities_are_those_of_the_formula(density: float) -> None:
    total = round(density * sum(math.prod(shape) for shape in CONV4))
    counts = erk_counts(CONV4, total)
    assert sum(counts) == total
    for shape, count, expected in zip(CONV4, counts, densities(CONV4, total), strict=True):
        assert abs(count - expected * math.prod(shape)) <= 2


def test_small_layers_stay_full_and_their_surplus_goes_to_the_others() -> None:
    counts = erk_counts([(3, 2), (100, 100), (100, 50)], 7000)
    assert counts[0] == 6
    assert sum(counts) == 7000
    assert counts[2] == 2997  # quotas 200 and 150 of the 6994 that are left
    assert counts[1] == 3997


@settings(max_examples=60, deadline=None)
@given(shapes=SHAPES, least=st.integers(0, 3), data=st.data())
def test_totals_are_exact_and_no_layer_gains_from_a_smaller_total(
    shapes: list[tuple[int, ...]], least: int, data: st.DataObject
) -> None:
    sizes = [math.prod(shape) for shape in shapes]
    total = data.draw(st.integers(0, sum(sizes)))
    floors = [least] * len(shapes)
    counts = erk_counts(shapes, total, floors)
    assert sum(counts) == max(total, sum(min(least, size) for size in sizes))
    assert all(min(least, size) <= count <= size for count, size in zip(counts, sizes, strict=True))
    if total:
        fewer = erk_counts(shapes, total - 1, floors)
        assert all(a <= b for a, b in zip(fewer, counts, strict=True))


@pytest.mark.parametrize("text", ["weight", "row", "block:2x2", "2:4"])
def test_masks_of_erk_have_exact_totals_and_are_nested(text: str) -> None:
    tile = Granularity.parse(text)
    shapes = {"a": (16, 3, 3, 3), "b": (40, 20), "c": (10, 40), "out": (4, 10)}
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    rates = {"a": 0.15, "b": 0.15, "c": 0.15, "out": 0.1}
    for level in range(1, 4):
        scores = {name: torch.rand(shape) for name, shape in shapes.items()}
        new = prune(scores, masks, rates, level, scope="erk", granularity=tile).masks
        assert all(not bool((new[name] & ~masks[name]).any()) for name in shapes)
        masks = new
        goal = survivors(432 + 800 + 400, 0.15, level)
        total = sum(int(masks[name].sum()) for name in "abc")
        widest = max(int(tile.sizes(shapes[name]).max()) for name in "abc")
        assert abs(total - goal) <= (Fraction(1, 2) if widest == 1 else 3 * widest)
    a, b, c = (float(masks[name].float().mean()) for name in "abc")
    assert c > b > a  # 50 of 400, 60 of 800, 25 of 432: the most rows and columns for its weights is the densest
    assert abs(int(masks["out"].sum()) - survivors(40, 0.1, 3)) <= int(tile.sizes((4, 10)).max())


def test_within_a_layer_the_scores_decide() -> None:
    scores = {"a": torch.arange(100.0).reshape(10, 10), "b": torch.arange(400.0).reshape(20, 20)}
    masks = {name: torch.ones_like(s, dtype=torch.bool) for name, s in scores.items()}
    found = prune(scores, masks, {"a": 0.5, "b": 0.5}, 1, scope="erk").masks
    for name, mask in found.items():
        assert float(scores[name][mask].min()) > float(scores[name][~mask].max())
    assert [int(found["a"].sum()), int(found["b"].sum())] == [83, 167]


def test_a_layer_at_the_floor_is_reported_and_others_go_instead() -> None:
    shapes = {"small": (2, 2), "large": (60, 60)}
    scores = {name: torch.rand(shape) for name, shape in shapes.items()}
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    pruned = prune(scores, masks, dict.fromkeys(shapes, 0.99), 1, scope="erk", min_kept=3)
    assert pruned.floored == ["small"]
    assert [int(mask.sum()) for mask in pruned.masks.values()] == [3, 33]

"""N:M: exact counts on the way, never fewer than N of M, and where it ends."""

from __future__ import annotations

import warnings
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.engine import Level
from lth_sparse.engine.controls import control_masks
from lth_sparse.engine.granularity import Granularity
from lth_sparse.engine.pruning import check_depth
from lth_sparse.engine.scope import prune, survivors
from lth_sparse.errors import ArgumentError
from lth_sparse.nn import sparse_modules


def groups(mask: Tensor, m: int) -> list[tuple[int, int]]:
    """(kept, width) of every group of a row."""
    matrix = mask.reshape(mask.shape[0], -1)
    return [(int(part.sum()), len(part)) for row in matrix for part in row.split(m)]


def everything(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2), (3, 5)])
@pytest.mark.parametrize("shape", [(6, 16), (5, 13), (4, 3, 3, 3)])
def test_one_shot_keeps_the_best_n_of_each_m(n: int, m: int, shape: tuple[int, ...]) -> None:
    tile, scores = Granularity.parse(f"{n}:{m}"), torch.rand(shape)
    mask = prune({"a": scores}, {"a": everything(*shape)}, {"a": 0.99}, 1, granularity=tile).masks["a"]
    assert all(kept == min(n, width) for kept, width in groups(mask, m))
    assert int(mask.sum()) == tile.least(shape)
    rows, kept_rows = scores.reshape(shape[0], -1), mask.reshape(shape[0], -1)
    for row, kept in zip(rows, kept_rows, strict=True):
        for part, alive in zip(row.split(m), kept.split(m), strict=True):
            assert set(part[alive].tolist()) == set(part.topk(min(n, len(part))).values.tolist())


@settings(max_examples=30, deadline=None)
@given(
    nm=st.sampled_from([(2, 4), (1, 4), (1, 2), (4, 8)]),
    shape=st.sampled_from([(3, 8), (4, 7), (2, 2, 3, 3)]),
    rate=st.sampled_from([0.1, 0.2, 0.35]),
    seed=st.integers(0, 1000),
    ties=st.booleans(),
)
def test_every_level_is_nested_exact_and_never_below(
    nm: tuple[int, int], shape: tuple[int, ...], rate: float, seed: int, ties: bool
) -> None:
    (n, m), generator = nm, torch.Generator().manual_seed(seed)
    tile, mask = Granularity.parse(f"{n}:{m}"), everything(*shape)
    least = sum(min(n, width) for _, width in groups(mask, m))
    for level in range(1, 8):
        scores = torch.rand(shape, generator=generator)
        scores = (scores * 3).floor() if ties else scores
        new = prune({"a": scores}, {"a": mask}, {"a": rate}, level, granularity=tile).masks["a"]
        assert not bool((new & ~mask).any())
        mask = new
        assert all(kept >= min(n, width) for kept, width in groups(mask, m))
        assert abs(int(mask.sum()) - max(survivors(mask.numel(), rate, level), least)) <= Fraction(1, 2)


def test_ties_keep_the_later_weights() -> None:
    mask = prune({"a": torch.ones(1, 8)}, {"a": everything(1, 8)}, {"a": 0.5}, 1, granularity=Granularity.parse("2:4"))
    assert mask.masks["a"].int().tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]


def test_scores_below_zero_and_infinite_ones_have_their_places() -> None:
    scores = torch.tensor([[-5.0, -1.0, -float("inf"), -3.0]])
    before = torch.tensor([[True, False, True, True]])
    mask = prune({"a": scores}, {"a": before}, {"a": 0.5}, 1, granularity=Granularity.parse("2:4")).masks["a"]
    assert mask.tolist() == [[True, False, False, True]]


def test_global_scope_lets_groups_of_all_layers_compete() -> None:
    tile, shapes = Granularity.parse("2:4"), {"weak": (4, 8), "strong": (4, 8)}
    scores = {"weak": torch.rand(4, 8), "strong": 1 + torch.rand(4, 8)}
    masks = {name: everything(*shape) for name, shape in shapes.items()}
    pruned = prune(scores, masks, dict.fromkeys(shapes, 0.25), 1, scope="global", granularity=tile)
    assert [int(mask.sum()) for mask in pruned.masks.values()] == [16, 32]
    assert pruned.floored == []


def test_a_layer_that_would_fall_below_is_reported() -> None:
    tile, masks = Granularity.parse("2:4"), {"a": everything(4, 8)}
    assert prune({"a": torch.rand(4, 8)}, masks, {"a": 0.5}, 1, granularity=tile).floored == []
    assert prune({"a": torch.rand(4, 8)}, masks, {"a": 0.6}, 1, granularity=tile).floored == ["a"]


@pytest.mark.parametrize("shape", [(6, 16), (5, 13), (4, 3, 3, 3)])
def test_shuffled_masks_stay_n_of_m(shape: tuple[int, ...]) -> None:
    tile = Granularity.parse("2:4")
    mask = prune({"a": torch.rand(shape)}, {"a": everything(*shape)}, {"a": 0.9}, 1, granularity=tile).masks["a"]
    found = tile.shuffled(mask, torch.Generator().manual_seed(0))
    assert all(kept == min(2, width) for kept, width in groups(found, 4))
    assert not torch.equal(found, mask)
    assert torch.equal(found, tile.shuffled(mask, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", ["shuffled", "global_shuffled", "prune_at_0"])
def test_masks_of_controls_stay_n_of_m(kind: str) -> None:
    tile, shapes = Granularity.parse("2:4"), {"a": (6, 16), "b": (5, 13), "frozen": (3, 3)}
    masks = {name: everything(*shape) for name, shape in shapes.items()}
    scores = {name: torch.rand(shape) for name, shape in shapes.items()}
    masks = prune(scores, masks, {"a": 0.6, "b": 0.6}, 1, granularity=tile).masks
    theta = {name: torch.randn(shape) for name, shape in shapes.items()}
    found = control_masks(kind, masks, theta, tile, torch.Generator().manual_seed(1))
    for name in ("a", "b"):
        assert all(kept == min(2, width) for kept, width in groups(found[name], 4))
        assert not torch.equal(found[name], masks[name])
    assert bool(found["frozen"].all())


@pytest.mark.parametrize(
    ("rates", "scope", "most"),
    [
        ({"a": 0.2, "b": 0.2}, "layer", 4),  # 0.8^4 = 0.41
        ({"a": 0.2, "b": 0.1}, "layer", 7),  # 0.9^7 = 0.48
        ({"a": 0.2, "b": 0.2}, "global", 4),
        ({"a": 0.2, "b": 0.0}, "erk", 4),
        ({"a": 0.5, "b": 0.25}, "layer", 3),  # 0.75^3 = 0.42
    ],
)
def test_levels_that_could_prune_nothing_are_refused(rates: dict[str, float], scope: str, most: int) -> None:
    shapes = {"a": torch.Size((8, 16)), "b": torch.Size((8, 8))}
    tile = Granularity.parse("2:4")
    check_depth(shapes, rates, most, scope, tile)
    with pytest.raises(ArgumentError, match=f"levels: expected at most {most} with granularity='2:4'"):
        check_depth(shapes, rates, most + 1, scope, tile)
    check_depth(shapes, rates, 100, scope, Granularity.parse("weight"))


def test_a_search_ends_in_n_of_m(search: Any) -> None:
    with pytest.warns(UserWarning, match=r"level 1 would prune it below granularity='2:4'; it keeps"):
        ticket = search(one_shot=True, levels=None, rate=0.6, output_rate=0.5, granularity="2:4").ticket
    for mask in ticket.masks.values():
        assert all(kept == min(2, width) for kept, width in groups(mask, 4))
    with pytest.raises(ArgumentError, match="levels: expected at most 4"):
        search(levels=5, rate=0.2, output_rate=0.2, granularity="2:4")


def test_levels_on_the_way_to_2_4_are_dense_and_the_last_is_stored_so() -> None:
    kinds: list[set[str]] = []

    def train(model: nn.Module, level: Level) -> dict[str, float]:
        kinds.append({module.layout.kind for _, module in sparse_modules(model)})
        return {"test_acc": 0.5}

    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    options = {"granularity": "2:4", "layout": "2:4", "rate": 0.3, "output_rate": 0.3, "levels": 2, "strict": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the last level stops at one half
        result = ls.find_ticket(model, train, **options)
    assert kinds == [set(), {"dense"}, {"2:4"}]
    assert result.ticket.density == 0.5
    with pytest.raises(ArgumentError, match="layout: expected 'auto', 'csr' or 'dense', or granularity='2:4'"):
        ls.find_ticket(model, train, layout="2:4", levels=1)

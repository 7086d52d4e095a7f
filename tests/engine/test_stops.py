"""Searches that end by themselves: at a target density, or when accuracy falls below a floor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError

Search = Callable[..., Any]


def falling(model: Any, level: Any) -> dict[str, float]:
    """Accuracy .9, .8, .7, ... from level to level, and as many validation losses as there are steps."""
    level.record(step=1, val_loss=1.0, test_acc=0.9 - 0.1 * level.index)
    return {"test_acc": 0.99}


def test_the_first_level_at_or_below_the_target_is_the_last(search: Search) -> None:
    result = search(levels=None, rate=0.5, target_density=0.2, train=falling)
    densities = [record.density for record in result.levels]
    assert densities[-1] <= 0.2 < densities[-2]
    assert len(densities) == 4


def test_levels_still_bound_a_search_with_a_target(search: Search) -> None:
    assert len(search(levels=2, rate=0.5, target_density=0.01, train=falling).levels) == 3


def test_controls_follow_at_the_level_where_it_ended(search: Search) -> None:
    result = search(levels=None, rate=0.5, target_density=0.5, controls="shuffled", train=falling)
    assert set(result.controls) == {(len(result.levels) - 1, "shuffled")}
    result = search(levels=5, stop_below=0.75, controls="shuffled", control_levels=[1, 5], train=falling)
    assert set(result.controls) == {(1, "shuffled")}


def test_accuracy_at_the_early_stop_decides(search: Search) -> None:
    result = search(levels=5, stop_below=0.65, train=falling)
    assert [round(record.accuracy(), 1) for record in result.levels] == [0.9, 0.8, 0.7, 0.6]


def test_a_dense_network_below_the_floor_is_the_only_one(search: Search) -> None:
    assert len(search(levels=5, stop_below=0.95, controls="shuffled", train=falling).levels) == 1


def test_a_resumed_search_ends_at_the_same_level(search: Search, tmp_path: Path) -> None:
    options = {"levels": None, "rate": 0.5, "target_density": 0.2, "train": falling, "directory": tmp_path}
    first, again = search(**options), search(**options)
    assert [record.resumed for record in again.levels] == [True] * 4
    assert first.tickets == again.tickets
    with pytest.raises(RunError, match=r"target_density is 0\.2 in this run, but 0\.1 was asked for"):
        search(**{**options, "target_density": 0.1})


@pytest.mark.filterwarnings("ignore:.*min_kept:UserWarning")
def test_a_target_out_of_reach_is_an_error(search: Search) -> None:
    with pytest.raises(RunError, match="target_density: expected a density that pruning reaches"):
        search(levels=None, rate=0.5, freeze=["conv*", "out*"], min_kept=100, target_density=0.001, train=falling)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"target_density": 1.0}, ArgumentError, r"target_density: expected a share of the weights in \(0, 1\)"),
        ({"target_density": "10%"}, ArgumentTypeError, "target_density: expected a share"),
        ({"stop_below": "high"}, ArgumentTypeError, "stop_below: expected a number"),
        ({"stop_below": 0.5, "stop_metric": 3}, ArgumentTypeError, "stop_metric: expected the name"),
        ({"stop_below": 0.5, "stop_metric": "f1"}, ArgumentError, "stop_metric: expected one that train records"),
    ],
)
def test_wrong_rules_are_refused(search: Search, keywords: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        search(train=falling, **keywords)

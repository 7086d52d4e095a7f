"""Hyperparameters: every bad value is one clear error that names its keyword."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torch.nn import functional as F

import lth_sparse as ls
from lth_sparse.engine.settings import Settings
from lth_sparse.errors import ArgumentError, ArgumentTypeError


@pytest.mark.parametrize(
    ("keyword", "value", "error"),
    [
        ("levels", -1, ArgumentError),
        ("levels", 1.5, ArgumentTypeError),
        ("levels", True, ArgumentTypeError),
        ("rate", 1.0, ArgumentError),
        ("rate", 20, ArgumentError),
        ("rate", -0.1, ArgumentError),
        ("rate", float("nan"), ArgumentError),
        ("rate", "0.2", ArgumentTypeError),
        ("output_rate", 1.5, ArgumentError),
        ("rates", [0.1], ArgumentTypeError),
        ("rates", {"fc": 2}, ArgumentError),
        ("criterion", "size", ArgumentError),
        ("scope", "everywhere", ArgumentError),
        ("scope", 1, ArgumentTypeError),
        ("granularity", "block", ArgumentError),
        ("rewind", "soon", ArgumentError),
        ("one_shot", 1, ArgumentTypeError),
        ("min_kept", 0, ArgumentError),
        ("min_kept", 0.5, ArgumentTypeError),
        ("prune", 3, ArgumentTypeError),
        ("freeze", [3], ArgumentTypeError),
        ("controls", 3, ArgumentTypeError),
        ("control_levels", 3, ArgumentTypeError),
        ("control_levels", ["last"], ArgumentTypeError),
        ("layout", "coo", ArgumentError),
        ("layout", "bsr", ArgumentError),
        ("seed", -1, ArgumentError),
        ("seed", "0", ArgumentTypeError),
        ("reset_parameters", "xavier", ArgumentTypeError),
        ("break_even", [0.5], ArgumentTypeError),
        ("break_even", {"fc.weight": 1.5}, ArgumentError),
        ("break_even", {"fc.weight": "half"}, ArgumentError),
        ("feature_major", 1, ArgumentTypeError),
        ("granularity", "4:2", ArgumentError),
        ("criterion", lambda: None, ArgumentTypeError),
        ("score_batches", 3, ArgumentTypeError),
        ("score_loss", "mse", ArgumentTypeError),
        ("score_shape", 784, ArgumentTypeError),
        ("score_rounds", 0, ArgumentError),
        ("score_rounds", 1.5, ArgumentTypeError),
        ("dense_baseline", "no", ArgumentTypeError),
    ],
)
def test_a_bad_value_names_its_keyword(keyword: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{keyword}.*: expected .*, got "):
        Settings(**{keyword: value})


def test_levels_are_fifteen_or_one_for_one_shot() -> None:
    assert Settings().levels == 15
    assert Settings(one_shot=True).levels == 1


def test_one_shot_with_several_levels_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"levels: expected 1 with one_shot=True.*got 5"):
        Settings(one_shot=True, levels=5)


def test_a_block_granularity_offers_its_block_to_the_layout() -> None:
    assert Settings(granularity="block:8x8").block == (8, 8)
    assert Settings(granularity="block:8x8", layout="bsr").block == (8, 8)
    assert Settings(granularity="block:8x8", layout="csr").block is None
    assert not Settings(granularity="block:8x8").channels_last
    assert Settings(granularity="block:8x8:channels_last").block == (8, 8)
    assert Settings(granularity="block:8x8:channels_last").channels_last
    assert not Settings(granularity="block:8x8:channels_last", layout="csr").channels_last
    assert Settings(granularity="weight").block is None


def test_later_keywords_leave_the_identity_of_earlier_runs_alone() -> None:
    scoring = {"score_batches", "score_loss", "score_shape", "score_rounds", "dense_baseline"}
    assert not ({"break_even", "feature_major"} | scoring) & set(Settings().hyperparameters())
    changed = Settings(break_even={"fc.weight": 0.5}, feature_major=True).hyperparameters()
    assert (changed["break_even"], changed["feature_major"]) == ({"fc.weight": 0.5}, True)


def test_what_criteria_are_given_is_remembered() -> None:
    options = {"criterion": "synflow", "score_batches": [()], "score_loss": F.nll_loss, "score_shape": [3, 8]}
    kept = Settings(**options, score_rounds=7, dense_baseline=False).hyperparameters()
    assert (kept["score_batches"], kept["score_loss"]) == ("builtins.list", "torch.nn.functional.nll_loss")
    assert (kept["score_shape"], kept["score_rounds"], kept["dense_baseline"]) == ([3, 8], 7, False)
    assert (kept["criterion"], kept["scope"], kept["one_shot"], kept["output_rate"]) == ("synflow", "global", True, 0.2)


def test_an_unknown_keyword_of_levels_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match=r"levels: expected keywords among .*, got 'level'"):
        ls.levels(nn.Sequential(nn.Linear(2, 2)), level=3)

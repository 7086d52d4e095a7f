"""Scores: magnitude is |w|, callables are checked, NaN is an error."""

from __future__ import annotations

import pytest
import torch

from lth_sparse.engine.criteria import criterion_name, find_criterion, score
from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError

WEIGHT = torch.tensor([[-3.0, 0.5], [0.0, 2.0]])
ALL = torch.ones(2, 2, dtype=torch.bool)


def test_magnitude_ignores_the_sign() -> None:
    assert score(find_criterion("magnitude"), "w", WEIGHT, ALL).tolist() == [[3.0, 0.5], [0.0, 2.0]]


def test_a_callable_gets_name_and_weight() -> None:
    seen: list[str] = []

    def criterion(name: str, weight: torch.Tensor) -> torch.Tensor:
        seen.append(name)
        return -weight

    assert score(criterion, "fc.weight", WEIGHT, ALL).tolist() == [[3.0, -0.5], [-0.0, -2.0]]
    assert seen == ["fc.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_scores_become_float32(dtype: torch.dtype) -> None:
    assert score(find_criterion("magnitude"), "w", WEIGHT.to(dtype), ALL).dtype == torch.float32


def test_nan_in_surviving_weights_says_training_diverged() -> None:
    with pytest.raises(RunError, match=r"fc\.weight: the trained weights hold NaN"):
        score(find_criterion("magnitude"), "fc.weight", torch.full((2, 2), torch.nan), ALL)


@pytest.mark.parametrize(
    ("result", "error"),
    [(3.0, ArgumentTypeError), (torch.ones(4), ArgumentError), (torch.full((2, 2), torch.nan), ArgumentError)],
)
def test_bad_results_of_a_callable_name_the_criterion(result: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="criterion: expected"):
        score(lambda name, weight: result, "w", WEIGHT, ALL)  # type: ignore[arg-type, return-value]


def test_nan_scores_of_pruned_weights_do_not_matter() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    scores = torch.tensor([[1.0, 2.0], [3.0, torch.nan]])
    assert score(lambda name, weight: scores, "w", WEIGHT, mask)[1, 0] == 3


@pytest.mark.parametrize(("criterion", "error"), [("magnitud", ArgumentError), (3, ArgumentTypeError)])
def test_unknown_criterion_is_refused(criterion: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="criterion: expected"):
        find_criterion(criterion)  # type: ignore[arg-type]


def test_names_of_criteria() -> None:
    assert criterion_name("magnitude") == "magnitude"
    assert criterion_name(torch.abs).endswith("abs")

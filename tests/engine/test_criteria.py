"""Scores: the formulas of the weights' criteria, what a callable is given, and what it may return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.engine.criteria import CRITERIA, Scoring, ScoringContext, criterion_name, find_criterion, score
from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError

WEIGHT = torch.tensor([[-3.0, 0.5], [0.0, 2.0]])
INITIAL = torch.tensor([[1.0, 2.0], [-1.0, 0.25]])
ALL = torch.ones(2, 2, dtype=torch.bool)


def scored(name: str, weight: Tensor = WEIGHT, initial: Tensor = INITIAL, mask: Tensor = ALL, **options: Any) -> Tensor:
    scoring = Scoring({"w": weight}, {"w": mask}, {"w": initial}, **options)
    return score(find_criterion(name), "w", weight, mask, scoring)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("magnitude", [[3.0, 0.5], [0.0, 2.0]]),
        ("large_final", [[3.0, 0.5], [0.0, 2.0]]),
        ("small_final", [[-3.0, -0.5], [0.0, -2.0]]),
        ("large_init", [[1.0, 2.0], [1.0, 0.25]]),
        ("small_init", [[-1.0, -2.0], [-1.0, -0.25]]),
        ("magnitude_increase", [[2.0, -1.5], [-1.0, 1.75]]),
        ("movement", [[4.0, 1.5], [1.0, 1.75]]),
        ("large_final_same_sign", [[0.0, 0.5], [0.0, 2.0]]),
        ("large_final_diff_sign", [[3.0, 0.0], [0.0, 0.0]]),
        # Ranks of |w_f|: 1, 1/2, 1/4, 3/4; of |w_i|: 3/4 (two of them), 1, 1/4.
        ("large_init_large_final", [[0.75, 0.5], [0.25, 0.25]]),
        # Ranks of -|w_f|: 1/4, 3/4, 1, 1/2; of -|w_i|: 3/4, 1/4, 3/4, 1.
        ("small_init_small_final", [[0.25, 0.25], [0.75, 0.5]]),
    ],
)
def test_scores_of_zhou_by_hand(name: str, expected: list[list[float]]) -> None:
    assert scored(name).tolist() == expected


def test_every_criterion_of_the_paper_has_a_name_and_a_formula() -> None:
    assert {"magnitude", "gradient", "taylor", "snip", "grasp", "synflow", "random"} < set(CRITERIA)
    assert len(CRITERIA) == 17
    assert all(criterion.rule.__doc__ for criterion in CRITERIA.values())
    assert [name for name, criterion in CRITERIA.items() if criterion.at_init] == ["snip", "grasp", "synflow"]


@pytest.mark.parametrize("name", ["magnitude", "small_final", "large_init", "small_init", "movement"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_flipping_all_signs_changes_no_score(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, initial = (torch.randn(5, 7, generator=generator) for _ in range(2))
    mask = torch.ones(5, 7, dtype=torch.bool)
    assert torch.equal(scored(name, weight, initial, mask), scored(name, -weight, -initial, mask))


@pytest.mark.parametrize("name", ["large_final", "large_init_large_final"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_larger_weight_never_scores_less(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, initial = (torch.randn(30, generator=generator) for _ in range(2))
    larger = weight.clone()
    larger[0] *= 3
    every = torch.ones(30, dtype=torch.bool)
    assert scored(name, larger, initial, every)[0] >= scored(name, weight, initial, every)[0]


def test_percentiles_are_aligned_whatever_the_scale() -> None:
    weight, initial = torch.randn(2, 200).unbind()
    every = torch.ones(200, dtype=torch.bool)
    for name in ("large_init_large_final", "small_init_small_final"):
        assert torch.equal(scored(name, weight, initial, every), scored(name, 50 * weight, initial, every))


def test_percentiles_are_those_of_the_survivors() -> None:
    mask = torch.tensor([[True, True], [False, True]])
    assert scored("large_init_large_final", mask=mask)[mask].tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3])


def test_random_scores_come_from_seed_level_round_and_name_alone() -> None:
    first = scored("random", seed=3, level=2)
    torch.manual_seed(99)
    assert torch.equal(scored("random", seed=3, level=2), first)
    for other in ({"seed": 4, "level": 2}, {"seed": 3, "level": 1}, {"seed": 3, "level": 2, "round": 2}):
        assert not torch.equal(scored("random", **other), first)
    two = Scoring({"v": WEIGHT, "w": WEIGHT}, {"v": ALL, "w": ALL}, seed=3, level=2)
    assert torch.equal(score(find_criterion("random"), "w", WEIGHT, ALL, two), first)
    assert not torch.equal(score(find_criterion("random"), "v", WEIGHT, ALL, two), first)


# --- callables ------------------------------------------------------------------------------------------------------


def test_a_callable_of_two_arguments_gets_name_and_weight() -> None:
    seen: list[str] = []

    def criterion(name: str, weight: Tensor) -> Tensor:
        seen.append(name)
        return -weight

    assert score(criterion, "fc.weight", WEIGHT, ALL).tolist() == [[3.0, -0.5], [-0.0, -2.0]]
    assert seen == ["fc.weight"]


def test_a_callable_of_one_argument_gets_the_context() -> None:
    seen: list[ScoringContext] = []

    def criterion(context: ScoringContext, power: float = 2.0) -> Tensor:
        seen.append(context)
        return context.initial.abs() ** power

    scoring = Scoring({"w": WEIGHT}, {"w": ALL}, {"w": INITIAL}, level=4)
    assert torch.equal(score(criterion, "w", WEIGHT, ALL, scoring), INITIAL**2)
    (context,) = seen
    assert (context.name, context.level, context.mask is ALL) == ("w", 4, True)
    assert torch.equal(context.weight, WEIGHT)
    assert context.generator is context.generator


class Centred:
    """A criterion with a state of its own."""

    at_init = True

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        return (weight - weight.mean()).abs()


def test_an_object_that_is_called_is_a_criterion() -> None:
    found = find_criterion(Centred())
    assert (found.name.endswith("Centred"), found.at_init) == (True, True)
    assert score(found, "w", WEIGHT, ALL).shape == (2, 2)


@pytest.mark.parametrize(
    "criterion", [torch.abs, lambda *arguments: arguments[1], lambda name, weight, power=2: weight.abs() ** power]
)
def test_callables_of_name_and_weight_in_disguise(criterion: Callable[..., Tensor]) -> None:
    if criterion is torch.abs:  # no signature to read, so it is called with both, and complains itself
        with pytest.raises(TypeError):
            score(criterion, "w", WEIGHT, ALL)
    else:
        assert score(criterion, "w", WEIGHT, ALL).shape == (2, 2)


@pytest.mark.parametrize("criterion", [lambda: WEIGHT, lambda a, b, c: WEIGHT, lambda name, *, weight: WEIGHT])
def test_a_callable_that_needs_something_else_is_refused(criterion: Callable[..., Tensor]) -> None:
    with pytest.raises(ArgumentTypeError, match=r"criterion: expected a callable \(context\) -> scores or"):
        find_criterion(criterion)


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


def test_an_unknown_name_is_answered_with_all_names() -> None:
    with pytest.raises(ArgumentError) as caught:
        find_criterion("magnitud")
    assert all(repr(name) in str(caught.value) for name in CRITERIA)


def test_names_of_criteria() -> None:
    assert criterion_name("magnitude") == "magnitude"
    assert criterion_name(torch.abs).endswith("abs")


# --- outside of a search --------------------------------------------------------------------------------------------


def test_theta_0_is_not_known_outside_of_a_search() -> None:
    with pytest.raises(ArgumentError, match="criterion: expected one without theta_0 where no search began with it"):
        score(find_criterion("movement"), "w", WEIGHT, ALL)


@pytest.mark.parametrize("name", [name for name, criterion in CRITERIA.items() if criterion.needs])
def test_early_birds_take_criteria_of_the_weights_alone(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"criterion: expected one of the weights as they are.*got '{name}', which"):
        ls.EarlyBird(criterion=name)


def test_early_birds_know_types_scopes_and_granularities() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 4))
    early = ls.EarlyBird(rate=0.5, criterion="large_final", scope="erk", granularity="filter", freeze=["Linear"])
    early.update(model)
    assert early.mask is not None
    assert list(early.mask) == ["0.weight"]
    assert early.mask.nnz == 36
    with pytest.raises(ArgumentError, match=r"granularity: expected one that applies to 2\.weight"):
        ls.EarlyBird(granularity="filter").update(model)

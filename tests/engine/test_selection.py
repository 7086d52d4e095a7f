"""Which weights are pruned at which rate, and what is refused before training starts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lth_sparse as ls
from lth_sparse.engine.selection import check_prunable, layer_rates, weights_of
from lth_sparse.errors import ArgumentError, ArgumentTypeError

NAMES = ["conv1.weight", "fc1.weight", "output.weight"]


def test_output_layer_has_half_the_rate() -> None:
    assert layer_rates(NAMES, rate=0.2) == {"conv1.weight": 0.2, "fc1.weight": 0.2, "output.weight": 0.1}


def test_output_rate_may_be_given() -> None:
    assert layer_rates(NAMES, rate=0.2, output_rate=0.15)["output.weight"] == 0.15


def test_rates_by_glob_name_and_module_name() -> None:
    rates = layer_rates(NAMES, rate=0.2, rates={"conv*": 0.05, "fc1": 0.3, "output.weight": 0.4})
    assert rates == {"conv1.weight": 0.05, "fc1.weight": 0.3, "output.weight": 0.4}


def test_exact_name_wins_over_a_glob_and_over_output_rate() -> None:
    rates = layer_rates(NAMES, rate=0.2, output_rate=0.1, rates={"output": 0.4, "*": 0.3})
    assert rates == {"conv1.weight": 0.3, "fc1.weight": 0.3, "output.weight": 0.4}


def test_output_rate_wins_over_a_glob() -> None:
    assert layer_rates(NAMES, rate=0.2, output_rate=0.1, rates={"*": 0.3})["output.weight"] == 0.1


def test_the_last_glob_wins() -> None:
    assert layer_rates(NAMES, rate=0.2, rates={"*": 0.3, "fc*": 0.4})["fc1.weight"] == 0.4


def test_frozen_layers_and_layers_not_chosen_have_rate_zero() -> None:
    rates = layer_rates(NAMES, rate=0.2, prune=["conv1", "fc1"], freeze="fc1")
    assert rates == {"conv1.weight": 0.2, "fc1.weight": 0.0, "output.weight": 0.0}


@pytest.mark.parametrize("keyword", ["rates", "prune", "freeze"])
def test_a_pattern_that_matches_nothing_is_refused_with_a_suggestion(keyword: str) -> None:
    value = {"fc3": 0.1} if keyword == "rates" else ["fc3"]
    with pytest.raises(ArgumentError, match=rf"{keyword}: expected .*did you mean 'fc1'"):
        layer_rates(NAMES, rate=0.2, **{keyword: value})


def test_nothing_left_to_prune_is_refused() -> None:
    with pytest.raises(ArgumentError, match="nothing to prune"):
        layer_rates(NAMES, rate=0.2, freeze="*")


def test_biases_and_normalisation_are_never_candidates() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    assert list(weights_of(model)) == ["0.weight", "3.weight"]


def test_a_shared_weight_counts_once() -> None:
    layer = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = layer.weight
    assert list(weights_of(nn.Sequential(layer, nn.ReLU(), layer, tied))) == ["0.weight"]


def test_a_sparse_model_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    ls.sparsify_(model, {"0.weight": torch.eye(4, dtype=torch.bool)})
    with pytest.raises(ArgumentError, match=r"model: expected a dense model .*SparseLinear"):
        weights_of(model)


def test_a_model_pruned_by_torch_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(ArgumentError, match="reparametrised '0'"):
        weights_of(model)


def test_a_lazy_model_is_refused() -> None:
    with pytest.raises(ArgumentError, match="lazy '0'"):
        weights_of(nn.Sequential(nn.LazyLinear(4)))


def test_a_single_layer_is_refused() -> None:
    with pytest.raises(ArgumentError, match="a module that contains layers"):
        weights_of(nn.Linear(2, 2))


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at least one Linear, Conv1d or Conv2d"):
        weights_of(nn.Sequential(nn.ReLU()))


def test_no_module_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match=r"model: expected a torch.nn.Module, got dict"):
        weights_of({})  # type: ignore[arg-type]


def test_a_layer_with_hooks_is_refused_before_training() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ArgumentError, match=r"0\.weight.*hooks.*freeze"):
        check_prunable(model, ["0.weight"])
    check_prunable(model, ["1.weight"])


def test_checking_leaves_the_model_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    check_prunable(model, ["0.weight", "1.weight"])
    assert type(model[0]) is nn.Linear

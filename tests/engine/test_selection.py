"""Which weights are pruned at which rate, and what is refused before training starts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lth_sparse as ls
from lth_sparse.engine.selection import check_prunable, layer_rates, types_of, weights_of
from lth_sparse.errors import ArgumentError, ArgumentTypeError

NAMES = ["conv1.weight", "fc1.weight", "output.weight"]
TYPES = {"conv1.weight": "Conv2d", "fc1.weight": "Linear", "output.weight": "Linear"}


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


def test_rates_by_type() -> None:
    rates = layer_rates(NAMES, rate=0.3, rates={"Conv2d": 0.2, "Linear": 0.1}, types=TYPES)
    assert rates == {"conv1.weight": 0.2, "fc1.weight": 0.1, "output.weight": 0.1}


def test_a_glob_wins_over_a_type_whatever_their_order() -> None:
    for given in ({"Linear": 0.1, "fc*": 0.2}, {"fc*": 0.2, "Linear": 0.1}):
        assert layer_rates(NAMES, rate=0.3, rates=given, types=TYPES)["fc1.weight"] == 0.2


def test_output_rate_and_exact_names_win_over_a_type() -> None:
    options = {"rate": 0.3, "types": TYPES}
    assert layer_rates(NAMES, rates={"Linear": 0.1}, output_rate=0.05, **options)["output.weight"] == 0.05
    assert layer_rates(NAMES, rates={"output": 0.02, "Linear": 0.1}, **options)["output.weight"] == 0.02


def test_types_are_frozen_or_chosen() -> None:
    frozen = layer_rates(NAMES, rate=0.2, freeze="Linear", types=TYPES)
    assert frozen == {"conv1.weight": 0.2, "fc1.weight": 0.0, "output.weight": 0.0}
    assert layer_rates(NAMES, rate=0.2, prune=["Conv2d"], types=TYPES) == frozen


def test_a_name_is_a_name_though_it_is_called_as_a_type() -> None:
    names = ["Linear.weight", "fc.weight", "out.weight"]
    rates = layer_rates(names, rate=0.2, freeze="Linear", types=dict.fromkeys(names, "Linear"))
    assert rates == {"Linear.weight": 0.0, "fc.weight": 0.2, "out.weight": 0.1}


def test_an_unknown_type_is_answered_with_those_there_are() -> None:
    with pytest.raises(ArgumentError, match=r"freeze: expected .*or a type: Conv2d, Linear, got 'Conv3d'.*'Conv2d'"):
        layer_rates(NAMES, rate=0.2, freeze="Conv3d", types=TYPES)


def test_types_of_a_model_are_those_of_its_layers() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    found = types_of(model, weights_of(model))
    assert found == {"0.weight": "Conv1d", "1.weight": "Conv2d", "3.weight": "Linear"}


def test_a_search_knows_the_types_of_its_layers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2))
    for level in (search := ls.levels(model, levels=1, rates={"Conv2d": 0.5}, freeze="Linear")):
        assert level.index in (0, 1)
    kept = {stats.name: stats.nnz for stats in search.result().ticket.masks.stats()}
    assert kept == {"0.weight": 18, "2.weight": 128, "3.weight": 16}


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

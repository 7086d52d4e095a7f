"""The percentages of weights left: the paper's, from the real networks' sizes, without a training."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import nn

from lth_sparse.engine.scope import SCOPES, planned_density, prune
from lth_sparse.engine.selection import layer_rates, weights_of
from lth_sparse.paper import PRESETS, build_model
from lth_sparse.paper.ladder import MARGINS, PRINTED, WEIGHTS, densities_of, printed_ladder

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
#: As the paper prints them.
PAPER = {
    "lenet": {3: 51.3, 7: 21.1, 9: 13.5, 15: 3.6, 18: 1.9, 20: 1.2},
    "conv2": {11: 8.8, 14: 4.6},
    "conv4": {11: 11.1, 12: 9.2, 15: 5.4},
    "conv6": {7: 26.4, 10: 15.1, 12: 10.5},
    "resnet20": {4: 41.7, 6: 27.1, 7: 21.9, 10: 11.8},
    "vgg19": {12: 6.9, 15: 3.5, 19: 1.5},
}


@lru_cache
def network(name: str, shape: tuple[int, int, int]) -> nn.Module:
    return build_model(name, shape)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_leads_down_the_papers_ladder(name: str) -> None:
    preset = PRESETS[name]
    model = network(preset.model, SHAPES[preset.dataset])
    densities = densities_of(preset, model)
    assert len(densities) == 21
    assert densities[0] == 1.0
    for level, percent in PAPER[preset.model].items():
        # The paper prints another number of weights for Conv-6 than its layers have, and so another ladder.
        assert abs(100 * densities[level] - percent) < (0.3 if preset.model == "conv6" else 0.1)
    assert sum(weight.numel() for weight in weights_of(model).values()) == WEIGHTS[preset.model]


def test_the_printed_ladders_are_the_papers() -> None:
    assert PRINTED == PAPER
    assert MARGINS == {"conv6": 0.3}


@pytest.mark.parametrize(("name", "level", "left"), [("resnet", 1, 217_357), ("resnet", 10, 31_944)])
def test_levels_of_resnet_are_exact_counts(name: str, level: int, left: int) -> None:
    """267,696 weights of 3x3 convolutions by 0.8^k, and 2,560 of shortcuts and 640 of the output that always stay."""
    preset = PRESETS[name]
    assert densities_of(preset, build_model(preset.model, (3, 32, 32)))[level] * 270_896 == pytest.approx(left)


@pytest.mark.parametrize(("p", "left"), [(0.05, 95.0), (0.325, 67.5), (0.825, 17.6), (0.95, 5.17)])
def test_one_shot_pruning_of_lenet_leaves_what_the_paper_prints(p: float, left: float) -> None:
    preset = replace(PRESETS["lenet"], rates={"fc*": p, "output*": p / 2}, levels=1)
    assert abs(100 * densities_of(preset, build_model("lenet", (1, 28, 28)))[1] - left) < 0.15


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("level", [1, 4, 10])
def test_pruning_random_weights_of_resnet_leaves_exactly_what_is_planned(scope: str, level: int, seed: int) -> None:
    preset = PRESETS["resnet"]
    weights = {name: weight.detach() for name, weight in weights_of(build_model(preset.model, (3, 32, 32))).items()}
    rates = layer_rates(weights, rate=0.2, rates=preset.rates)
    masks = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    scores = {name: weight.abs() for name, weight in weights.items()}
    pruned = prune(scores, masks, rates, level, scope=scope).masks
    kept, total = sum(int(mask.sum()) for mask in pruned.values()), sum(mask.numel() for mask in pruned.values())
    planned = planned_density({name: mask.shape for name, mask in masks.items()}, rates, level, scope)
    assert kept == planned * total
    for name, mask in pruned.items():  # what the paper never prunes is whole
        assert bool(mask.all()) or rates[name], name
    assert sum(rate == 0 for rate in rates.values()) == 3


def test_global_pruning_compares_weights_of_all_convolutions(seed: int) -> None:
    """One threshold over all layers: every weight that is left is at least as large as every one that is gone."""
    weights = {name: w.detach() for name, w in weights_of(build_model("resnet20", (3, 32, 32))).items()}
    rates = layer_rates(weights, rate=0.2, rates=PRESETS["resnet"].rates)
    masks = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    pruned = prune({name: w.abs() for name, w in weights.items()}, masks, rates, 6, scope="global").masks
    convs = [name for name in weights if rates[name]]
    gone = max(float(weights[name][~pruned[name]].abs().max()) for name in convs if not pruned[name].all())
    left = min(float(weights[name][pruned[name]].abs().min()) for name in convs)
    assert gone <= left
    densities = {round(float(pruned[name].float().mean()), 2) for name in convs}
    assert len(densities) > 3  # layers of other fans have other scales


def test_a_ladder_is_printed_for_the_networks_that_the_paper_has() -> None:
    preset = PRESETS["resnet-warmup"]
    grey = build_model("resnet20", (1, 8, 8))
    assert printed_ladder(preset, grey) == (PAPER["resnet20"], 0.1)
    assert printed_ladder(replace(preset, levels=6), grey)[0] == {4: 41.7, 6: 27.1}
    assert printed_ladder(PRESETS["conv6"], build_model("conv6", (3, 32, 32))) == (PAPER["conv6"], 0.3)
    assert printed_ladder(PRESETS["conv2"], build_model("conv2", (1, 16, 16)))[0] == {}  # another size
    assert printed_ladder(replace(preset, rates={"*conv*": 0.3}), grey)[0] == {}  # other rates
    assert printed_ladder(PRESETS["vgg"].quick(), build_model("vgg19", (1, 16, 16)))[0] == {}


def test_a_planned_density_counts_layers_that_are_never_pruned() -> None:
    shapes = {"a": torch.Size([10]), "b": torch.Size([30]), "c": torch.Size([7])}
    rates = {"a": 0.5, "b": 0.5, "c": 0.0}
    assert planned_density(shapes, rates, 0) == 1.0
    assert planned_density(shapes, rates, 2) * 47 == pytest.approx(2 + 7 + 7)  # 2.5 and 7.5: an exact half goes down
    assert planned_density(shapes, rates, 2, "global") * 47 == pytest.approx(10 + 7)

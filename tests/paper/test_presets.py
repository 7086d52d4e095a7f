"""The presets: the paper's table, line by line, and the budget for two cores."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lth_sparse.engine.selection import weights_of
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.paper import PRESETS, Preset, build_model

CONV, CONV6 = {"conv*": 0.10, "fc*": 0.20, "output*": 0.10}, {"conv*": 0.15, "fc*": 0.20, "output*": 0.10}
TABLE = {
    # name: model, data set, iterations, batch, lr, rates, dropout
    "lenet": ("lenet", "mnist", 50_000, 60, 1.2e-3, {"fc*": 0.20, "output*": 0.10}, 0.0),
    "conv2": ("conv2", "cifar10", 20_000, 60, 2e-4, CONV, 0.0),
    "conv4": ("conv4", "cifar10", 25_000, 60, 3e-4, CONV, 0.0),
    "conv6": ("conv6", "cifar10", 30_000, 60, 3e-4, CONV6, 0.0),
    "conv2-dropout": ("conv2", "cifar10", 60_000, 60, 3e-4, CONV, 0.5),
    "conv4-dropout": ("conv4", "cifar10", 75_000, 60, 2e-4, CONV, 0.5),
    "conv6-dropout": ("conv6", "cifar10", 90_000, 60, 2e-4, CONV6, 0.5),
}
RESNET = {"conv*": 0.2, "block*.conv*": 0.2, "*shortcut*": 0.0, "output*": 0.0}
VGG = {"conv*": 0.2, "output*": 0.0}
EPOCH = 703
SGD_TABLE = {
    # name: model, iterations, batch, lr, rates, milestones, warm-up, scope
    "resnet": ("resnet20", 30_000, 128, 0.1, RESNET, (20_000, 25_000), 0, "global"),
    "resnet-low": ("resnet20", 30_000, 128, 0.01, RESNET, (20_000, 25_000), 0, "global"),
    "resnet-warmup": ("resnet20", 30_000, 128, 0.03, RESNET, (20_000, 25_000), 20_000, "global"),
    "vgg": ("vgg19", 112_480, 64, 0.1, VGG, (80 * EPOCH, 120 * EPOCH), 0, "global"),
    "vgg-low": ("vgg19", 112_480, 64, 0.01, VGG, (80 * EPOCH, 120 * EPOCH), 0, "global"),
    "vgg-warmup": ("vgg19", 112_480, 64, 0.1, VGG, (80 * EPOCH, 120 * EPOCH), 10_000, "global"),
    "vgg-layerwise": ("vgg19", 112_480, 64, 0.1, VGG, (80 * EPOCH, 120 * EPOCH), 10_000, "layer"),
}
NAMES = [*TABLE, *SGD_TABLE]
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


@lru_cache
def network(name: str, shape: tuple[int, int, int]) -> nn.Module:
    return build_model(name, shape)


def test_the_table_is_complete() -> None:
    assert list(PRESETS) == NAMES
    assert all(preset.name == name for name, preset in PRESETS.items())


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_is_its_column_of_the_papers_table(name: str) -> None:
    p = PRESETS[name]
    assert (p.model, p.dataset, p.iterations, p.batch, p.lr, p.rates, p.dropout) == TABLE[name]
    assert (p.optimizer, p.evaluate_every, p.seeds, p.side) == ("adam", 100, 5, None)
    assert (p.momentum, p.weight_decay, p.milestones, p.warmup, p.flip, p.crop) == (0.0, 0.0, (), 0, False, 0)
    assert p.scope == "layer"


@pytest.mark.parametrize("name", SGD_TABLE)
def test_a_deep_networks_preset_is_its_column_of_the_papers_table(name: str) -> None:
    p = PRESETS[name]
    found = (p.model, p.iterations, p.batch, p.lr, p.rates, p.milestones, p.warmup, p.scope)
    assert found == SGD_TABLE[name]
    assert (p.dataset, p.optimizer, p.momentum, p.weight_decay, p.flip, p.crop) == (
        *("cifar10", "sgd", 0.9, 1e-4, True, 4),
    )
    assert (p.evaluate_every, p.seeds, p.side, p.dropout) == (100, 5, None, 0.0)


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("conv2", {0: 1.0, 19_999: 1.0}),
        ("resnet", {0: 1.0, 19_999: 1.0, 20_000: 0.1, 24_999: 0.1, 25_000: 0.01, 29_999: 0.01}),
        ("resnet-warmup", {0: 1 / 20_000, 9_999: 0.5, 19_999: 1.0, 20_000: 0.1, 25_000: 0.01}),
        ("vgg-warmup", {0: 1e-4, 4_999: 0.5, 9_999: 1.0, 10_000: 1.0, 56_239: 1.0, 56_240: 0.1, 84_360: 0.01}),
    ],
)
def test_the_learning_rate_rises_linearly_and_drops_to_a_tenth(name: str, factors: dict[int, float]) -> None:
    assert {step: PRESETS[name].lr_factor(step) for step in factors} == pytest.approx(factors)
    assert PRESETS[name].scheduled == (name != "conv2")


def test_a_shorter_training_has_the_same_schedule_in_its_own_iterations() -> None:
    short = PRESETS["resnet-warmup"].scaled(300)
    assert (short.iterations, short.milestones, short.warmup) == (300, (200, 250), 200)
    assert PRESETS["vgg-warmup"].scaled(1).milestones == (1, 1)
    assert PRESETS["lenet"].scaled(5) == replace(PRESETS["lenet"], iterations=5)
    with pytest.raises(ArgumentError, match="iterations: expected at least 1, got 0"):
        PRESETS["vgg"].scaled(0)


def test_only_images_that_have_no_sides_are_mirrored() -> None:
    assert PRESETS["vgg"].on("cifar10").flip
    assert not PRESETS["vgg"].on("digits").flip
    assert not PRESETS["vgg"].on("mnist").flip
    assert PRESETS["vgg"].on("digits").crop == 4


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_matches_exactly_one_pattern(name: str) -> None:
    preset = PRESETS[name]
    for key in weights_of(network(preset.model, SHAPES[preset.dataset])):
        assert sum(fnmatchcase(key, pattern) for pattern in preset.rates) == 1, key


@pytest.mark.parametrize("name", NAMES)
def test_quick_changes_the_budget_and_nothing_else(name: str) -> None:
    full, quick = PRESETS[name], PRESETS[name].quick()
    assert quick.dataset == "digits"
    assert quick.iterations < full.iterations
    kept = ("rates", "batch", "lr", "optimizer", "dropout", "momentum", "weight_decay", "scope")
    assert all(getattr(quick, key) == getattr(full, key) for key in kept)
    assert quick.model == {"vgg19": "vgg19-quarter"}.get(full.model, full.model)
    assert not quick.flip
    assert quick.crop == min(full.crop, 1)
    places, theirs = ((*p.milestones, p.warmup) for p in (quick, full))
    assert len(places) == len(theirs)
    for place, their in zip(places, theirs, strict=True):
        assert abs(place - their * quick.iterations / full.iterations) <= 0.5


def test_quick_twice_is_quick_once_but_for_the_name() -> None:
    for name in ("lenet", "resnet-warmup", "vgg-warmup"):
        once = PRESETS[name].quick()
        assert replace(once.quick(), name=once.name) == once


def test_a_network_without_a_quick_budget_says_so() -> None:
    with pytest.raises(ArgumentError, match=r"model: expected one of lenet, .*, got 'resnet18'"):
        replace(PRESETS["resnet"], model="resnet18").quick()


def test_quick_lenet_prunes_to_3_6_percent_on_three_seeds() -> None:
    quick = PRESETS["lenet"].quick()
    assert (quick.name, quick.levels, quick.seeds) == ("lenet-quick", 15, 3)
    assert quick.iterations % quick.evaluate_every == 0


@pytest.mark.parametrize(("name", "shape"), [("lenet", (1, 28, 28)), ("conv6", (1, 16, 16))])
def test_a_quick_presets_images_have_its_side(name: str, shape: tuple[int, int, int]) -> None:
    assert PRESETS[name].quick().load_data().shape == shape


def test_a_side_for_digits_is_no_hindrance_to_other_data(mnist: Path) -> None:
    assert replace(PRESETS["conv2"].quick(), dataset="mnist").load_data(mnist).shape == (1, 28, 28)


def test_a_preset_can_be_written_as_json() -> None:
    plain = PRESETS["conv6"].to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["rates"] == CONV6
    deep = PRESETS["vgg-warmup"].to_dict()
    assert json.loads(json.dumps(deep)) == deep
    assert (deep["milestones"], deep["warmup"], deep["scope"]) == ([56_240, 84_360], 10_000, "global")


def test_what_a_preset_has_no_use_for_is_left_out_of_its_json() -> None:
    """So that a run directory of before these fields existed is still the same run's."""
    for name in TABLE:
        assert not {"momentum", "weight_decay", "milestones", "warmup", "scope", "flip", "crop"} & set(
            PRESETS[name].to_dict()
        )
    assert "layer" not in PRESETS["vgg-layerwise"].to_dict().values()


def test_changing_a_copys_rates_leaves_the_preset_alone() -> None:
    for copy in (PRESETS["lenet"].quick(), replace(PRESETS["lenet"], lr=1.0)):
        copy.rates["fc*"] = 0.5
        assert PRESETS["lenet"].rates["fc*"] == 0.2


def test_a_preset_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        PRESETS["lenet"].lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("model", "resnet", ArgumentError),
        ("dataset", "imagenet", ArgumentError),
        ("optimizer", "lion", ArgumentError),
        ("momentum", 0.9, ArgumentError),  # Adam has its own
        ("momentum", 1.0, ArgumentError),
        ("momentum", None, ArgumentTypeError),
        ("weight_decay", -1e-4, ArgumentError),
        ("weight_decay", float("inf"), ArgumentError),
        ("weight_decay", "1e-4", ArgumentTypeError),
        ("milestones", 20_000, ArgumentTypeError),
        ("milestones", (20_000.0,), ArgumentTypeError),
        ("milestones", (0,), ArgumentError),
        ("milestones", (20, 10), ArgumentError),
        ("warmup", -1, ArgumentError),
        ("warmup", 1.5, ArgumentTypeError),
        ("scope", "galaxy", ArgumentError),
        ("flip", 1, ArgumentTypeError),
        ("crop", -1, ArgumentError),
        ("crop", True, ArgumentTypeError),
        ("iterations", 0, ArgumentError),
        ("iterations", 1e3, ArgumentTypeError),
        ("batch", 0, ArgumentError),
        ("batch", True, ArgumentTypeError),
        ("evaluate_every", -1, ArgumentError),
        ("levels", -1, ArgumentError),
        ("seeds", 0, ArgumentError),
        ("lr", 0.0, ArgumentError),
        ("lr", float("nan"), ArgumentError),
        ("lr", float("inf"), ArgumentError),
        ("lr", "1e-3", ArgumentTypeError),
        ("dropout", 1.0, ArgumentError),
        ("rates", [0.2], ArgumentTypeError),
        ("rates", {"fc*": 1.0}, ArgumentError),
        ("rates", {"fc*": -0.1}, ArgumentError),
        ("rates", {"fc*": None}, ArgumentTypeError),
        ("side", 7, ArgumentError),
        ("side", "28", ArgumentTypeError),
    ],
)
def test_a_bad_value_is_named(field: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=field):
        replace(PRESETS["lenet"], **{field: value})


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_comes_back_from_its_plain_values(name: str) -> None:
    preset = PRESETS[name]
    stored = json.loads(json.dumps(preset.to_dict()))
    assert Preset.from_dict({**stored, "threads": 2}) == preset
    del stored["lr"]
    with pytest.raises(KeyError, match="lr"):
        Preset.from_dict(stored)

"""The presets: the paper's table, line by line, and the budget for two cores."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.paper import PRESETS, build_model

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
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


def test_the_table_is_complete() -> None:
    assert list(PRESETS) == list(TABLE)
    assert all(preset.name == name for name, preset in PRESETS.items())


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_is_its_column_of_the_papers_table(name: str) -> None:
    p = PRESETS[name]
    assert (p.model, p.dataset, p.iterations, p.batch, p.lr, p.rates, p.dropout) == TABLE[name]
    assert (p.optimizer, p.evaluate_every, p.seeds, p.side) == ("adam", 100, 5, None)


@pytest.mark.parametrize("name", TABLE)
def test_every_weight_matches_exactly_one_pattern(name: str) -> None:
    preset = PRESETS[name]
    model = build_model(preset.model, SHAPES[preset.dataset], dropout=preset.dropout)
    for key, _ in model.named_parameters():
        assert sum(fnmatchcase(key, pattern) for pattern in preset.rates) == 1, key


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("lenet", {3: 51.3, 7: 21.1, 9: 13.5, 15: 3.6, 18: 1.9, 20: 1.2}),
        ("conv2", {11: 8.8, 14: 4.6}),
        ("conv4", {11: 11.1, 12: 9.2, 15: 5.4}),
        ("conv6", {7: 26.4, 10: 15.1, 12: 10.5}),
    ],
)
def test_rates_lead_down_the_papers_ladder(name: str, left: dict[int, float]) -> None:
    preset = PRESETS[name]
    model = build_model(preset.model, SHAPES[preset.dataset])
    sizes = {key: p.numel() for key, p in model.named_parameters() if key.endswith(".weight")}
    rates = {key: next(r for pattern, r in preset.rates.items() if fnmatchcase(key, pattern)) for key in sizes}
    for level, percent in left.items():
        kept = sum(size * (1 - rates[key]) ** level for key, size in sizes.items())
        # The paper prints another number of weights for Conv-6 than its layers have, and so another ladder.
        assert abs(100 * kept / sum(sizes.values()) - percent) < (0.3 if name == "conv6" else 0.1)


@pytest.mark.parametrize("name", TABLE)
def test_quick_changes_the_budget_and_nothing_else(name: str) -> None:
    full, quick = PRESETS[name], PRESETS[name].quick()
    assert quick.dataset == "digits"
    assert quick.iterations < full.iterations
    kept = ("model", "batch", "lr", "optimizer", "rates", "dropout")
    assert all(getattr(quick, key) == getattr(full, key) for key in kept)


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
        ("optimizer", "sgd", ArgumentError),
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

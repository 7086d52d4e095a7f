"""The percentages of weights left, level by level: a preset's ladder, without a training, and the one the paper prints.

The ladder follows from the rates and the sizes of the layers alone, so it tells a right implementation from a wrong one
before anything is trained: rates on the survivors or on all weights, layers that are never pruned and yet counted.
"""

from __future__ import annotations

from torch import nn

from lth_sparse.engine.scope import planned_density
from lth_sparse.engine.selection import layer_rates, types_of, weights_of
from lth_sparse.paper.presets import PRESETS, Preset

__all__ = ["PRINTED", "WEIGHTS", "densities_of", "printed_ladder"]

#: Percent of weights left by level, as the paper prints them (Frankle & Carbin 2018, figures 3 to 8).
PRINTED: dict[str, dict[int, float]] = {
    "lenet": {3: 51.3, 7: 21.1, 9: 13.5, 15: 3.6, 18: 1.9, 20: 1.2},
    "conv2": {11: 8.8, 14: 4.6},
    "conv4": {11: 11.1, 12: 9.2, 15: 5.4},
    "conv6": {7: 26.4, 10: 15.1, 12: 10.5},
    "resnet20": {4: 41.7, 6: 27.1, 7: 21.9, 10: 11.8},
    "vgg19": {12: 6.9, 15: 3.5, 19: 1.5},
}
#: Weights of the networks whose ladders these are: on the paper's images.
WEIGHTS = {
    "lenet": 266_200,
    "conv2": 4_300_992,
    "conv4": 2_425_024,
    "conv6": 2_261_184,
    "resnet20": 270_896,
    "vgg19": 20_024_000,
}
#: How far a printed figure may be off, in percent of the weights. The paper's Conv-6 has another number of weights
#: (1.7 million printed, 2.26 million in the layers of the same table), and so another ladder.
MARGINS = {"conv6": 0.3}
MARGIN = 0.1
#: Grey images leave the first convolution of a network a third of its weights, which must not matter.
SAME = 0.002


def densities_of(preset: Preset, model: nn.Module) -> list[float]:
    """Share of the weights left at levels 0 to `preset.levels` of a search with the preset's rates and scope."""
    weights = weights_of(model)
    shapes = {name: weight.shape for name, weight in weights.items()}
    # The rate of a layer that no pattern names is that of `find_ticket`.
    rates = layer_rates(weights, rate=0.2, rates=preset.rates, types=types_of(model, weights))
    return [planned_density(shapes, rates, level, preset.scope) for level in range(preset.levels + 1)]


def printed_ladder(preset: Preset, model: nn.Module) -> tuple[dict[int, float], float]:
    """Level -> percent left as printed, for the levels of the preset, and the margin of these figures.

    Empty where the paper has no such ladder: another network, other rates, or a network of another size, as a Conv-2
    for smaller images is, whose first fully connected layer has fewer weights.
    """
    printed, papers = PRINTED.get(preset.model, {}), [p for p in PRESETS.values() if p.model == preset.model]
    count = sum(weight.numel() for weight in weights_of(model).values())
    same = printed and abs(count / WEIGHTS[preset.model] - 1.0) <= SAME
    if not same or preset.rates != papers[0].rates:
        return {}, MARGIN
    return {k: left for k, left in printed.items() if k <= preset.levels}, MARGINS.get(preset.model, MARGIN)

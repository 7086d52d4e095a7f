"""The networks of Frankle & Carbin 2018, figure 2: LeNet-300-100, Conv-2, Conv-4 and Conv-6.

Each is an nn.Sequential whose children read as the figure does. Layers are named conv1, conv2, ..., fc1, fc2, output,
so that the prune rates of a preset are the patterns "conv*", "fc*" and "output*". Convolutions are 3x3 and keep the
image's size (padding 1); every second one is followed by a 2x2 max-pooling. Weights without biases: LeNet 266,200
(28x28 grey images); Conv-2 4,300,992, Conv-4 2,425,024, Conv-6 2,261,184 (32x32 colour images).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import nn

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.paper import checks
from lth_sparse.paper.data import DataSet

CONVS: dict[str, tuple[int, ...]] = {
    "lenet": (),
    "conv2": (64, 64),
    "conv4": (64, 64, 128, 128),
    "conv6": (64, 64, 128, 128, 256, 256),
}
HIDDEN: dict[str, tuple[int, ...]] = {
    "lenet": (300, 100),
    "conv2": (256, 256),
    "conv4": (256, 256),
    "conv6": (256, 256),
}
MODELS = tuple(CONVS)
# Keeps a model's seed apart from the same number given to torch.manual_seed: a reinitialisation after that would
# otherwise draw the very weights that it is to replace.
SEED_MARK = 0x1803_03635


class PaperNet(nn.Sequential):
    """x float32 [n, channels, height, width] -> logits [n, classes]; built by `build_model`."""

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight anew, N(0, variance 2 / (fan_in + fan_out)), and set every bias to 0: Gaussian Glorot.

        In a convolution a fan is channels times kernel size. Without `generator` the global one is used, as the
        random-reinitialisation control wants. For the dense network: a sparse one has no weights left to draw.
        """
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_normal_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif module is not self and next(module.parameters(recurse=False), None) is not None:
                raise ArgumentError(
                    expected(f"model.{name}", "a dense Linear or Conv2d to reset", type(module).__name__)
                )


def build_model(
    name: str,
    data: DataSet | tuple[int, int, int],
    seed: int | None = 0,
    *,
    classes: int = 10,
    dropout: float = 0.0,
) -> PaperNet:
    """The network `name` (one of `MODELS`) for the images of `data`, freshly drawn from `seed`.

    `data` is a DataSet, or the (channels, height, width) of an image together with `classes`. The flattened size is
    computed, so the conv nets take any image that their poolings leave something of: at least 2, 4 or 8 pixels a side.
    `seed=None` draws from the global generator instead. `dropout` puts nn.Dropout behind each hidden fully connected
    layer; the paper gives the rate, 0.5, but not the place.

    Raises ArgumentError for an unknown name, an image too small, or a dropout outside [0, 1).
    """
    checks.known("name", name, MODELS)
    generator = None if seed is None else torch.Generator().manual_seed(checks.generator_seed(seed) ^ SEED_MARK)
    if isinstance(data, DataSet):
        shape, classes = data.shape, data.classes
    else:
        shape = _image_shape(data)
    checks.rate("dropout", dropout)
    checks.integer("classes", classes, 1)
    # Building draws weights that reset_parameters throws away; the caller's generator must not notice.
    with torch.random.fork_rng(devices=[]):
        net = PaperNet(OrderedDict(_layers(name, shape, classes, dropout)))
    net.reset_parameters(generator)
    return net


def _layers(name: str, shape: tuple[int, int, int], classes: int, dropout: float) -> Iterable[tuple[str, nn.Module]]:
    channels, height, width = shape
    for i, out in enumerate(CONVS[name], start=1):
        yield f"conv{i}", nn.Conv2d(channels, out, kernel_size=3, padding=1)
        yield f"conv{i}_relu", nn.ReLU()
        channels = out
        if i % 2 == 0:
            yield f"pool{i // 2}", nn.MaxPool2d(2)
            height, width = height // 2, width // 2
    features = channels * height * width
    if features == 0:
        side = 2 ** (len(CONVS[name]) // 2)
        raise ArgumentError(expected("data", f"images of at least {side}x{side} pixels for {name}", shape))
    yield "flatten", nn.Flatten()
    for i, out in enumerate(HIDDEN[name], start=1):
        yield f"fc{i}", nn.Linear(features, out)
        yield f"fc{i}_relu", nn.ReLU()
        if dropout:
            yield f"fc{i}_dropout", nn.Dropout(dropout)
        features = out
    yield "output", nn.Linear(features, classes)


def _image_shape(shape: object) -> tuple[int, int, int]:
    wanted = "a DataSet or (channels, height, width)"
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise ArgumentTypeError(expected("data", wanted, shape))
    if any(isinstance(n, bool) or not isinstance(n, int) for n in shape):
        raise ArgumentTypeError(expected("data", wanted, shape))
    if min(shape) < 1:
        raise ArgumentError(expected("data", "positive channels, height and width", shape))
    return shape[0], shape[1], shape[2]

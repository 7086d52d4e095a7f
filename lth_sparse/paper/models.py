"""The networks of Frankle & Carbin 2018, figure 2, and the ResNet-18 that others mean by that name.

Each is an nn.Sequential whose children read as the figure does. Layers are named conv1, conv2, ..., fc1, fc2, output,
so that the prune rates of a preset are the patterns "conv*", "fc*" and "output*". Weights without biases:

    lenet       266,200     28x28 grey images; all others 32x32 colour images
    conv2       4,300,992   convolutions are 3x3 and keep the image's size (padding 1); every second one is followed
    conv4       2,425,024   by a 2x2 max-pooling
    conv6       2,261,184
    vgg19       20,024,000  16 convolutions with batch normalisation and four poolings, the mean over the image, and one
                            fully connected layer, as for CIFAR in the paper
    vgg19-quarter           1,252,784: the same with a quarter of the channels in each layer. Not in the paper
    resnet20    270,896     the paper's "Resnet-18": 16, 32 and 64 channels in 3 x 3 blocks of two convolutions, the
                            mean over the image; 1x1 convolutions (shortcut) where a block changes the size
    resnet18    11,164,352  He et al. 2016, 64 to 512 channels in 4 x 2 such blocks, its stem for small images: 3x3
                            without stride and pooling. Not in the paper

Blocks of the residual networks are named block1, block2, ...; in each lie conv1, conv2 and, where needed, shortcut.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

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
#: Channels of the convolutions of VGG-19; "pool" is a 2x2 max-pooling.
VGG: dict[str, tuple[int | str, ...]] = {
    "vgg19": (*(64, 64, "pool", 128, 128, "pool"), *(256,) * 4, "pool", *(512,) * 4, "pool", *(512,) * 4)
}
# What a search over many levels of VGG-19 can afford on a CPU.
VGG["vgg19-quarter"] = tuple(out if isinstance(out, str) else out // 4 for out in VGG["vgg19"])
#: Channels of each stage of a residual network, the first also those of its stem, and the blocks of a stage.
RESIDUAL: dict[str, tuple[tuple[int, ...], int]] = {
    "resnet20": ((16, 32, 64), 3),
    "resnet18": ((64, 128, 256, 512), 2),
}
MODELS = (*CONVS, *VGG, *RESIDUAL)
# Keeps a model's seed apart from the same number given to torch.manual_seed: a reinitialisation after that would
# otherwise draw the very weights that it is to replace.
SEED_MARK = 0x1803_03635


class PaperNet(nn.Sequential):
    """x float32 [n, channels, height, width] -> logits [n, classes]; built by `build_model`."""

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight anew, N(0, variance 2 / (fan_in + fan_out)), and set every bias to 0: Gaussian Glorot.

        In a convolution a fan is channels times kernel size. Batch normalisation starts as torch has it: factors 1,
        shifts 0, no statistics. Without `generator` the global one is used, as the random-reinitialisation control
        wants. For the dense network: a sparse one has no weights left to draw.
        """
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_normal_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif module is not self and next(module.parameters(recurse=False), None) is not None:
                raise ArgumentError(
                    expected(f"model.{name}", "a dense Linear or Conv2d to reset", type(module).__name__)
                )


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation around an identity: relu(x + bn(conv(relu(bn(conv(x)))))).

    The first one may have a stride; the identity then becomes a 1x1 convolution with that stride, as it does where the
    number of channels changes (He et al. 2016, option B).
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu2 = nn.ReLU()
        changed = stride != 1 or channels != out
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if changed else None
        self.shortcut_bn = nn.BatchNorm2d(out) if changed else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.shortcut is not None and self.shortcut_bn is not None:
            x = self.shortcut_bn(self.shortcut(x))
        return self.relu2(y + x)


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
    computed, so the conv nets take any image that their poolings leave something of: at least 2, 4, 8 or, for vgg19, 16
    pixels a side.
    `seed=None` draws from the global generator instead. `dropout` puts nn.Dropout behind each hidden fully connected
    layer; the paper gives the rate, 0.5, but not the place. vgg19 and the residual networks have no such layer and take
    none.

    Raises ArgumentError for an unknown name, an image too small, or a dropout outside [0, 1) or without a place.
    """
    checks.known("name", name, MODELS)
    generator = None if seed is None else torch.Generator().manual_seed(checks.generator_seed(seed) ^ SEED_MARK)
    if isinstance(data, DataSet):
        shape, classes = data.shape, data.classes
    else:
        shape = _image_shape(data)
    if checks.rate("dropout", dropout) and name not in HIDDEN:
        raise ArgumentError(expected("dropout", f"0 for {name}, which has no hidden fully connected layer", dropout))
    checks.integer("classes", classes, 1)
    # Building draws weights that reset_parameters throws away; the caller's generator must not notice.
    with torch.random.fork_rng(devices=[]):
        net = PaperNet(OrderedDict(_layers(name, shape, classes, dropout)))
    net.reset_parameters(generator)
    return net


def _layers(name: str, shape: tuple[int, int, int], classes: int, dropout: float) -> Iterable[tuple[str, nn.Module]]:
    if name in VGG:
        yield from _vgg(name, shape, classes)
        return
    if name in RESIDUAL:
        yield from _residual(name, shape, classes)
        return
    channels, height, width = shape
    for i, out in enumerate(CONVS[name], start=1):
        yield f"conv{i}", nn.Conv2d(channels, out, kernel_size=3, padding=1)
        yield f"conv{i}_relu", nn.ReLU()
        channels = out
        if i % 2 == 0:
            yield f"pool{i // 2}", nn.MaxPool2d(2)
            height, width = height // 2, width // 2
    features = channels * height * width
    _check_side(name, shape, 2 ** (len(CONVS[name]) // 2))
    yield "flatten", nn.Flatten()
    for i, out in enumerate(HIDDEN[name], start=1):
        yield f"fc{i}", nn.Linear(features, out)
        yield f"fc{i}_relu", nn.ReLU()
        if dropout:
            yield f"fc{i}_dropout", nn.Dropout(dropout)
        features = out
    yield "output", nn.Linear(features, classes)


def _vgg(name: str, shape: tuple[int, int, int], classes: int) -> Iterable[tuple[str, nn.Module]]:
    channels, convs, pools = shape[0], 0, 0
    _check_side(name, shape, 2 ** VGG[name].count("pool"))
    for out in VGG[name]:
        if isinstance(out, str):
            pools += 1
            yield f"pool{pools}", nn.MaxPool2d(2)
            continue
        convs += 1
        # No bias: the normalisation that follows would take it away again.
        yield f"conv{convs}", nn.Conv2d(channels, out, kernel_size=3, padding=1, bias=False)
        yield f"conv{convs}_bn", nn.BatchNorm2d(out)
        yield f"conv{convs}_relu", nn.ReLU()
        channels = out
    yield from _mean_and_output(channels, classes)


def _residual(name: str, shape: tuple[int, int, int], classes: int) -> Iterable[tuple[str, nn.Module]]:
    stages, blocks = RESIDUAL[name]
    channels = stages[0]
    yield "conv1", nn.Conv2d(shape[0], channels, kernel_size=3, padding=1, bias=False)
    yield "conv1_bn", nn.BatchNorm2d(channels)
    yield "conv1_relu", nn.ReLU()
    for i in range(len(stages) * blocks):
        out = stages[i // blocks]
        yield f"block{i + 1}", Block(channels, out, stride=2 if i % blocks == 0 and i > 0 else 1)
        channels = out
    yield from _mean_and_output(channels, classes)


def _mean_and_output(channels: int, classes: int) -> Iterable[tuple[str, nn.Module]]:
    yield "mean", nn.AdaptiveAvgPool2d(1)
    yield "flatten", nn.Flatten()
    yield "output", nn.Linear(channels, classes)


def _check_side(name: str, shape: tuple[int, int, int], side: int) -> None:
    """Raise when an image is smaller than the poolings of `name` leave something of."""
    if min(shape[1:]) < side:
        raise ArgumentError(expected("data", f"images of at least {side}x{side} pixels for {name}", shape))


def _image_shape(shape: object) -> tuple[int, int, int]:
    wanted = "a DataSet or (channels, height, width)"
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise ArgumentTypeError(expected("data", wanted, shape))
    if any(isinstance(n, bool) or not isinstance(n, int) for n in shape):
        raise ArgumentTypeError(expected("data", wanted, shape))
    if min(shape) < 1:
        raise ArgumentError(expected("data", "positive channels, height and width", shape))
    return shape[0], shape[1], shape[2]

"""The layers of well-known networks, each distinct shape once with how often it comes.

Batches are those that the networks are trained with (LeNet and Conv-6: 60, VGG-19 and ResNet-18 on CIFAR: 64, Frankle &
Carbin 2018), and small ones where a batch is large: 8 images of 224x224 for ResNet-50 and ViT-B/16 (197 tokens each), 8
sequences of 128 tokens for BERT. Names count the layers in the network's order, as in `lth_sparse.paper`.
"""

from __future__ import annotations

from collections.abc import Iterator

from .cases import HEADLINE, Case

#: name, out channels, in channels, kernel, side of the image, stride, count
Conv = tuple[str, int, int, int, int, int, int]
#: name, out features, in features, count
Linear = tuple[str, int, int, int]


def _convs(network: str, batch: int, rows: tuple[Conv, ...], headline: tuple[str, ...] = ()) -> Iterator[Case]:
    for name, out, channels, kernel, side, stride, count in rows:
        tags = (*(HEADLINE if name in headline else ()), "networks", network)
        shape, image = (out, channels, kernel, kernel), (side, side)
        yield Case(f"{network}-{name}", "conv2d", shape, batch, image, stride, count=count, tags=tags)


def _linears(network: str, batch: int, rows: tuple[Linear, ...], headline: tuple[str, ...] = ()) -> Iterator[Case]:
    for name, out, features, count in rows:
        tags = (*(HEADLINE if name in headline else ()), "networks", network)
        yield Case(f"{network}-{name}", "linear", (out, features), batch, count=count, tags=tags)


CONV6: tuple[Conv, ...] = (
    ("conv1", 64, 3, 3, 32, 1, 1),
    ("conv2", 64, 64, 3, 32, 1, 1),
    ("conv3", 128, 64, 3, 16, 1, 1),
    ("conv4", 128, 128, 3, 16, 1, 1),
    ("conv5", 256, 128, 3, 8, 1, 1),
    ("conv6", 256, 256, 3, 8, 1, 1),
)
VGG19: tuple[Conv, ...] = (
    ("conv1", 64, 3, 3, 32, 1, 1),
    ("conv2", 64, 64, 3, 32, 1, 1),
    ("conv3", 128, 64, 3, 16, 1, 1),
    ("conv4", 128, 128, 3, 16, 1, 1),
    ("conv5", 256, 128, 3, 8, 1, 1),
    ("conv6", 256, 256, 3, 8, 1, 3),
    ("conv9", 512, 256, 3, 4, 1, 1),
    ("conv10", 512, 512, 3, 4, 1, 3),
    ("conv13", 512, 512, 3, 2, 1, 4),
)
RESNET18: tuple[Conv, ...] = (
    ("conv1", 64, 3, 3, 32, 1, 1),
    ("block1", 64, 64, 3, 32, 1, 4),
    ("block3-conv1", 128, 64, 3, 32, 2, 1),
    ("block3-shortcut", 128, 64, 1, 32, 2, 1),
    ("block3-conv2", 128, 128, 3, 16, 1, 3),
    ("block5-conv1", 256, 128, 3, 16, 2, 1),
    ("block5-shortcut", 256, 128, 1, 16, 2, 1),
    ("block5-conv2", 256, 256, 3, 8, 1, 3),
    ("block7-conv1", 512, 256, 3, 8, 2, 1),
    ("block7-shortcut", 512, 256, 1, 8, 2, 1),
    ("block7-conv2", 512, 512, 3, 4, 1, 3),
)
# The stride is in the 3x3 convolution, as everybody trains it today.
RESNET50: tuple[Conv, ...] = (
    ("stem", 64, 3, 7, 224, 2, 1),
    ("stage1-first", 64, 64, 1, 56, 1, 1),
    ("stage1-3x3", 64, 64, 3, 56, 1, 3),
    ("stage1-up", 256, 64, 1, 56, 1, 4),  # with the first block's shortcut
    ("stage1-down", 64, 256, 1, 56, 1, 2),
    ("stage2-first", 128, 256, 1, 56, 1, 1),
    ("stage2-stride", 128, 128, 3, 56, 2, 1),
    ("stage2-shortcut", 512, 256, 1, 56, 2, 1),
    ("stage2-up", 512, 128, 1, 28, 1, 4),
    ("stage2-down", 128, 512, 1, 28, 1, 3),
    ("stage2-3x3", 128, 128, 3, 28, 1, 3),
    ("stage3-first", 256, 512, 1, 28, 1, 1),
    ("stage3-stride", 256, 256, 3, 28, 2, 1),
    ("stage3-shortcut", 1024, 512, 1, 28, 2, 1),
    ("stage3-up", 1024, 256, 1, 14, 1, 6),
    ("stage3-down", 256, 1024, 1, 14, 1, 5),
    ("stage3-3x3", 256, 256, 3, 14, 1, 5),
    ("stage4-first", 512, 1024, 1, 14, 1, 1),
    ("stage4-stride", 512, 512, 3, 14, 2, 1),
    ("stage4-shortcut", 2048, 1024, 1, 14, 2, 1),
    ("stage4-up", 2048, 512, 1, 7, 1, 3),
    ("stage4-down", 512, 2048, 1, 7, 1, 2),
    ("stage4-3x3", 512, 512, 3, 7, 1, 2),
)

#: Tags whose cases are all layers of a network.
NETWORK_NAMES = ("lenet", "conv6", "vgg19", "resnet18", "resnet50", "bert", "vit")

NETWORK_LAYERS: tuple[Case, ...] = (
    *_linears("lenet", 60, (("output", 10, 100, 1),)),  # its other layers are in cases.py
    *_convs("conv6", 60, CONV6),
    *_linears("conv6", 60, (("fc1", 256, 4096, 1), ("fc2", 256, 256, 1), ("output", 10, 256, 1))),
    *_convs("vgg19", 64, VGG19, headline=("conv10",)),
    *_linears("vgg19", 64, (("output", 10, 512, 1),)),
    *_convs("resnet18", 64, RESNET18, headline=("block1",)),
    *_linears("resnet18", 64, (("output", 10, 512, 1),)),
    *_convs("resnet50", 8, RESNET50),
    *_linears("resnet50", 8, (("output", 1000, 2048, 1),)),
    *_linears(
        "bert",
        8 * 128,
        (("attention", 768, 768, 4 * 12), ("ffn-up", 3072, 768, 12), ("ffn-down", 768, 3072, 12)),
        headline=("ffn-up",),
    ),
    Case("vit-patches", "conv2d", (768, 3, 16, 16), 8, (224, 224), 16, padding=0, tags=("networks", "vit")),
    *_linears(
        "vit",
        8 * 197,
        (("qkv", 2304, 768, 12), ("projection", 768, 768, 12), ("ffn-up", 3072, 768, 12), ("ffn-down", 768, 3072, 12)),
    ),
    *_linears("vit", 8, (("output", 1000, 768, 1),)),
)

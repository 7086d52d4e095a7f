"""Real images in memory: `digits` from scikit-learn offline, MNIST and CIFAR-10 from a directory the user names.

Everything is one `DataSet` of three `Split`s (train, val, test), each two tensors: x float32 [n, channels, height,
width], standardised by the training images' mean and standard deviation per channel, and y int64 [n]. The sizes are the
paper's: MNIST 55,000 / 5,000 / 10,000, CIFAR-10 45,000 / 5,000 / 10,000 (Frankle & Carbin 2018, figure 2); digits has
997 / 300 / 500, each with the classes' own proportions. Which images are held out depends on `seed` alone, never on the
global generator or the seed of a training, so that every seed, level and control is judged on the same images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lth_sparse.errors import ArgumentError, ArgumentTypeError, DataError, expected
from lth_sparse.paper import checks, files

DIGITS_SIZES = (997, 300, 500)
# LeNet-300-100 then has the paper's 266,200 weights.
DIGITS_SIDE = 28
ORIGINAL_SIDE = 8
DATASETS = ("digits", *files.READERS)


@dataclass(frozen=True, eq=False)
class Split:
    """Images x, float32 [n, channels, height, width], and their labels y, int64 [n]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return self.y.shape[0]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Three splits, the number of classes, the (channels, height, width) of an image, and the mean and standard
    deviation per channel that every split was standardised with."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        sizes = " / ".join(f"{len(split):,}" for split in (self.train, self.val, self.test))
        return f"{self.name}: {sizes} images of {'x'.join(map(str, self.shape))}, {self.classes} classes"


def load_dataset(name: str, directory: str | Path | None = None, seed: int = 0, *, side: int | None = None) -> DataSet:
    """The data set `name` (one of `DATASETS`), split and standardised.

    `directory` holds the files of "mnist" and "cifar10"; "digits" comes with scikit-learn and takes none.
    `seed` chooses the held-out images and nothing else; leave it alone to compare with other people's figures.
    `side` is the height and width to which "digits" is enlarged, 28 if not given; 16 spares a conv net two thirds of
    its work. The other data sets keep their own size.

    Raises ArgumentError or ArgumentTypeError for an unknown name, a bad seed, a directory given to "digits" or a side
    given to another; DataError, naming the file, for anything missing, unreadable, truncated or foreign.
    """
    checks.known("name", name, DATASETS)
    checks.generator_seed(seed)
    if directory is not None and not isinstance(directory, (str, Path)):
        raise ArgumentTypeError(expected("directory", "a path", directory))
    if name == "digits":
        if directory is not None:
            raise ArgumentError(expected("directory", "none, as digits comes with scikit-learn", str(directory)))
        return _digits(DIGITS_SIDE if side is None else checks.integer("side", side, ORIGINAL_SIDE), seed)
    if side is not None:
        raise ArgumentError(expected("side", f"none, as the images of {name} keep their size", side))
    if directory is None:
        raise DataError(f"{name}: expected the directory that holds its files, got none. {files.WHERE[name]}")
    return _from_files(name, Path(directory), seed)


def _digits(side: int, seed: int) -> DataSet:
    """1,797 handwritten digits, 8x8 with 17 grey levels, enlarged bilinearly to side x side."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits: expected scikit-learn, which holds the images; it is not installed here") from error
    raw = load_digits()
    images = torch.from_numpy(raw.images).to(torch.float32).unsqueeze(1)
    images = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(raw.target).to(torch.int64)
    parts = stratified(labels, DIGITS_SIZES, torch.Generator().manual_seed(seed))
    train, val, test = (Split(images[part], labels[part]) for part in parts)
    return _standardised("digits", train, val, test)


def _from_files(name: str, directory: Path, seed: int) -> DataSet:
    """The test files as they are, and the training files less `files.HELD_OUT` images that become the val split."""
    (x, y), test = files.READERS[name](directory)
    order = torch.randperm(y.numel(), generator=torch.Generator().manual_seed(seed))
    val, train = (part.sort().values for part in order.tensor_split([files.HELD_OUT]))
    return _standardised(name, Split(x[train], y[train]), Split(x[val], y[val]), Split(*test))


def stratified(labels: Tensor, sizes: tuple[int, ...], generator: torch.Generator) -> list[Tensor]:
    """Disjoint index tensors of exactly `sizes` images that cover `labels`, each with the classes' own proportions.

    A shuffled image of rank i in its class of m images gets the position (i + 1/2) / m; along that position every
    class is spread evenly, so that any stretch of it holds each class in proportion, to within one image.
    """
    if sum(sizes) != labels.numel():
        raise ArgumentError(expected("sizes", f"a sum of {labels.numel()}", sizes))
    shuffled = torch.randperm(labels.numel(), generator=generator)
    position = torch.empty(labels.numel(), dtype=torch.float64)
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        position[members] = (torch.arange(members.numel(), dtype=torch.float64) + 0.5) / members.numel()
    # Stable, over the shuffled images: equal positions of two classes must not be ordered by the file's own order.
    order = shuffled[torch.argsort(position[shuffled], stable=True)]
    return [part.sort().values for part in order.split(list(sizes))]


def _standardised(name: str, train: Split, val: Split, test: Split) -> DataSet:
    """(x - mean) / std with the training images' own figures per channel: nothing is learnt from what is held out."""
    # A channel at a time: CIFAR-10 in float64 at once would be 1.1 GB.
    moments = [torch.std_mean(train.x[:, channel].to(torch.float64)) for channel in range(train.x.shape[1])]
    std, mean = (tuple(float(moment[i]) for moment in moments) for i in range(2))
    if min(std) == 0.0:
        raise DataError(f"{name}: expected training images that differ, found a channel of one constant value")
    shift, scale = (torch.tensor(figures, dtype=torch.float32).view(1, -1, 1, 1) for figures in (mean, std))
    parts = [Split((split.x.to(torch.float32) - shift).div_(scale), split.y) for split in (train, val, test)]
    _, channels, height, width = train.x.shape
    return DataSet(
        name=name,
        train=parts[0],
        val=parts[1],
        test=parts[2],
        classes=10,
        shape=(channels, height, width),
        mean=mean,
        std=std,
    )

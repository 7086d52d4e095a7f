"""The bytes of MNIST (IDX files) and of CIFAR-10 (binary version), checked before they become tensors.

An IDX file is a magic number 00 00 type dimensions, one big-endian uint32 per dimension, and the bytes; MNIST's are
type 08 (unsigned byte) with 3 dimensions for images and 1 for labels. A CIFAR-10 .bin file is 10,000 records of one
label byte and 3,072 bytes of image: 1,024 red, 1,024 green, 1,024 blue, row by row.

Nothing here unpickles: CIFAR-10's "python version" is refused, because reading a pickle runs whatever code it holds.
Every failure is one DataError: the file, what was expected, what was found, and where the right files come from.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from lth_sparse.errors import DataError

MNIST_TRAIN, MNIST_TEST, MNIST_SIDE = 60_000, 10_000, 28
CIFAR10_BATCHES, CIFAR10_BATCH = 5, 10_000
# Of the training images of either; the paper's validation set.
HELD_OUT = 5_000
CIFAR10_SHAPE = (3, 32, 32)
CLASSES = 10

WHERE_MNIST = (
    "MNIST is four IDX files, train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, gzipped (.gz) or not, as LeCun, Cortes and Burges published them and as torchvision's "
    "MNIST(download=True) fetches them; put them into one directory."
)
WHERE_CIFAR10 = (
    "CIFAR-10 is wanted in its binary version, the archive cifar-10-binary.tar.gz on the CIFAR-10 page of the "
    "University of Toronto; unpacked it holds data_batch_1.bin to data_batch_5.bin and test_batch.bin."
)
WHERE = {"mnist": WHERE_MNIST, "cifar10": WHERE_CIFAR10}
# The directory itself, or what the archive or torchvision put below it.
MNIST_FOLDERS = ("", "MNIST/raw", "raw")
CIFAR10_FOLDERS = ("", "cifar-10-batches-bin")
PICKLE_FOLDERS = ("", "cifar-10-batches-py")

Images = tuple[Tensor, Tensor]


def read_mnist(directory: Path) -> tuple[Images, Images]:
    """(x uint8 [n, 1, 28, 28], y int64 [n]) of the 60,000 training and of the 10,000 test images."""
    _check_directory(directory, WHERE_MNIST)
    train = _mnist_pair(directory, "train", MNIST_TRAIN)
    return train, _mnist_pair(directory, "t10k", MNIST_TEST)


def _mnist_pair(directory: Path, part: str, count: int) -> Images:
    image_file = _find_idx(directory, f"{part}-images", "idx3-ubyte")
    label_file = _find_idx(directory, f"{part}-labels", "idx1-ubyte")
    x = read_idx(image_file, (count, MNIST_SIDE, MNIST_SIDE), WHERE_MNIST)
    y = read_idx(label_file, (count,), WHERE_MNIST)
    return x.unsqueeze(1), _labels(label_file, y, WHERE_MNIST)


def _find_idx(directory: Path, stem: str, suffix: str) -> Path:
    # Both spellings are in circulation: "train-images-idx3-ubyte" and "train-images.idx3-ubyte".
    names = [f"{stem}{joint}{suffix}{end}" for end in ("", ".gz") for joint in ("-", ".")]
    found = _first(directory, MNIST_FOLDERS, names)
    if found is None:
        _fail(directory, f"the file {names[0]} or {names[0]}.gz", "neither", WHERE_MNIST)
    return found


def read_idx(path: Path, shape: tuple[int, ...], where: str = "") -> Tensor:
    """The IDX file `path`, uint8 of exactly `shape`; gzipped when its name ends in .gz. DataError otherwise."""
    header = 4 + 4 * len(shape)
    size = header
    count = 1
    for length in shape:
        count *= length
    size += count
    data = _read(path, size, where)
    if len(data) < header:
        _fail(path, f"an IDX header of {header} bytes", f"{len(data)} bytes", where)
    magic, *dimensions = struct.unpack_from(f">{1 + len(shape)}I", data)
    if magic != 0x0800 + len(shape):
        _fail(path, f"the IDX magic number 0x{0x0800 + len(shape):08x}", f"0x{magic:08x}", where)
    if tuple(dimensions) != shape:
        _fail(path, f"dimensions {_times(shape)}", _times(dimensions), where)
    if len(data) != size:
        _fail(path, f"{size:,} bytes", _length(data, size), where)
    return torch.frombuffer(data, dtype=torch.uint8, offset=header, count=count).reshape(shape)


def read_cifar10(directory: Path) -> tuple[Images, Images]:
    """(x uint8 [n, 3, 32, 32], y int64 [n]) of the 50,000 training and of the 10,000 test images."""
    _check_directory(directory, WHERE_CIFAR10)
    names = [f"data_batch_{i}.bin" for i in range(1, CIFAR10_BATCHES + 1)]
    train = [_cifar10_batch(directory, name) for name in names]
    x, y = (torch.cat([batch[i] for batch in train]) for i in range(2))
    return (x, y), _cifar10_batch(directory, "test_batch.bin")


def _cifar10_batch(directory: Path, name: str) -> Images:
    path = _first(directory, CIFAR10_FOLDERS, [name])
    if path is None:
        pickled = _first(directory, PICKLE_FOLDERS, [name.removesuffix(".bin")])
        if pickled is not None:
            _fail(
                pickled,
                f"the binary version, {name}",
                "the python version, a pickle; unpickling runs code that the file brings along, so it is never opened",
                WHERE_CIFAR10,
            )
        _fail(directory, f"the file {name}", "no such file", WHERE_CIFAR10)
    channels, height, width = CIFAR10_SHAPE
    record = 1 + channels * height * width
    size = CIFAR10_BATCH * record
    data = _read(path, size, WHERE_CIFAR10)
    if len(data) != size:
        what = f"{size:,} bytes ({CIFAR10_BATCH:,} records of {record:,})"
        _fail(path, what, _length(data, size), WHERE_CIFAR10)
    records = torch.frombuffer(data, dtype=torch.uint8).reshape(CIFAR10_BATCH, record)
    x = records[:, 1:].reshape(CIFAR10_BATCH, channels, height, width)
    return x, _labels(path, records[:, 0], WHERE_CIFAR10)


READERS: dict[str, Callable[[Path], tuple[Images, Images]]] = {"mnist": read_mnist, "cifar10": read_cifar10}


def _labels(path: Path, y: Tensor, where: str) -> Tensor:
    wrong = (y >= CLASSES).nonzero()
    if wrong.numel():
        first = int(wrong[0])
        _fail(path, f"labels from 0 to {CLASSES - 1}", f"{int(y[first])} as label {first:,}", where)
    return y.to(torch.int64)


def _first(directory: Path, folders: tuple[str, ...], names: list[str]) -> Path | None:
    candidates = (directory / folder / name for folder in folders for name in names)
    # Unlike Path.exists, os.path.exists answers where a folder may not be searched, instead of raising.
    return next((path for path in candidates if os.path.exists(path)), None)


def _check_directory(directory: Path, where: str) -> None:
    try:
        # Listing it is the test: it tells a missing directory from a file and from one we may not read.
        next(directory.iterdir(), None)
    except FileNotFoundError:
        _fail(directory, "a directory", "nothing of that name", where)
    except NotADirectoryError:
        _fail(directory, "a directory", "a file", where)
    except (OSError, ValueError) as error:
        _fail(directory, "a readable directory", _reason(error), where)


def _read(path: Path, size: int, where: str) -> bytearray:
    """At most one byte more than `size`: enough to tell that a file is too long, however long it unpacks to."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as packed:
                return bytearray(packed.read(size + 1))
        with path.open("rb") as plain:
            return bytearray(plain.read(size + 1))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        _fail(path, "a whole gzip file", f"a damaged one ({error})", where)
    except OSError as error:
        _fail(path, "a readable file", _reason(error), where)


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _length(data: bytearray, size: int) -> str:
    return "more" if len(data) > size else f"{len(data):,}"


def _times(dimensions: tuple[int, ...] | list[int]) -> str:
    return "x".join(f"{d:,}" for d in dimensions)


def _fail(path: Path, wanted: str, found: str, where: str) -> NoReturn:
    raise DataError(f"{path}: expected {wanted}, found {found}. {where}".rstrip())

"""Small MNIST and CIFAR-10 directories whose images carry their own number, a tiny data set, a Level that listens."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from lth_sparse.paper import DataSet, Split, files

MNIST_TRAIN, MNIST_TEST, HELD_OUT, CIFAR10_BATCH = 120, 40, 20, 30


def numbered(first: int, count: int, *shape: int) -> torch.Tensor:
    """Random uint8 images [count, *shape] whose first two bytes spell first, first + 1, ..."""
    generator = torch.Generator().manual_seed(first)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    flat, numbers = images.view(count, -1), torch.arange(first, first + count)
    flat[:, 0], flat[:, 1] = (numbers // 256).to(torch.uint8), (numbers % 256).to(torch.uint8)
    return images


def idx(values: torch.Tensor, magic: int | None = None) -> bytes:
    magic = 0x0800 + values.dim() if magic is None else magic
    return struct.pack(f">{1 + values.dim()}I", magic, *values.shape) + values.numpy().tobytes()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and wait for it when other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def numbers() -> Callable[[DataSet, Split], list[int]]:
    """Reads back, from standardised images, what `numbered` wrote."""

    def read(data: DataSet, split: Split) -> list[int]:
        pixels = split.x[:, 0, 0, :2] * data.std[0] + data.mean[0]
        return (pixels.round().to(torch.int64) @ torch.tensor([256, 1])).tolist()

    return read


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of four IDX files of 120 training and 40 test images; labels count 0, 1, ..., 9, 0, ..."""
    monkeypatch.setattr(files, "MNIST_TRAIN", MNIST_TRAIN)
    monkeypatch.setattr(files, "MNIST_TEST", MNIST_TEST)
    monkeypatch.setattr(files, "HELD_OUT", HELD_OUT)
    for part, first, count in (("train", 0, MNIST_TRAIN), ("t10k", 1_000, MNIST_TEST)):
        labels = torch.arange(count, dtype=torch.uint8) % 10
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(numbered(first, count, 28, 28)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of six .bin files of 30 images each; labels count 0, 1, ..., 9, 0, ..."""
    monkeypatch.setattr(files, "CIFAR10_BATCH", CIFAR10_BATCH)
    monkeypatch.setattr(files, "HELD_OUT", HELD_OUT)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for i, name in enumerate(names):
        labels = (torch.arange(CIFAR10_BATCH, dtype=torch.uint8) % 10).unsqueeze(1)
        images = numbered(i * CIFAR10_BATCH, CIFAR10_BATCH, 3072)
        (tmp_path / name).write_bytes(torch.cat([labels, images], dim=1).numpy().tobytes())
    return tmp_path


@pytest.fixture(scope="session")
def tiny() -> DataSet:
    """100 / 40 / 60 images of 1x8x8 in 10 classes that a network can tell apart: class means plus noise."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 1, 8, 8, generator=generator)

    def split(n: int) -> Split:
        y = torch.arange(n) % 10
        return Split(centres[y] + 0.5 * torch.randn(n, 1, 8, 8, generator=generator), y)

    return DataSet("tiny", split(100), split(40), split(60), 10, (1, 8, 8), (0.0,), (1.0,))


@dataclass
class Listener:
    """The part of the engine's Level that a training loop sees."""

    start_step: int = 0
    steps: int = 0
    attached: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def attach(self, **states: Any) -> None:
        self.attached.update(states)

    epochs: list[int] = field(default_factory=list)

    def step(self) -> None:
        self.steps += 1

    def epoch(self) -> None:
        self.epochs.append(self.steps)

    def record(self, **row: float) -> None:
        self.history.append(row)


@pytest.fixture
def level() -> Listener:
    return Listener()

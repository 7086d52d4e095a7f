"""A small network with the usual kinds of layers, its sparse forms, and inputs for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import lth_sparse as ls


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build() -> nn.Sequential:
    """[n, 3, 8, 8] -> [n, 5]: convolution, BatchNorm with statistics, ReLU, pooling, dropout, linear layers."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 16, 12),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(12, 5),
    )
    with torch.no_grad():
        model(torch.randn(16, 3, 8, 8))
    return model


LAYOUTS: dict[str, dict[str, Any]] = {
    "csr": {"layout": "csr"},
    "bsr": {"layout": "bsr", "block": (2, 2), "cover": "zeros"},
    "dense": {"layout": "dense"},
}


@pytest.fixture
def sparse_net() -> Callable[[str], nn.Sequential]:
    """sparse_net("csr") -> the network at 20% density in that layout, in training mode."""

    def make(layout: str) -> nn.Sequential:
        model = build()
        generator = torch.Generator().manual_seed(5)
        weights = {f"{i}.weight": model[i].weight for i in (0, 5, 8)}
        masks = {name: torch.rand(weight.shape, generator=generator) < 0.2 for name, weight in weights.items()}
        ls.sparsify_(model, masks, **LAYOUTS[layout])
        return model

    return make


def images(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(n)).to(dtype)


@pytest.fixture(name="images")
def _images() -> Callable[..., torch.Tensor]:
    """images(n) -> float32 [n, 3, 8, 8]."""
    return images

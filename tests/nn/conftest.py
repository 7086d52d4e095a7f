"""Small models and masks that the tests of lth_sparse.nn share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A convolutional network with BatchNorm and dropout, small and of odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.drop = nn.Dropout(0.5)
        self.fc1 = nn.Linear(5 * 7 * 7, 11)
        self.fc2 = nn.Linear(11, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.norm(self.conv(x))))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


@pytest.fixture
def net(seed: int) -> nn.Module:
    return Net()


@pytest.fixture
def images(seed: int) -> Tensor:
    return torch.randn(6, 3, 7, 7, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def masks_for() -> Callable[..., dict[str, Tensor]]:
    """Random masks for the weights of all Linear and convolution layers of a model."""

    def make(model: nn.Module, density: float = 0.3) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(2)
        return {
            name: torch.rand(parameter.shape, generator=generator) < density
            for name, parameter in model.named_parameters()
            if parameter.dim() > 1
        }

    return make


@pytest.fixture
def apply_masks() -> Callable[[nn.Module, dict[str, Tensor]], nn.Module]:
    """Zero the pruned weights of a dense model in place."""

    def zero(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).mul_(mask.to(model.get_parameter(name).device))
        return model

    return zero

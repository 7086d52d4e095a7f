"""A small network whose masks change while it trains, and the masked dense simulation that it has to equal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import lth_sparse as ls

STEPS, EVERY, END = 14, 4, 15  # masks change after steps 4, 8 and 12
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
}


class Small(nn.Module):
    """[n, 2, 5, 5] -> [n, 3], with a ReLU in place behind the convolution and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(100, 12)
        self.twice = nn.Linear(12, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc(self.relu(self.conv(x)).flatten(1)))
        return self.out(torch.tanh(self.twice(torch.tanh(self.twice(x)))))


WEIGHTS = ("conv.weight", "fc.weight", "twice.weight", "out.weight")


def dense_net() -> Small:
    torch.manual_seed(0)
    return Small().double()


def first_masks(model: nn.Module, density: float = 0.3) -> dict[str, Tensor]:
    """Random masks; the output layer keeps everything."""
    generator = torch.Generator().manual_seed(3)
    masks = {name: torch.rand(model.get_parameter(name).shape, generator=generator) < density for name in WEIGHTS}
    masks["out.weight"].fill_(True)
    return masks


def sparse_net(layout: str = "csr", **options: Any) -> nn.Module:
    model = dense_net()
    masks = first_masks(model)
    if layout == "bsr":
        masks = {name: mask for name, mask in masks.items() if name in ("fc.weight", "twice.weight")}
        options = {"block": (2, 2), "cover": "train"}
    ls.sparsify_(model, masks, layout=layout, **options)
    return model


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(6, 2, 5, 5, generator=generator, dtype=torch.float64), torch.arange(6) % 3


def gradients(model: nn.Module, step: int) -> None:
    device = next(model.parameters()).device
    x, y = (tensor.to(device) for tensor in batch(step))
    nn.functional.cross_entropy(model(x), y).backward()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, method: Any, steps: range = range(STEPS)) -> list[bool]:
    changed = []
    for step in steps:
        optimizer.zero_grad()
        gradients(model, step)
        optimizer.step()
        changed.append(method.step())
    return changed


class Simulation:
    """Dense training in which masks are multiplied onto weight, gradient and optimiser state; nothing shared."""

    def __init__(self, optimiser: str) -> None:
        self.model = dense_net()
        self.masks = first_masks(self.model)
        self.optimizer = OPTIMISERS[optimiser](self.model.parameters())
        self.mask()

    @torch.no_grad()
    def mask(self) -> None:
        for name, mask in self.masks.items():
            weight = self.model.get_parameter(name)
            weight.mul_(mask)
            for entry in self.optimizer.state.get(weight, {}).values():
                if isinstance(entry, Tensor) and entry.shape == mask.shape:
                    entry.mul_(mask)

    def step(self, step: int) -> dict[str, Tensor]:
        """One step; returns the dense gradients."""
        self.optimizer.zero_grad()
        gradients(self.model, step)
        dense: dict[str, Tensor] = {}
        for name, mask in self.masks.items():
            weight = self.model.get_parameter(name)
            assert weight.grad is not None
            dense[name] = weight.grad.clone()
            weight.grad.mul_(mask)
        self.optimizer.step()
        self.mask()
        return dense

    def rigl(self, step: int, dense: dict[str, Tensor]) -> None:
        """RigL's change after ``step`` steps, by sorting everything."""
        fraction = 0.3 / 2 * (1 + math.cos(math.pi * step / END))
        for name, mask in self.masks.items():
            if bool(mask.all()):
                continue
            count = int(fraction * int(mask.sum()))
            weight = self.model.get_parameter(name).detach().abs().masked_fill(~mask, math.inf)
            kept = mask.flatten().clone()
            kept[weight.flatten().argsort(stable=True)[:count]] = False
            order = dense[name].abs().flatten().masked_fill(kept, -1).argsort(stable=True, descending=True)
            grown = torch.zeros_like(kept)
            grown[order[:count]] = True
            self.masks[name] = (kept | grown).view(mask.shape)
        self.mask()

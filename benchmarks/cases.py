"""The registry of benchmark cases: every benchmark, plot and comparison reads its shapes from here.

A case is one layer and one batch. Add one line to `CASES`, and it is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One layer with its input.

    `weight` is the shape of the dense weight: (out, in) for "linear", (out, in / groups, kernel, kernel) for "conv2d",
    which is padded to keep the size of the image at stride 1. `image` is (height, width), for "conv2d" alone.
    """

    name: str
    op: str
    weight: tuple[int, ...]
    batch: int
    image: tuple[int, int] = (0, 0)
    stride: int = 1
    groups: int = 1
    headline: bool = False
    densities: tuple[float, ...] = (0.2, 0.1, 0.05)

    def module(self) -> nn.Linear | nn.Conv2d:
        """The dense layer in float32, with a bias, initialised as torch does."""
        if self.op == "linear":
            return nn.Linear(self.weight[1], self.weight[0])
        out_channels, in_channels, kernel, _ = self.weight
        return nn.Conv2d(
            in_channels * self.groups, out_channels, kernel, self.stride, padding=kernel // 2, groups=self.groups
        )

    def input(self) -> Tensor:
        """Standard normal: `[batch, in]` or `[batch, channels, height, width]`."""
        if self.op == "linear":
            return torch.randn(self.batch, self.weight[1])
        return torch.randn(self.batch, self.weight[1] * self.groups, *self.image)

    def mask(self, density: float) -> Tensor:
        """Exactly round(density x weights) positions kept, uniformly at random: the hardest pattern for a kernel."""
        numel = torch.Size(self.weight).numel()
        mask = torch.zeros(numel, dtype=torch.bool)
        mask[torch.randperm(numel)[: round(density * numel)]] = True
        return mask.view(self.weight)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.weight))
        image = f", image {self.image[0]}x{self.image[1]}" if self.op == "conv2d" else ""
        return f"{self.name}: {self.op} {shape}{image}, batch {self.batch}"


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        # The layers that the README quotes.
        Case("linear-1024", "linear", (1024, 1024), 128, headline=True),
        Case("lenet-fc1", "linear", (300, 784), 60, headline=True),
        Case("conv-128", "conv2d", (128, 128, 3, 3), 32, (16, 16), headline=True),
        # Larger and smaller, among them what sparsity is not expected to help.
        Case("lenet-fc2", "linear", (100, 300), 60),
        Case("linear-4096x1024", "linear", (4096, 1024), 256),
        Case("ffn-768x3072", "linear", (768, 3072), 1024),
        Case("linear-4096-b16", "linear", (4096, 4096), 16),
        Case("linear-4096-b1", "linear", (4096, 4096), 1),
        Case("conv-64", "conv2d", (64, 64, 3, 3), 16, (32, 32)),
        Case("conv-256", "conv2d", (256, 256, 3, 3), 64, (8, 8)),
        Case("conv-512", "conv2d", (512, 512, 3, 3), 64, (4, 4)),
        Case("conv-1x1", "conv2d", (256, 256, 1, 1), 32, (14, 14)),
        Case("conv-stride2", "conv2d", (128, 64, 3, 3), 32, (16, 16), stride=2),
    )
}

"""The registry of benchmark cases: every benchmark, plot and comparison reads its shapes from here.

A case is one layer and one batch. Add one line to `LAYERS` here, or a layer of a network to `networks.py`, and it is
measured. `select` finds cases by name, by glob and by tag: a tag is "headline", "networks", the name of a network, or
the operator.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, expected

#: Shares of the weights kept that a run measures unless told otherwise.
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)

Block = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One layer with its input.

    `weight` is the shape of the dense weight: (out, in) for "linear", (out, in / groups, kernel, kernel) for "conv2d".
    `image` is (height, width), for "conv2d" alone; `padding` None keeps its size at stride 1. `count` says how often
    the layer comes in its network, and `tags` what else `select` finds it by.
    """

    name: str
    op: str
    weight: tuple[int, ...]
    batch: int
    image: tuple[int, int] = (0, 0)
    stride: int = 1
    groups: int = 1
    padding: int | None = None
    count: int = 1
    tags: tuple[str, ...] = ()

    def module(self) -> nn.Linear | nn.Conv2d:
        """The dense layer in float32, with a bias, initialised as torch does."""
        if self.op == "linear":
            return nn.Linear(self.weight[1], self.weight[0])
        out_channels, in_channels, kernel, _ = self.weight
        return nn.Conv2d(in_channels * self.groups, out_channels, kernel, self.stride, self.pad, groups=self.groups)

    def input(self) -> Tensor:
        """Standard normal: `[batch, in]` or `[batch, channels, height, width]`."""
        if self.op == "linear":
            return torch.randn(self.batch, self.weight[1])
        return torch.randn(self.batch, self.weight[1] * self.groups, *self.image)

    def mask(self, density: float, block: Block | None = None) -> Tensor:
        """Exactly round(density x weights) positions kept, uniformly at random: the hardest pattern for a kernel.

        With a block, exactly round(density x blocks) blocks of the matrix `[out, the rest]`, those that reach over its
        edge included.
        """
        rows, (r, c) = self.weight[0], block or (1, 1)
        cols = torch.Size(self.weight).numel() // rows
        grid = (-(-rows // r), -(-cols // c))
        numel = grid[0] * grid[1]
        kept = torch.zeros(numel, dtype=torch.bool)
        kept[torch.randperm(numel)[: round(density * numel)]] = True
        matrix = kept.view(grid).repeat_interleave(r, 0).repeat_interleave(c, 1)[:rows, :cols]
        return matrix.reshape(self.weight).contiguous()

    @property
    def pad(self) -> int:
        """Padding of a convolution."""
        return self.weight[2] // 2 if self.padding is None else self.padding

    @property
    def numel(self) -> int:
        """Number of weights, pruned ones included."""
        return torch.Size(self.weight).numel()

    @property
    def out_image(self) -> tuple[int, int]:
        """Height and width of the output of a convolution."""
        high, wide = ((side + 2 * self.pad - self.weight[2]) // self.stride + 1 for side in self.image)
        return high, wide

    @property
    def pixels(self) -> int:
        """How often a weight is used: samples, times positions of the output in a convolution."""
        return self.batch if self.op == "linear" else self.batch * self.out_image[0] * self.out_image[1]

    def flops(self, nnz: int, mode: str) -> float:
        """Floating-point operations of `nnz` live weights: two a weight and pixel and product.

        A product is the forward pass, the input's gradient, or the weight's: "forward" has one, "forward+dx" two and
        "step" three. Positions on the zero border of an image are counted like all others.
        """
        return 2.0 * nnz * self.pixels * {"forward": 1, "forward+dx": 2, "step": 3}[mode]

    def least_bytes(self, nnz: int, mode: str) -> float:
        """Bytes that must move at least: activations and gradients once, and 4 + 2 bytes of value and index a weight.

        The gradients read x and dy and write dx once more; a weight is read again, and its gradient written.
        """
        inputs = (
            self.batch * self.weight[1] * self.groups * (1 if self.op == "linear" else self.image[0] * self.image[1])
        )
        outputs = self.pixels * self.weight[0]
        forward = 4.0 * (inputs + outputs) + 6.0 * nnz
        backward = {"forward": 0.0, "forward+dx": 4.0 * (inputs + outputs) + 6.0 * nnz}
        return forward + backward.get(mode, 4.0 * (2 * inputs + outputs) + 10.0 * nnz)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.weight))
        image = f", image {self.image[0]}x{self.image[1]}" if self.op == "conv2d" else ""
        return f"{self.name}: {self.op} {shape}{image}, batch {self.batch}"


HEADLINE = ("headline",)

#: Layers that stand for themselves; those of whole networks are in networks.py.
LAYERS = (
    # The layers that the README quotes.
    Case("linear-1024", "linear", (1024, 1024), 128, tags=HEADLINE),
    Case("lenet-fc1", "linear", (300, 784), 60, tags=(*HEADLINE, "networks", "lenet")),
    Case("conv-128", "conv2d", (128, 128, 3, 3), 32, (16, 16), tags=HEADLINE),
    # Larger and smaller, among them what sparsity is not expected to help.
    Case("lenet-fc2", "linear", (100, 300), 60, tags=("networks", "lenet")),
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


def registry() -> dict[str, Case]:
    """Name -> case, of all files."""
    from .networks import NETWORK_LAYERS

    cases: dict[str, Case] = {}
    for case in (*LAYERS, *NETWORK_LAYERS):
        if case.name in cases:
            raise ArgumentError(f"cases: {case.name} is registered twice")
        cases[case.name] = case
    return cases


def tags_of(case: Case) -> set[str]:
    """What a case can be selected by, its name apart."""
    return {"all", case.op, *case.tags}


def select(wanted: str | Iterable[str]) -> tuple[Case, ...]:
    """Cases meant by names, globs and tags ("all" is one), with commas in between when it is one string.

    Each comes once, in the order of the registry. Raises ArgumentError, naming the words that mean nothing.
    """
    words = [word.strip() for word in (wanted.split(",") if isinstance(wanted, str) else wanted)]
    cases = registry()

    def meant(case: Case, word: str) -> bool:
        return fnmatchcase(case.name, word) or word in tags_of(case)

    if unknown := [word for word in words if not any(meant(case, word) for case in cases.values())]:
        tags = sorted({tag for case in cases.values() for tag in tags_of(case)})
        what = f"names or globs of cases ({', '.join(sorted(cases)[:4])}, ...) or tags ({', '.join(tags)})"
        raise ArgumentError(expected("cases", what, ", ".join(map(repr, unknown))))
    return tuple(case for case in cases.values() if any(meant(case, word) for word in words))

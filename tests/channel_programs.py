"""Random small networks for the tests of lth_sparse.nn.channels: layers, sums, joins, slices and shuffles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

Draw = Callable[[Any], Any]
SIDE = 6


@dataclass(frozen=True)
class Step:
    """One operation on earlier results, by their places."""

    name: str
    inputs: tuple[int, ...]
    module: str = ""


class Program(nn.Module):
    """Runs its steps; the last result goes through a head."""

    def __init__(self, steps: list[Step], modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.steps = steps
        self.parts = nn.ModuleDict(modules)

    def forward(self, x: Tensor) -> Tensor:
        results = [x]
        for step in self.steps:
            results.append(self._run(step, [results[place] for place in step.inputs]))
        return results[-1]

    def extra_repr(self) -> str:
        return "\n".join(f"{place}: {step}" for place, step in enumerate(self.steps, start=1))

    def _run(self, step: Step, given: list[Tensor]) -> Tensor:
        x = given[0]
        if step.module:
            return self.parts[step.module](x)
        if step.name == "tokens":  # [N, C, H, W] -> LayerNorm and attention's products over [N, HW, C] -> back
            flat = x.flatten(2).transpose(1, 2)
            return (torch.softmax(flat @ flat.transpose(1, 2), -1) @ flat).transpose(1, 2).unflatten(2, x.shape[2:])
        return FUNCTIONS[step.name](*given)


def _halves(x: Tensor) -> Tensor:
    one, other = x[:, : x.shape[1] // 2 * 2].chunk(2, dim=1)
    return one * torch.sigmoid(other)


def _shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w) if c % 2 == 0 else x


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "mul": lambda one, other: one * other,
    "cat": lambda one, other: torch.cat([one, other], dim=1),
    "relu": F.relu,
    "tanh": torch.tanh,
    "scale": lambda x: 1 - x / 2,
    "halves": _halves,
    "slice": lambda x: x[:, 1:],
    "shuffle": _shuffle,
    "pad": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "softmax": lambda x: x.softmax(1),
    "centre": lambda x: x - x.mean(1, keepdim=True),
    "max": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "mean": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1),
    "gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: torch.roll(x, 1, 1),
}
LAYERS = ("conv", "conv", "conv", "pointwise", "depthwise", "grouped", "bn", "group_norm", "instance_norm", "prelu")
UNARY = tuple(name for name in FUNCTIONS if name not in ("add", "mul", "cat"))


def _layer(name: str, channels: int, out: int) -> tuple[nn.Module, int]:
    """A layer for ``channels``, and how many come out."""
    even = 2 if channels % 2 == 0 else 1
    made: dict[str, Callable[[], tuple[nn.Module, int]]] = {
        "conv": lambda: (nn.Conv2d(channels, out, 3, padding=1), out),
        "pointwise": lambda: (nn.Conv2d(channels, out, 1, bias=False), out),
        "depthwise": lambda: (nn.Conv2d(channels, channels, 3, padding=1, groups=channels), channels),
        "grouped": lambda: (nn.Conv2d(channels, 2 * out, 1, groups=even), 2 * out),
        "bn": lambda: (nn.BatchNorm2d(channels), channels),
        "group_norm": lambda: (nn.GroupNorm(even, channels), channels),
        "instance_norm": lambda: (nn.InstanceNorm2d(channels, affine=True), channels),
        "prelu": lambda: (nn.PReLU(channels), channels),
    }
    return made[name]()


@st.composite
def programs(draw: Draw, steps: int = 9) -> Program:
    """A network on images ``[N, 3, 6, 6]``; layers may be used twice, results more than once."""
    width = [3]
    plan: list[Step] = []
    modules: dict[str, nn.Module] = {}
    sizes: dict[str, tuple[int, int]] = {}

    def add(step: Step, channels: int) -> None:
        plan.append(step)
        width.append(channels)

    def layer(name: str, place: int, out: int) -> None:
        key = f"{name}{len(modules)}"
        modules[key], made = _layer(name, width[place], out)
        sizes[key] = (width[place], made)
        add(Step(name, (place,), key), made)

    layer("conv", 0, draw(st.integers(2, 6)))
    for _ in range(draw(st.integers(1, steps))):
        place = draw(st.integers(max(0, len(width) - 3), len(width) - 1))
        kind = draw(st.sampled_from(("layer", "layer", "unary", "join", "again", "tokens")))
        if kind == "layer":
            layer(draw(st.sampled_from(LAYERS)), place, draw(st.integers(1, 6)))
        elif kind == "unary":
            name = draw(st.sampled_from(UNARY))
            lost = {"slice": 1, "halves": width[place] - width[place] // 2, "pad": -3}.get(name, 0)
            if width[place] > lost and width[place] >= 2:
                add(Step(name, (place,)), width[place] - lost)
        elif kind == "join":
            other = draw(st.integers(0, len(width) - 1))
            name = draw(st.sampled_from(("add", "mul"))) if width[other] == width[place] else "cat"
            add(Step(name, (place, other)), width[place] + width[other] * (name == "cat"))
        elif kind == "again":
            fitting = [key for key, (into, _) in sizes.items() if into == width[place]]
            if fitting:
                key = draw(st.sampled_from(fitting))
                add(Step("again", (place,), key), sizes[key][1])
        else:
            add(Step("tokens", (place,)), width[place])
    last = len(width) - 1
    if draw(st.booleans()):
        modules["head"] = nn.Sequential(
            nn.Flatten(), nn.Linear(width[last] * SIDE * SIDE, 7), nn.Tanh(), nn.Linear(7, 2)
        )
    else:
        modules["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(width[last] * 4, 2))
    plan.append(Step("head", (last,), "head"))
    return Program(plan, modules)

"""What a ticket costs: multiply-adds of one example and bytes of its parameters, against the dense network's.

A weight of a linear layer is multiplied once an example (and once for each further leading position of the input), a
weight of a convolution once for each output pixel. The two gradients of a training step cost as much again, each.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected

__all__ = ["Cost", "LayerCost", "count_cost"]


@dataclass(frozen=True)
class LayerCost:
    """One layer of the network.

    Attributes:
        name: parameter name of its weight.
        numel, nnz: weights, and those kept.
        positions: how often each weight is multiplied in the forward pass of one example.
        element: bytes of a weight.
    """

    name: str
    numel: int
    nnz: int
    positions: float
    element: int

    @property
    def dense_multiply_adds(self) -> float:
        """Of one example's forward pass with all weights."""
        return self.numel * self.positions

    @property
    def multiply_adds(self) -> float:
        """Of one example's forward pass with the live weights alone."""
        return self.nnz * self.positions


@dataclass(frozen=True)
class Cost:
    """Sums over the layers of a network.

    Attributes:
        layers: one row for each Linear and Conv weight with a mask.
    """

    layers: tuple[LayerCost, ...]

    @property
    def multiply_adds(self) -> float:
        """Of one example's forward pass, live weights alone."""
        return math.fsum(layer.multiply_adds for layer in self.layers)

    @property
    def dense_multiply_adds(self) -> float:
        """The same for the dense network."""
        return math.fsum(layer.dense_multiply_adds for layer in self.layers)

    @property
    def share(self) -> float:
        """Share of the multiply-adds that are left; at 0 none are."""
        return self.multiply_adds / self.dense_multiply_adds if self.dense_multiply_adds else 0.0

    @property
    def value_bytes(self) -> int:
        """Bytes of the live weights. A gradient takes as much again, Adam's moments twice as much."""
        return sum(layer.nnz * layer.element for layer in self.layers)

    @property
    def dense_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(layer.numel * layer.element for layer in self.layers)

    @property
    def mask_bytes(self) -> int:
        """Bytes of the masks at one bit for a weight, as a ticket file stores them."""
        return sum(-(-layer.numel // 8) for layer in self.layers)


@torch.no_grad()
def count_cost(model: nn.Module, masks: Mapping[str, Tensor], sample: Any) -> Cost:
    """Run one forward pass and count.

    Args:
        model: the plain architecture of the masks; it is copied and evaluated.
        masks: parameter name -> bool tensor, of Linear, Conv1d and Conv2d weights (``ticket.masks``).
        sample: an input of the model, its first dimension the examples; a tuple for several inputs.

    Raises:
        ArgumentError, ArgumentTypeError: ``model`` has no such weight, one of another shape, or a layer of another
            kind; ``sample`` holds no tensor or no example; a layer was not reached.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(expected("model", "a torch.nn.Module", type(model).__name__))
    inputs = sample if isinstance(sample, tuple) else (sample,)
    first = next((one for one in inputs if isinstance(one, Tensor) and one.dim()), None)
    if first is None or not first.shape[0]:
        got = "none" if first is None else f"shape {list(first.shape)}"
        raise ArgumentError(expected("sample", "a tensor of at least one example, or a tuple with one", got))
    network = copy.deepcopy(model).eval()
    modules = dict(network.named_modules())
    positions: dict[str, float] = {}

    examples = first.shape[0]

    def counting(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            outputs = max(masks[name].shape[0], 1)
            positions[name] = positions.get(name, 0.0) + output.numel() / outputs / examples

        return hook

    for name, mask in masks.items():
        owner, _, leaf = name.rpartition(".")
        module = modules.get(owner)
        if leaf != "weight" or not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            got = f"{type(module).__name__} there" if module is not None else "no such module"
            raise ArgumentError(expected("masks", f"the weight of a Linear or Conv layer at {name!r}", got))
        if module.weight.shape != mask.shape:
            shapes = f"{list(mask.shape)}"
            raise ArgumentError(expected(f"masks[{name!r}]", f"shape {list(module.weight.shape)}", shapes))
        module.register_forward_hook(counting(name))
    network(*inputs)
    missing = [name for name in masks if name not in positions]
    if missing:
        raise ArgumentError(expected("sample", f"an input whose forward pass reaches {missing[0]}", "it is not called"))
    rows = []
    for name, mask in masks.items():
        weight = network.get_parameter(name)
        rows.append(LayerCost(name, mask.numel(), int(mask.sum()), positions[name], weight.element_size()))
    return Cost(tuple(rows))

"""A full search for a ticket, timed level by level: our engine, and the same loop with masked dense layers.

Both prune the same shares by magnitude per layer, rewind to the same initial weights, make a new optimiser and take the
same number of steps on the same random images; they take turns level by level, so that the machine's moods hit both.
A level's time is everything: pruning, rewinding, conversion and training. Its floor is the dense network's training x
the share of its multiply-adds whose weights are left: what it would take if time went to them alone. (Convolutions use
a weight more often than linear layers do, and Conv-6 prunes them more slowly.) Both run in a process that keeps its
memory.

Ours stores layers by break-even densities that `lth_sparse.plan` has measured (its seconds are given apart: once for a
machine), and keeps the activations of convolutional networks feature-major.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lth_sparse.engine import levels as search_levels
from lth_sparse.engine.scope import prune
from lth_sparse.engine.selection import layer_rates, weights_of
from lth_sparse.nn import plan
from lth_sparse.ops.memory import keep_memory

from .masked import Masked, mask_
from .training import MASKED, OURS, Network


@dataclass(frozen=True)
class LevelTime:
    """One level of one candidate: `seconds` of everything, `train_seconds` of the optimiser's steps alone.

    `work`: share of the network's multiply-adds whose weights are left; `density`: of the weights.
    `plan_seconds`: what planning took before our level 0; else 0. What the cache on disk knows takes none.
    """

    network: Network
    threads: int
    candidate: str
    level: int
    density: float
    work: float
    iterations: int
    seconds: float
    train_seconds: float
    plan_seconds: float = 0.0


def train(network: Network, model: nn.Module, x: Tensor, y: Tensor, iterations: int) -> float:
    """The loop of both candidates; returns its seconds."""
    model.train()
    optimizer = network.optimizer([p for p in model.parameters() if p.requires_grad])
    start = time.perf_counter()
    for _ in range(iterations):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return time.perf_counter() - start


class MaskedSearch:
    """Iterative magnitude pruning as research code has it; each call of `level` trains the next one."""

    def __init__(self, network: Network) -> None:
        dense = network.model()
        weights = weights_of(dense)
        self.rates = layer_rates(weights, rate=0.0, output_rate=None, rates=network.rates, prune=None, freeze=())
        self.masks = {name: torch.ones(w.shape, dtype=torch.bool) for name, w in weights.items()}
        self.network, self.k = network, 0
        self.model = mask_(dense, self.masks)
        self.start = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def level(self, x: Tensor, y: Tensor, iterations: int) -> tuple[float, float]:
        """(density, seconds of training)."""
        if self.k > 0:
            modules = {name: self._masked(name) for name in self.masks}
            scores = {name: module.module.weight.detach().abs() for name, module in modules.items()}
            self.masks = prune(scores, self.masks, self.rates, self.k).masks
            self.model.load_state_dict(self.start)
            for name, module in modules.items():
                module.mask.copy_(self.masks[name])
        self.k += 1
        live = sum(int(mask.sum()) for mask in self.masks.values())
        density = live / sum(mask.numel() for mask in self.masks.values())
        return density, train(self.network, self.model, x, y, iterations)

    def _masked(self, name: str) -> Masked:
        module = self.model.get_submodule(name.removesuffix(".weight"))
        assert isinstance(module, Masked)
        return module


def multiply_adds(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Weight name -> multiply-adds of a forward pass over x, of each Linear and Conv2d."""
    found: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(module: nn.Linear | nn.Conv2d, args: object, y: Tensor) -> None:
            found[name] = found.get(name, 0) + module.weight.numel() * (y.numel() // module.weight.shape[0])

        return note

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    handles = [module.register_forward_hook(hook(f"{name}.weight")) for name, module in layers]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def time_levels(network: Network, threads: int, levels: int, iterations: int) -> Iterator[list[LevelTime]]:
    """Levels 0 to `levels` of both candidates, one turn a level; the one that begins alternates."""
    x, y = network.data()
    masked = MaskedSearch(network)
    keep_memory()
    costs = multiply_adds(network.model(), x)
    start = time.perf_counter()
    evens = plan(network.model(), x, densities=(0.5,)).break_evens()
    planning = time.perf_counter() - start
    images = any(isinstance(module, nn.Conv2d) for module in network.model().modules())
    ours = search_levels(
        network.model(), levels=levels, rates=dict(network.rates), break_even=evens, feature_major=images
    )
    train(network, network.model(), x, y, min(iterations, 3))  # thread pools and code are warm when level 0 begins

    def run_masked() -> tuple[float, float]:
        return masked.level(x, y, iterations)

    def run_ours() -> tuple[float, float]:
        level = next(ours)
        return level.density, train(network, level.model, x, y, iterations)

    with contextlib.closing(ours):
        for k in range(levels + 1):
            turns = [(MASKED, run_masked), (OURS, run_ours)]
            found = []
            for candidate, run in turns if k % 2 else reversed(turns):
                start = time.perf_counter()
                density, training = run()
                took = time.perf_counter() - start
                before = planning if candidate == OURS and k == 0 else 0.0
                found.append(
                    LevelTime(network, threads, candidate, k, density, 1.0, iterations, took, training, before)
                )
            left = {name: float(mask.float().mean()) for name, mask in masked.masks.items()}
            work = sum(left.get(name, 1.0) * count for name, count in costs.items()) / sum(costs.values())
            yield [replace(one, work=work) for one in sorted(found, key=lambda one: one.candidate)]

"""Training steps of whole networks: dense, channels_last, masked dense and ours, interleaved in one process.

Random images of the right shape, the optimisers of the paper (Adam for LeNet-300-100 and Conv-6, SGD with momentum for
VGG-19 and ResNet-18), all fused. Every layer keeps the same share of its weights at random positions, except the first
convolution and the last linear layer, which stay dense. Ours is `sparsify_(model, masks)` as a user calls it: each
layer's layout is chosen by its density. "feature-major" is the same after `fuse_relu_` and `feature_major_`. All run in
a process that keeps its memory (`keep_memory`).
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lth_sparse.nn import SparseModule, feature_major_, fuse_relu_, sparsify_
from lth_sparse.ops.memory import keep_memory
from lth_sparse.paper import PRESETS, build_model

from .masked import mask_
from .timing import interleave, quantile

DENSE = ("dense", "dense channels_last")
MASKED, OURS, FEATURE_MAJOR = "masked dense", "lth_sparse", "lth_sparse feature-major"

#: A candidate: its name and the share of the weights kept, 1 for what multiplies all of them.
Key = tuple[str, float]


@dataclass(frozen=True)
class Network:
    """A network as it is trained.

    Attributes:
        optimizer: parameters -> optimiser; `solver` is its name.
        rates: glob over parameter names -> share that each level of a search prunes; none where no search is offered.
        iterations: optimiser steps of each level.
    """

    name: str
    image: tuple[int, int, int]
    batch: int
    solver: str
    optimizer: Callable[[Any], torch.optim.Optimizer]
    rates: Mapping[str, float] = field(default_factory=dict, hash=False)
    iterations: int = 0

    def model(self) -> nn.Module:
        return build_model(self.name, self.image, seed=0)

    def data(self) -> tuple[Tensor, Tensor]:
        """Images, standard normal, and labels."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, *self.image, generator=generator)
        return x, torch.randint(10, (self.batch,), generator=generator)


def _adam(name: str, image: tuple[int, int, int], iterations: int) -> Network:
    preset = PRESETS[name]
    optimizer = partial(torch.optim.Adam, lr=preset.lr, fused=True)
    return Network(name, image, preset.batch, "adam", optimizer, preset.rates, iterations)


# lr 0.01: random labels at the paper's 0.1 may diverge, and a step with infinities in it is not a step.
_sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)

NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        _adam("lenet", (1, 28, 28), iterations=300),
        _adam("conv6", (3, 32, 32), iterations=20),
        Network("resnet18", (3, 32, 32), 64, "sgd", _sgd),
        Network("vgg19", (3, 32, 32), 64, "sgd", _sgd),
    )
}


def random_masks(model: nn.Module, density: float) -> dict[str, Tensor]:
    """Exactly round(density x weights) random positions of each layer but the first convolution and the last linear."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    first = next((name for name, module in layers if isinstance(module, nn.Conv2d)), None)
    last = next(name for name, module in reversed(layers) if isinstance(module, nn.Linear))
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for name, module in layers:
        if name in (first, last):
            continue
        numel = module.weight.numel()
        mask = torch.zeros(numel, dtype=torch.bool)
        mask[torch.randperm(numel, generator=generator)[: round(density * numel)]] = True
        masks[f"{name}.weight"] = mask.view(module.weight.shape)
    return masks


class TrainingStep:
    """One step of training as a call: zero the gradients, forward, backward, optimiser.

    `phases` holds the seconds of (forward and loss, backward, optimiser) of each call.
    """

    def __init__(self, network: Network, model: nn.Module, memory_format: torch.memory_format | None = None) -> None:
        self.x, self.y = network.data()
        if memory_format is not None:
            model = model.to(memory_format=memory_format)  # type: ignore[call-overload]
            self.x = self.x.to(memory_format=memory_format)
        self.model = model.train()
        self.optimizer = network.optimizer(model.parameters())
        self.phases: list[tuple[float, float, float]] = []

    def __call__(self) -> None:
        start = time.perf_counter()
        loss = F.cross_entropy(self.model(self.x), self.y)
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.phases.append((forward - start, backward - forward, time.perf_counter() - backward))

    def bytes(self) -> dict[str, int]:
        """Memory of a training, counted: parameters, gradients, optimiser, index, and what forward keeps for backward.

        Runs one more step. Together they are the peak of a step but for the scratch memory of single operators.
        """
        parameters = list(self.model.parameters())
        known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        saved: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)
        self.optimizer.step()
        self.optimizer.zero_grad()
        state = [value for entry in self.optimizer.state.values() for value in entry.values()]
        index = sum(module.layout.nbytes for module in self.model.modules() if isinstance(module, SparseModule))
        return {
            "parameter_bytes": sum(parameter.nbytes for parameter in parameters),
            "gradient_bytes": gradients,
            "optimizer_bytes": sum(value.nbytes for value in state if isinstance(value, Tensor)),
            "index_bytes": index,
            "saved_bytes": sum(saved.values()),
        }


@dataclass(frozen=True)
class StepTime:
    """What one candidate's step took.

    Attributes:
        samples: seconds of whole steps, one a round; phases: of forward, backward and optimiser, medians.
        ratios: of the better dense candidate's step to this one, one a round.
        layouts: how many layers have which layout, such as "csr 14, dense 3".
    """

    network: Network
    threads: int
    candidate: str
    density: float
    kept: int
    samples: list[float]
    phases: tuple[float, float, float]
    bytes: dict[str, int]
    ratios: list[float]
    ratio_to: str
    layouts: str = ""


def time_steps(
    network: Network, densities: tuple[float, ...], threads: int, seconds: float, rounds: int
) -> list[StepTime]:
    """All candidates of a network, interleaved: `seconds` for each, but `rounds` rounds at least."""
    keep_memory()
    steps: dict[Key, TrainingStep] = {("dense", 1.0): TrainingStep(network, network.model())}
    kept: dict[Key, int] = {}
    layouts: dict[Key, str] = {}
    if any(isinstance(module, nn.Conv2d) for module in network.model().modules()):
        steps["dense channels_last", 1.0] = TrainingStep(network, network.model(), torch.channels_last)
    template = network.model()
    # No density changes what a masked dense layer costs.
    steps[MASKED, densities[-1]] = TrainingStep(network, mask_(network.model(), random_masks(template, densities[-1])))
    for density in densities:
        masks = random_masks(template, density)
        model = copy.deepcopy(template)
        report = sparsify_(model, masks)
        chosen = ", ".join(f"{k} {n}" for k, n in Counter(row.layout for row in report.layers).items())
        kept_format = copy.deepcopy(model)
        fuse_relu_(kept_format)
        feature_major_(kept_format)
        for name, ours in ((OURS, model), (FEATURE_MAJOR, kept_format)):
            steps[name, density] = TrainingStep(network, ours)
            layouts[name, density] = chosen
    for key in steps:
        masks = random_masks(template, key[1])
        pruned = sum(mask.numel() - int(mask.sum()) for mask in masks.values())
        kept[key] = sum(p.numel() for p in template.parameters() if p.dim() > 1) - pruned
    samples = interleave(steps, seconds, rounds, warm_up_rounds=1)
    best = min((key for key in steps if key[0] in DENSE), key=lambda key: quantile(samples[key], 0.5))
    return [
        StepTime(
            network,
            threads,
            *key,
            kept[key],
            samples[key],
            _medians(step.phases[-len(samples[key]) :]),
            step.bytes(),
            [dense / own for dense, own in zip(samples[best], samples[key], strict=True)],
            best[0],
            layouts.get(key, ""),
        )
        for key, step in steps.items()
    ]


def _medians(phases: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    forward, backward, optimizer = (quantile(column, 0.5) for column in zip(*phases, strict=True))
    return forward, backward, optimizer

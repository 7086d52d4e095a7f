"""How long whole networks take on this machine, forward and for a training step, taking turns in one process."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lth_sparse.nn.sample import call_model
from lth_sparse.ops.measure import interleave

__all__ = ["NetworkTime", "Span", "time_networks"]

#: parameters -> optimiser, and (outputs, targets) -> loss.
Optimizer = Callable[[Any], torch.optim.Optimizer]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Span:
    """A median, and the tenths of the samples that lie below and above: ``low`` and ``high`` enclose the middle 80%."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Span:
        """Of one sample or more."""
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0])
        tenths = statistics.quantiles(samples, n=10, method="inclusive")
        return cls(statistics.median(samples), tenths[0], tenths[-1])


@dataclass(frozen=True)
class NetworkTime:
    """Of one network.

    Attributes:
        forward: seconds without gradients. step: of zeroing gradients, forward, loss, backward and optimiser.
        forward_ratios, step_ratios: name of another network -> its time over this one's, round by round: above 1 this
            one is faster. What disturbs the machine disturbs a round as a whole, so these are steadier than the times.
        rounds: so many samples.
    """

    forward: Span
    step: Span
    forward_ratios: Mapping[str, Span]
    step_ratios: Mapping[str, Span]
    rounds: int


def time_networks(
    models: Mapping[str, nn.Module],
    x: Any,
    y: Any,
    *,
    device: torch.device,
    against: Sequence[str],
    optimizer: Optimizer | None = None,
    loss: Loss = F.cross_entropy,
    seconds: float = 1.0,
    rounds: int = 15,
) -> dict[str, NetworkTime]:
    """Times of every network of ``models``; copies are trained, the networks and the random state stay as they are.

    Args:
        models: by name. x, y: a batch on ``device``; ``x`` as in ``sample_input``.
        against: names of the networks for the ratios.
        optimizer: by default Adam, fused. loss: mean loss of a batch.
        seconds, rounds: for each network and pass, and least number of rounds.
    """
    make = optimizer or (lambda parameters: torch.optim.Adam(parameters, fused=True))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        forwards: dict[str, Callable[[], object]] = {}
        steps: dict[str, Callable[[], object]] = {}
        for name, model in models.items():
            forwards[name] = _forward(copy.deepcopy(model).to(device).eval(), x)
            steps[name] = _step(copy.deepcopy(model).to(device).train(), x, y, make, loss)
        # As in a loop over one network: its data is in the caches, not that of whichever network came before it.
        limits: dict[str, Any] = {"budget": seconds, "least": rounds, "patience": 1, "spaced": False, "untimed": 1}
        with torch.enable_grad():
            forward = interleave(forwards, device, **limits)
            step = interleave(steps, device, **limits)
    return {
        name: NetworkTime(
            Span.of(forward[name]),
            Span.of(step[name]),
            {other: _ratios(forward[other], forward[name]) for other in against},
            {other: _ratios(step[other], step[name]) for other in against},
            len(step[name]),
        )
        for name in models
    }


def _forward(model: nn.Module, x: Any) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return call_model(model, x)

    return run


def _step(model: nn.Module, x: Any, y: Any, make: Optimizer, loss: Loss) -> Callable[[], object]:
    optimizer = make([parameter for parameter in model.parameters() if parameter.requires_grad])

    def run() -> None:
        optimizer.zero_grad()
        loss(call_model(model, x), y).backward()
        optimizer.step()

    return run


def _ratios(theirs: Sequence[float], ours: Sequence[float]) -> Span:
    return Span.of([their / our for their, our in zip(theirs, ours, strict=True)])

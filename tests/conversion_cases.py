"""A small network, a ticket of it, and a ledger with figures that a test can compute in its head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lth_sparse.engine import Ticket
from lth_sparse.engine.conversion import Entry, Ledger
from lth_sparse.engine.conversion.entries import Work
from lth_sparse.engine.conversion.timing import NetworkTime, Span


def network() -> nn.Module:
    """A convolution, two linear layers and BatchNorm; [n, 3, 4, 4] -> 8 classes."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 20),
        nn.ReLU(),
        nn.Linear(20, 8),
    )


@pytest.fixture
def model(seed: int) -> nn.Module:
    """For the tests that import it."""
    return network()


def dense_ticket(model: nn.Module) -> Ticket:
    """The ticket of level 0."""
    state = dict(model.state_dict())
    masks = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() > 1}
    return Ticket.of(masks, state, state)


def pruned_ticket(model: nn.Module, density: float = 0.3, **description: Any) -> Ticket:
    """Weights kept at random places, trained to other values; draws from the global generator."""
    state = dict(model.state_dict())
    masks = {name: torch.rand(mask.shape) < density for name, mask in dense_ticket(model).masks.items()}
    trained = {name: t + 0.1 * torch.randn(t.shape) if t.is_floating_point() else t for name, t in state.items()}
    return Ticket.of(masks, state, trained, **{"level": 3, **description})


@pytest.fixture
def ticket(model: nn.Module) -> Ticket:
    """For the tests that import it."""
    return pruned_ticket(model)


@pytest.fixture
def x(seed: int) -> Tensor:
    """For the tests that import it."""
    return torch.randn(5, 3, 4, 4)


def imagined_time(step: float) -> NetworkTime:
    """Of a network whose step takes so many milliseconds, where dense takes 10, csr 4 and auto 3."""
    ratios = {name: Span(*[other / step] * 3) for name, other in (("dense", 10.0), ("csr", 4.0), ("auto", 3.0))}
    seconds = Span(*[step * 1e-3] * 3)
    return NetworkTime(seconds, seconds, ratios, ratios, 5)


def imagined_entry(
    name: str, step: float | None, retrained: tuple[float, ...] = (), accuracy: float | None = None, **more: Any
) -> Entry:
    """100 of 1,000 weights, 10 of them added and 20 dropped."""
    given: dict[str, Any] = {
        "live": 100,
        "numel": 1000,
        "kept": 90,
        "added": 10,
        "dropped": 20,
        "magnitude": 0.9,
        "stored_before": 400,
        "stored": 200,
        "work": Work(200.0, 400.0, 800, 100),
        "time": None if step is None else imagined_time(step),
    }
    return Entry(name, **{**given, "accuracy": accuracy, "retrained": retrained, **more})


def imagined_ledger(timed: bool = True, judged: bool = True) -> Ledger:
    """Two conversions within half a point of the ticket, of which one is faster; a faster one that loses two points."""
    rows = (
        ("dense", 10.0, (), 0.98),
        ("csr", 4.0, (0.97, 0.98), 0.975),
        ("auto", 3.0, (0.97, 0.98), 0.975),
        ("vectors:4x1", 2.0, (0.965, 0.977), 0.5),
        ("cover:4x1", 5.0, (0.976, 0.976), 0.975),
        ("refill", 1.0, (0.955, 0.955), 0.1),
    )
    entries = [
        imagined_entry(
            name,
            step if timed else None,
            retrained if judged else (),
            accuracy if judged else None,
            dropped=0 if name in ("csr", "auto", "cover:4x1") else 20,
            work=Work(100.0, 100.0 * step, 800, 100),
        )
        for name, step, retrained, accuracy in rows
    ]
    return Ledger("ab" * 32, "cpu", tuple(entries), steps=500 if judged else 0, threads=1)

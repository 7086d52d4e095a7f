"""The error barrier on the line between two networks: linear mode connectivity (Frankle et al. 2020, 1912.05671).

    E(a) = error of the network with weights (1 - a) W_1 + a W_2,  a = 0 ... 1
    barrier = max_a E(a) - (E(0) + E(1)) / 2

Two copies of a network that train on from one point in other data orders have a barrier near 0 if training is stable
from that point on; the paper calls it stable under 2 percentage points. Large networks have winning tickets only once
they are stable.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.engine.ticket import Ticket
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected

__all__ = ["Barrier", "linear_barrier", "order_barrier"]

POINTS = 30


@dataclass(frozen=True)
class Barrier:
    """Errors along the line.

    Attributes:
        positions: a, from 0 (first) to 1 (second).
        errors: E(a), one for each position.
    """

    positions: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def height(self) -> float:
        """max E(a) less the mean of the two ends; 0 where the ends are the worst and equal."""
        return max(self.errors) - (self.errors[0] + self.errors[-1]) / 2

    def stable(self, bound: float = 0.02) -> bool:
        """Whether the height is below ``bound``, a share: 0.02 is the paper's 2 percentage points."""
        return self.height < bound


@torch.no_grad()
def linear_barrier(
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    error: Callable[[nn.Module], float],
    points: int = POINTS,
    prepare: Callable[[nn.Module], Any] | None = None,
) -> Barrier:
    """Evaluate the networks on the line between two states.

    Args:
        model: the architecture; it is copied.
        first, second: dense state dicts (``Ticket.state_dict("trained")``, :func:`lth_sparse.dense_state_dict`).
            Floating tensors are interpolated, the statistics of BatchNorm too; others are those of ``first``.
        error: ``error(model)`` -> share of wrong answers, or a loss; lower is better. The model is in eval mode.
        points: positions, the two ends included; at least 2.
        prepare: called with the model before each evaluation, such as a pass over training data that measures the
            statistics of BatchNorm anew.

    Raises:
        ArgumentError, ArgumentTypeError: naming the argument; states of other names or shapes than the model's.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise ArgumentError(expected("points", "an int of at least 2", points))
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(expected("model", "a torch.nn.Module", type(model).__name__))
    network = copy.deepcopy(model)
    own = network.state_dict()
    for argument, state in (("first", first), ("second", second)):
        if set(state) != set(own):
            odd = sorted(set(state) ^ set(own))[0]
            raise ArgumentError(expected(argument, "the names of the model's state_dict", f"a difference at {odd!r}"))
        for name, tensor in state.items():
            if tensor.shape != own[name].shape:
                shapes = f"{list(tensor.shape)}"
                raise ArgumentError(expected(f"{argument}[{name!r}]", f"shape {list(own[name].shape)}", shapes))
    positions = [index / (points - 1) for index in range(points)]
    errors = []
    for a in positions:
        network.load_state_dict({name: _between(first[name], second[name], a) for name in own})
        network.eval()
        if prepare is not None:
            prepare(network)
            network.eval()
        errors.append(float(error(network)))
    return Barrier(tuple(positions), tuple(errors))


def order_barrier(model: nn.Module, ticket: Ticket, reordered: Ticket, error: Callable[[nn.Module], float]) -> Barrier:
    """The barrier between a trained ticket and the same one trained in another data order, its control "reordered".

    Args:
        model: the plain architecture; it is copied.
        ticket, reordered: ``result.tickets[k]`` and ``result.control_tickets[k, "reordered"]``.
        error: as for :func:`linear_barrier`.

    Raises:
        ArgumentError: ``reordered`` is not that control of that ticket; the model has other names or shapes.
    """
    if reordered.control != "reordered" or reordered.parent != ticket.hash:
        what = f"the control 'reordered' of {ticket!r}"
        raise ArgumentError(expected("reordered", what, repr(reordered)))
    return linear_barrier(model, ticket.state_dict("trained"), reordered.state_dict("trained"), error)


def _between(first: Tensor, second: Tensor, a: float) -> Tensor:
    if not first.is_floating_point():
        return first
    return torch.lerp(first, second.to(first.device), a)

"""The weights of a ticket: what they were at initialisation, and how far they move (Frankle & Carbin 2018, F.1, F.5).

Both compare the weights that a ticket keeps with those that it pruned, so both need the dense level of the same search
beside the ticket: level 0 holds theta_0 and the trained weights of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lth_sparse.engine.ticket import Ticket
from lth_sparse.errors import ArgumentError, expected

__all__ = ["InitialWeights", "Movement", "initial_weights", "movement"]

BINS = 60


@dataclass(frozen=True, eq=False)
class InitialWeights:
    """theta_0 of one layer, all of it and the ticket's part.

    Attributes:
        name: parameter name.
        edges: float64 ``[bins + 1]``, equal bins over the range of all weights.
        everything, survivors: float64 ``[bins]``, densities: each sums to 1 over ``bins x width`` (0 without weights).
        std, survivors_std: standard deviation of all weights and of the survivors.
        magnitude, survivors_magnitude: mean |theta_0| of the same.
    """

    name: str
    edges: Tensor
    everything: Tensor
    survivors: Tensor
    std: float
    survivors_std: float
    magnitude: float
    survivors_magnitude: float


@dataclass(frozen=True)
class Movement:
    """How one group of a layer's weights moves while the dense network trains.

    Attributes:
        name: parameter name.
        count: weights in the group.
        distance: mean |w_trained - w_initial|.
        growth: mean of |w_trained| - |w_initial|.
        outward: share of the weights with |w_trained| > |w_initial|, those that move away from zero.
        kept_sign: share whose sign is the same at the end.
    """

    name: str
    count: int
    distance: float
    growth: float
    outward: float
    kept_sign: float


def initial_weights(dense: Ticket, ticket: Ticket, bins: int = BINS) -> list[InitialWeights]:
    """Distribution of theta_0 in each pruned layer: all weights, and those that ``ticket`` keeps.

    Args:
        dense: level 0 of the search that found ``ticket``.
        bins: of the histograms, at least 1.

    Raises:
        ArgumentError: ``dense`` is pruned, the two have other layers, or ``bins`` is below 1.
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ArgumentError(expected("bins", "an int of at least 1", bins))
    rows = []
    for name in _pruned_layers(dense, ticket):
        weight, mask = dense.compact("initial")[name].double(), ticket.masks[name].reshape(-1)
        kept = weight[mask]
        limit = float(weight.abs().max()) if weight.numel() else 0.0
        edges = torch.linspace(-1, 1, bins + 1, dtype=torch.float64) * (limit or 1.0)
        rows.append(
            InitialWeights(
                name=name,
                edges=edges,
                everything=_histogram(weight, edges),
                survivors=_histogram(kept, edges),
                std=_std(weight),
                survivors_std=_std(kept),
                magnitude=_mean(weight.abs()),
                survivors_magnitude=_mean(kept.abs()),
            )
        )
    return rows


def movement(dense: Ticket, ticket: Ticket) -> list[tuple[Movement, Movement]]:
    """(survivors, pruned) of each pruned layer: how the two groups move in the training of the dense network.

    The paper finds that the weights that end up in a winning ticket move further than the others, and away from zero.

    Raises:
        ArgumentError: as for :func:`initial_weights`.
    """
    rows = []
    for name in _pruned_layers(dense, ticket):
        before, after = (dense.compact(weights)[name].double() for weights in ("initial", "trained"))
        mask = ticket.masks[name].reshape(-1)
        rows.append((_moved(name, before[mask], after[mask]), _moved(name, before[~mask], after[~mask])))
    return rows


def _moved(name: str, before: Tensor, after: Tensor) -> Movement:
    grown = after.abs() - before.abs()
    return Movement(
        name=name,
        count=before.numel(),
        distance=_mean((after - before).abs()),
        growth=_mean(grown),
        outward=_mean((grown > 0).double()),
        kept_sign=_mean((after.sign() == before.sign()).double()),
    )


def _pruned_layers(dense: Ticket, ticket: Ticket) -> list[str]:
    """Layers that the ticket prunes, after checking that ``dense`` is the network that they came from."""
    for name, mask in dense.masks.items():
        if not bool(mask.all()):
            raise ArgumentError(expected("dense", "the ticket of level 0, which prunes nothing", f"{name} pruned"))
        if name not in ticket.masks or ticket.masks[name].shape != mask.shape:
            raise ArgumentError(expected("ticket", f"a mask of {name}, {list(mask.shape)}, as dense has", "none such"))
    return [name for name, mask in ticket.masks.items() if name in dense.masks and not bool(mask.all())]


def _histogram(values: Tensor, edges: Tensor) -> Tensor:
    counts = torch.histogram(values, edges).hist
    width = float(edges[1] - edges[0])
    return counts / (values.numel() * width) if values.numel() else counts


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else 0.0


def _std(values: Tensor) -> float:
    return float(values.std(correction=0)) if values.numel() else 0.0

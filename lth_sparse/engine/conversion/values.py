"""The weights of a converted ticket: what survives keeps its values, and what a method adds gets theta_k.

Survivors keep theta_k and their trained values bit for bit. A weight that a conversion adds was pruned, so no ticket
of its level has a value for it: its theta_k comes from the dense network (the ticket of level 0, or the caller), and
its trained value is 0, what it was in the trained network, which therefore computes what it did until it is retrained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lth_sparse.engine.ticket import WEIGHTS, Ticket
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected

__all__ = ["dense_theta", "remade_ticket", "with_tensors"]


def dense_theta(ticket: Ticket, dense: Ticket | Mapping[str, Tensor] | None, why: str) -> dict[str, Tensor]:
    """theta_k of every weight of the ticket's layers, by parameter name.

    Args:
        ticket: that is to be converted.
        dense: the ticket of level 0 (when the search rewound to the initial weights), or a state dict.
        why: what needs it, for the message.

    Raises:
        ArgumentError: none was given, a layer is missing or of another shape, or it is not what the ticket started
            from: a survivor has another value there.
    """
    what = "theta_k of all weights: the ticket of level 0, or a state dict"
    if dense is None:
        raise ArgumentError(expected("dense", f"{what}, as {why}", None))
    if isinstance(dense, Ticket):
        if dense.density < 1.0:
            raise ArgumentError(expected("dense", what, f"{dense!r}, which is pruned itself"))
        dense = dense.state_dict("initial")
    if not isinstance(dense, Mapping):
        raise ArgumentTypeError(expected("dense", what, type(dense).__name__))
    found: dict[str, Tensor] = {}
    for name, mask in ticket.masks.items():
        tensor = dense.get(name)
        if not isinstance(tensor, Tensor) or tensor.shape != mask.shape:
            got = f"shape {list(tensor.shape)}" if isinstance(tensor, Tensor) else "nothing"
            raise ArgumentError(expected(f"dense[{name!r}]", f"shape {list(mask.shape)}", got))
        found[name] = tensor.detach().cpu().to(ticket.initial[name].dtype)
        if not torch.equal(found[name][mask], ticket.initial[name]):
            got = "other values at its survivors (another seed, or a search that rewound to a later step)"
            raise ArgumentError(expected(f"dense[{name!r}]", "the weights that the ticket starts from", got))
    return found


def remade_ticket(
    ticket: Ticket,
    masks: Mapping[str, Tensor],
    theta: Mapping[str, Tensor] | None,
    conversion: Mapping[str, Any],
    parent: str,
) -> Ticket:
    """The same ticket under other masks.

    Args:
        ticket: with the values of the survivors.
        masks: of every layer of the ticket.
        theta: theta_k of all weights; None where no mask adds any.
        conversion: how it was made.
        parent: hash of the ticket that was converted.
    """
    states = {weights: ticket.state_dict(weights) for weights in WEIGHTS}
    for name, mask in masks.items():
        added = mask & ~ticket.masks[name]
        if bool(added.any()):
            assert theta is not None  # Method.adds has said so
            states["initial"][name] = torch.where(added, theta[name], states["initial"][name])
    made = with_tensors(ticket, masks, states)
    return dataclasses.replace(made, parent=parent, conversion=dict(conversion), metrics={}, history=[])


def with_tensors(ticket: Ticket, masks: Mapping[str, Tensor], states: Mapping[str, Mapping[str, Tensor]]) -> Ticket:
    """The same ticket with other masks and dense tensors ("initial" and "trained", under all names)."""
    own = {
        weights: {name: tensor for name, tensor in state.items() if name not in ticket.aliases}
        for weights, state in states.items()
    }
    made = Ticket.of(masks, own["initial"], own["trained"])
    return dataclasses.replace(ticket, masks=made.masks, initial=made.initial, trained=made.trained)

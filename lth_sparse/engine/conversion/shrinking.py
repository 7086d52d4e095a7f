"""Physical removal: what a ticket has pruned whole leaves the network, and the ticket belongs to a smaller one.

Dead channels go from every tensor that carries them (:func:`lth_sparse.nn.shrink_`), both from theta_k and from the
trained weights. The constants that dead units put out go into the biases of those who read them. Where a constant of
the trained weights cannot be folded exactly (in front of zero padding) while that of theta_k can, it is dropped, and
said.

Such a ticket stores the small tensors, and under ``conversion["shapes"]`` the former shapes of those that changed.
:meth:`Ticket.apply` takes the original architecture and gives its layers the ticket's sizes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.engine.conversion.layer import LayerConversion, stored_values
from lth_sparse.engine.conversion.values import with_tensors
from lth_sparse.engine.ticket import WEIGHTS, Ticket
from lth_sparse.formats import Mask
from lth_sparse.nn import shrink_
from lth_sparse.nn.base import build_layout
from lth_sparse.nn.channels import ChannelGroups, ShrinkReport, channel_groups

__all__ = ["Shrunk", "shapes_before", "shrink_ticket", "shrunk_row"]

#: Group of channels by name -> those that go.
Removed = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shrunk:
    """A ticket without its dead channels.

    Attributes:
        ticket: with small tensors; the one that came where nothing could go.
        masks: of the original sizes, without what went.
        notes: what must be said.
    """

    ticket: Ticket
    masks: Mask
    notes: tuple[str, ...]


def shrink_ticket(ticket: Ticket, model: nn.Module, sample_input: Any) -> Shrunk:
    """Remove what is dead under the ticket's masks.

    Args:
        ticket: of ``model``, the plain architecture. sample_input: an input, to trace it with.

    Raises:
        ArgumentError, InvariantError: see :func:`lth_sparse.nn.shrink_`.
    """
    plain = ticket.architecture(model)
    plain.load_state_dict(ticket.state_dict())
    groups = channel_groups(plain, sample_input)
    names = [group.name for group in groups]
    small, reports, removed = {}, {}, {}
    for weights in WEIGHTS:
        small[weights], reports[weights] = _shrunk(ticket, plain, ticket.state_dict(weights), sample_input)
        removed[weights] = _removed(reports[weights])
    notes = []
    if removed["trained"] != removed["initial"]:
        state = _silenced(ticket.state_dict("trained"), groups, removed["initial"])
        small["trained"], reports["trained"] = _shrunk(ticket, plain, state, sample_input)
        removed["trained"] = _removed(reports["trained"])
        notes.append("constants of dead channels that could not be folded are gone from the trained weights")
    why = ""
    if removed["trained"] != removed["initial"]:
        why = "other channels are dead with the trained weights than with the initial ones"
    elif added := reports["initial"].added_biases:
        why = f"{added[0]} would need a bias for the constants of what it reads"
    elif len(set(names)) < len(names) and removed["initial"]:
        why = "groups of its channels cannot be told apart by name"
    elif not removed["initial"]:
        why = "no channel is dead"
    if why:
        return Shrunk(ticket, ticket.masks, (f"nothing was removed: {why}",))
    states = {weights: dict(network.state_dict()) for weights, network in small.items()}
    made = with_tensors(ticket, reports["initial"].masks, states)
    count = sum(map(len, removed["initial"].values()))
    notes.insert(0, f"{count} dead channels were removed: " + _listed(removed["initial"]))
    return Shrunk(made, _without(ticket.masks, groups, removed["initial"]), tuple(notes))


def shapes_before(ticket: Ticket, small: Ticket) -> dict[str, list[int]]:
    """The shapes that the tensors of ``small`` had in ``ticket``, of those that have another."""
    old, new = ticket.state_dict(), small.state_dict()
    return {name: list(tensor.shape) for name, tensor in old.items() if tensor.shape != new[name].shape}


def shrunk_row(
    row: LayerConversion, before: Tensor, whole: Tensor, small: Tensor, magnitude: Tensor
) -> LayerConversion:
    """The row of a layer after dead channels went.

    Args:
        row: as the method left the layer. before: the ticket's mask. whole: that of the original size without what
            went. small: the layer's mask now. magnitude: |w| of the ticket's trained weights.
    """
    kept, full = before & whole, bool(small.all())
    layout = build_layout("dense" if full else "csr", small)
    return dataclasses.replace(
        row,
        kept=int(kept.sum()),
        added=int((whole & ~before).sum()),
        dropped=int((before & ~whole).sum()),
        magnitude=float((magnitude.to(torch.float64) * kept).sum()),
        stored=stored_values(layout),
        layout="dense" if full else "csr",
        value_bytes=stored_values(layout) * magnitude.element_size(),
        index_bytes=0 if full else layout.nbytes,
        converted=row.converted or small.shape != before.shape,
        note="; ".join(filter(None, (row.note, f"now {'x'.join(map(str, small.shape))}"))),
    )


def _shrunk(
    ticket: Ticket, plain: nn.Module, state: Mapping[str, Tensor], sample_input: Any
) -> tuple[nn.Module, ShrinkReport]:
    network = copy.deepcopy(plain)
    network.load_state_dict(state)
    return network, shrink_(network, ticket.masks, sample_input=sample_input)


def _removed(report: ShrinkReport) -> Removed:
    return {group.name: group.removed for group in report.groups if group.removed}


def _silenced(state: Mapping[str, Tensor], groups: ChannelGroups, removed: Removed) -> dict[str, Tensor]:
    """The state with the biases and normalisations of channels that go at 0, so that nothing is left to fold."""
    made = {name: tensor.clone() for name, tensor in state.items()}
    for group in groups:
        for member in group.members if group.name in removed else ():
            for name in member.names:
                if name in made and made[name].dim() == 1 and name.rpartition(".")[2] in ("weight", "bias"):
                    made[name][member.index[list(removed[group.name])].reshape(-1)] = 0.0
    return made


def _without(masks: Mapping[str, Tensor], groups: ChannelGroups, removed: Removed) -> Mask:
    """Masks of the original sizes without the channels that went."""
    made = {name: mask.clone() for name, mask in masks.items()}
    for group in groups:
        for member in group.members if group.name in removed else ():
            places = member.index[list(removed[group.name])].reshape(-1)
            for name in member.names:
                if name in made and made[name].dim() > member.axis:
                    made[name].index_fill_(member.axis, places, False)
    return Mask(made)


def _listed(removed: Removed) -> str:
    return ", ".join(f"{len(channels)} of {name.rpartition('.')[0]}" for name, channels in removed.items())

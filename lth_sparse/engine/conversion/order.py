"""Reordering before the methods with blocks: channels are permuted through the whole network, so that it costs nothing.

One order serves all tensors that carry a channel: the rows of the layer that writes it, its bias and normalisation, the
columns of the layers that read it (:func:`lth_sparse.nn.channels.reorder_model`). A permuted ticket is an ordinary
ticket of the same architecture, whose network computes what it did, with its channels elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lth_sparse.engine.conversion.methods import Method
from lth_sparse.engine.conversion.values import with_tensors
from lth_sparse.engine.ticket import WEIGHTS, Ticket
from lth_sparse.formats import Mask
from lth_sparse.nn.channels import ChannelGroups, channel_groups, permute_state, reorder_model

__all__ = ["Ordered", "fold_order"]


@dataclass(frozen=True)
class Ordered:
    """A ticket in another order of its channels.

    Attributes:
        ticket: permuted. theta: theta_k permuted likewise, or None.
        permuted: names of the groups of channels whose order is another.
        notes: layer -> why its rows or columns stay in their order, where blocks ask for another and none can be.
    """

    ticket: Ticket
    theta: Mapping[str, Tensor] | None
    permuted: tuple[str, ...]
    notes: dict[str, str]


def fold_order(
    ticket: Ticket,
    theta: Mapping[str, Tensor] | None,
    method: Method,
    names: set[str],
    model: nn.Module,
    sample_input: Any,
    *,
    channels_last: bool,
    seed: int,
) -> Ordered:
    """Permute the channels of a ticket so that the method's blocks hold more of its live weights each.

    Args:
        ticket: theta: see :func:`lth_sparse.engine.conversion.values.dense_theta`.
        method: with its block. names: the layers that it is for; the others move along but are not looked at.
        model, sample_input: the plain architecture and an input, to trace it with.
        channels_last: blocks of convolutions are cut from ``[out, *kernel, in]``.

    Raises:
        ArgumentError: the model cannot be traced; the message says where.
    """
    assert method.block is not None  # for_target has seen to it
    groups = channel_groups(model, sample_input)
    blocks = dict.fromkeys(names, method.block)
    found = reorder_model(ticket.masks, groups, blocks, seed=seed, channels_last=channels_last)
    perms, masks = found.perms, found.masks
    states = {weights: permute_state(ticket.state_dict(weights), groups, perms) for weights in WEIGHTS}
    return Ordered(
        with_tensors(ticket, Mask(masks), states),
        None if theta is None else permute_state(theta, groups, perms),
        tuple(groups[index].name for index in sorted(perms)),
        {name: note for name in names if (note := _fixed(name, masks[name], method.block, groups, channels_last))},
    )


def _fixed(name: str, mask: Tensor, block: tuple[int, int], groups: ChannelGroups, channels_last: bool) -> str:
    """Why rows or columns of a layer stay where they are; "" when those that blocks span may move."""
    spans = block[0] > 1, block[1] > (1 if channels_last else math.prod(mask.shape[2:]))
    notes = []
    for axis, what in enumerate(("rows", "columns")):
        reasons = dict.fromkeys(group.reason for group in groups.of(name, axis) if group.reason is not None)
        if spans[axis] and reasons:
            notes.append(f"{what} in their own order: {'; '.join(reasons)}")
    return ", ".join(notes)

"""Reordering before the methods with blocks: channels are permuted through the whole network, so that it costs nothing.

One order serves all tensors that carry a channel: the rows of the layer that writes it, its bias and normalisation, the
columns of the layers that read it. So each order is searched for over all masks of its group at once: the sum of the
blocks that they would store. A permuted ticket is an ordinary ticket of the same architecture, whose network computes
what it did, channel by channel elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.engine.conversion.methods import Method
from lth_sparse.engine.conversion.values import with_tensors
from lth_sparse.engine.ticket import WEIGHTS, Ticket
from lth_sparse.formats import Mask
from lth_sparse.formats.bsr import to_blocks
from lth_sparse.formats.reorder import Member as Axis
from lth_sparse.formats.reorder import is_identity, reorder_axis
from lth_sparse.nn.channels import ChannelGroups, Member, channel_groups, permute_state

__all__ = ["Ordered", "fold_order"]

#: Passes over all groups: the blocks of a layer depend on the order of both its axes.
ROUNDS = 2


@dataclass(frozen=True)
class Ordered:
    """A ticket in another order of its channels.

    Attributes:
        ticket: permuted. theta: theta_k permuted likewise, or None.
        perms: id of the group -> order ``[size]``; only those that change something.
        groups: of the network.
        notes: layer -> why its rows or columns stay in their order, where blocks ask for another and none can be.
    """

    ticket: Ticket
    theta: dict[str, Tensor] | None
    perms: dict[int, Tensor]
    groups: ChannelGroups
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
    masks = {name: ticket.masks[name] for name in ticket.masks}
    perms: dict[int, Tensor] = {}
    for _ in range(ROUNDS):
        gained = False
        for group in groups.free:
            axes = [axis for member in group.members if (axis := _axis(member, masks, names, method, channels_last))]
            if not axes:
                continue
            order = reorder_axis(axes, group.size, seed=seed)
            if is_identity(order):
                continue
            gained = True
            masks = permute_state(masks, groups, {group.id: order})
            before = perms.get(group.id)
            perms[group.id] = order if before is None else before[order]
        if not gained:
            break
    states = {weights: permute_state(ticket.state_dict(weights), groups, perms) for weights in WEIGHTS}
    return Ordered(
        with_tensors(ticket, Mask(masks), states),
        None if theta is None else permute_state(theta, groups, perms),
        perms,
        groups,
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


def _axis(
    member: Member, masks: Mapping[str, Tensor], names: set[str], method: Method, channels_last: bool
) -> Axis | None:
    """What one tensor of a group has to say about its order: bool ``[channels, features]`` and the extent of a block.

    None for a tensor without blocks along this axis, or one whose blocks lie within a channel, whatever the order.
    """
    name = next((name for name in member.names if name in names), None)
    if name is None or member.axis > 1 or member.rows is not None:
        return None
    assert method.block is not None
    mask, (rows, cols) = masks[name], method.block
    by_tap = channels_last and mask.dim() > 2
    size, repeat = member.index.shape
    places = member.index.reshape(-1)
    if member.axis == 0:
        if rows < 2 or repeat > 1:
            return None
        features = to_blocks(mask, (1, cols), by_tap).flatten(2).any(2)
        return Axis(features.index_select(0, places), rows, float(rows * cols))
    taps = math.prod(mask.shape[2:])
    # Channels that a block spans; within a channel the order of channels does not matter.
    span = cols if by_tap else cols // (taps * repeat)
    if span < 2:
        return None
    # [out, in, taps] -> does any row of a block row read this column at this position?
    columns = mask.reshape(mask.shape[0], mask.shape[1], taps).transpose(0, 1)
    padded = torch.nn.functional.pad(columns, (0, 0, 0, -mask.shape[0] % rows))
    read = padded.reshape(mask.shape[1], -1, rows, taps).any(2).flatten(1)
    return Axis(read.index_select(0, places).reshape(size, -1), span, float(rows * cols))

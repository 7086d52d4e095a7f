"""Orders of a whole network's channels in which its masks have few live blocks.

One order of a group permutes the rows of the layers that write it and the columns of those that read it, so it is
chosen for all of them together, see :func:`lth_sparse.formats.reorder.reorder_axis`. Folded into the weights by
:func:`permute_channels_` it costs nothing when the network runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats.bsr import check_block
from lth_sparse.formats.layout import check_mask
from lth_sparse.formats.reorder import Member as AxisMember
from lth_sparse.formats.reorder import live_blocks, reorder_axis
from lth_sparse.nn.channels.groups import ChannelGroups, Group, Member
from lth_sparse.nn.channels.permute import permute_state

__all__ = ["ModelReordering", "members_of", "reorder_model"]

Block = tuple[int, int]


@dataclass(frozen=True, eq=False)
class ModelReordering:
    """Orders of groups, and what they do to the blocks of each layer.

    Attributes:
        perms: group id -> int64 [size], for :func:`permute_channels_` and :func:`permute_state`; only groups that move.
        masks: the masks in this order.
        blocks_before, blocks_after: weight's name -> live blocks.
    """

    perms: dict[int, Tensor]
    masks: dict[str, Tensor]
    blocks_before: dict[str, int]
    blocks_after: dict[str, int]


def members_of(
    group: Group,
    masks: Mapping[str, Tensor],
    block: Block | Mapping[str, Block],
    *,
    channels_last: bool = False,
    fold: bool = True,
) -> list[AxisMember]:
    """What an order of ``group`` does to the live blocks of ``masks``, for ``reorder_axis``.

    Each axis of a mask that carries the group is one member: its features say which block columns (for rows) or block
    rows (for columns) a channel occupies, its extent how many channels a block spans. Behind a flattening a channel is
    a run of columns, in a convolution's columns one for each tap. A fixed group has no members, nor has an axis along
    which a block spans one channel or less.

    Args:
        masks: bool, by any name of the parameter.
        block: ``(r, c)``, or one for each mask; masks without one do not count.
        channels_last: blocks of convolutions are cut in channels_last memory order.
        fold: False leaves the other axis in single rows or columns: for the first order of all, when that has none yet.
    """
    if not group.free:
        return []
    made = []
    for member in group.members:
        for name in member.names:
            if name in masks and (shape := _block_of(block, name)) is not None:
                features, extent = _features(masks[name], member, shape, channels_last, fold)
                if extent > 1 and features.any():
                    made.append(AxisMember(features, extent, float(shape[0] * shape[1])))
                break
    return made


def reorder_model(
    masks: Mapping[str, Tensor],
    groups: ChannelGroups,
    block: Block | Mapping[str, Block],
    passes: int = 4,
    *,
    seed: int = 0,
    channels_last: bool = False,
) -> ModelReordering:
    """Orders of all free groups that leave ``masks`` with fewer live blocks, weighted by their size.

    Takes the groups in turn until nothing is gained, at most ``passes`` times; never worse than the order that they
    have. Deterministic.

    Args:
        masks: bool, by parameter name.
        groups: of the model, see :func:`channel_groups`.
        block: ``(r, c)``, or one for each mask; a mask without one moves with its groups but does not count.
        seed: of the exchanges that are tried at random.
        channels_last: as for :func:`members_of`.

    Raises:
        ArgumentError, ArgumentTypeError: a mask that is no bool tensor or does not fit its group, a block that is none.
    """
    if type(passes) is not int or passes < 1:
        raise ArgumentError(expected("passes", "a positive int", passes))
    for name, mask in masks.items():
        check_mask(mask, f"masks[{name!r}]")
        _block_of(block, name)
    current = dict(masks)
    perms = {group.id: torch.arange(group.size) for group in groups.free}
    before = _count(current, block, channels_last)
    best: tuple[int, dict[int, Tensor], dict[str, Tensor], dict[str, int]]
    best = (_cost(before, block), {}, current, before)
    for turn in range(passes + 1):  # the first one by single rows and columns, which have no blocks yet
        moved = False
        for group in groups.free:
            members = members_of(group, current, block, channels_last=channels_last, fold=turn > 0)
            order = reorder_axis(members, group.size, seed=seed) if members else torch.arange(group.size)
            if not torch.equal(order, torch.arange(group.size)):
                current = permute_state(current, groups, {group.id: order})
                perms[group.id] = perms[group.id][order]
                moved = True
        counts = _count(current, block, channels_last)
        if _cost(counts, block) < best[0]:
            best = (_cost(counts, block), dict(perms), current, counts)
        elif turn > 0:
            break
        if not moved and turn > 0:
            break
    _, kept, ordered, after = best
    kept = {index: perm for index, perm in kept.items() if not torch.equal(perm, torch.arange(len(perm)))}
    return ModelReordering(kept, ordered, before, after)


def _block_of(block: Block | Mapping[str, Block], name: str) -> Block | None:
    if isinstance(block, Mapping):
        return check_block(block[name]) if name in block else None
    return check_block(block)


def _count(masks: Mapping[str, Tensor], block: Block | Mapping[str, Block], channels_last: bool) -> dict[str, int]:
    """Live blocks of each mask that has a block."""
    counts = {}
    for name, mask in masks.items():
        if (shape := _block_of(block, name)) is not None:
            counts[name] = int((live_blocks(mask, shape, channels_last=channels_last and mask.dim() > 2) > 0).sum())
    return counts


def _cost(counts: Mapping[str, int], block: Block | Mapping[str, Block]) -> int:
    return sum(count * math.prod(_block_of(block, name) or ()) for name, count in counts.items())


def _features(mask: Tensor, member: Member, block: Block, channels_last: bool, fold: bool) -> tuple[Tensor, int]:
    """Bool ``[channels, features]`` of one axis, and how many channels a block spans along it."""
    r, c = block
    mask = mask.cpu()
    if member.rows is not None:
        mask = mask[member.rows[0] : member.rows[1]]
    taps = math.prod(mask.shape[2:])
    grid = mask.reshape(mask.shape[0], mask.shape[1], taps)
    by_tap = channels_last and mask.dim() > 2
    if member.axis == 0:
        columns = grid.transpose(1, 2).flatten(1) if by_tap else grid.flatten(1)
        items, extent = _folded(columns, c if fold else 1), r
        if by_tap and fold:  # blocks do not reach from one tap into the next
            items = torch.cat([_folded(grid[:, :, tap], c) for tap in range(taps)], dim=1)
    else:
        rows = _folded(grid.flatten(1).t(), r if fold else 1).view(mask.shape[1], taps, -1)
        items, extent = (rows.flatten(1), c) if by_tap else (rows.any(1), c // taps)
    index = member.index
    size, repeat = index.shape
    own = items[index.reshape(-1)].view(size, repeat, -1)
    if repeat > 1 and bool((index[:, 1:] - index[:, :-1] == 1).all()):
        return own.any(1), extent // repeat  # a run of neighbours
    return own.flatten(1), extent


def _folded(items: Tensor, width: int) -> Tensor:
    """``any`` over each ``width`` features: ``[items, features]`` -> ``[items, ceil(features / width)]``."""
    if width == 1:
        return items
    padded = items.new_zeros(items.shape[0], items.shape[1] + -items.shape[1] % width)
    padded[:, : items.shape[1]] = items
    return padded.view(items.shape[0], -1, width).any(2)

"""Channels of a whole network: which belong together, how to permute them, and how to remove those that are dead.

trace      a torch.fx trace that runs a sample alongside
walk       node by node: labels of channels in, labels of channels out; rules in layers, functions, moves, merge
coupling   statements about channels -> classes under one permutation
groups     the public picture: groups, and the axes of the tensors that carry them
permute    permutations in place, and of dicts of tensors
reorder    orders of all groups in which masks have few live blocks
shrink     dead channels cut out: constants tells what is known of them, dead decides which can go
"""

from __future__ import annotations

from lth_sparse.nn.channels.groups import ChannelGroups, Group, Member, channel_groups
from lth_sparse.nn.channels.permute import permute_channels_, permute_state
from lth_sparse.nn.channels.reorder import ModelReordering, members_of, reorder_model
from lth_sparse.nn.channels.shrink import ShrinkReport, ShrunkGroup, shrink_

__all__ = [
    "ChannelGroups",
    "Group",
    "Member",
    "ModelReordering",
    "ShrinkReport",
    "ShrunkGroup",
    "channel_groups",
    "members_of",
    "permute_channels_",
    "permute_state",
    "reorder_model",
    "shrink_",
]

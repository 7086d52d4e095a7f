"""``channel_groups``: which channels of a model must move together, and where each of them lies.

A group is one set of channels with every tensor that carries it: the output axis of the layers that write it with their
biases, the normalisations and convolutions that treat it channel by channel, the input axis of the layers that read it
(after a flattening once for each pixel). Groups that must stay as they are have a reason instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.nn.channels.functions import FUNCTIONS
from lth_sparse.nn.channels.layers import MODULES
from lth_sparse.nn.channels.moves import MOVES, padded, reshaped
from lth_sparse.nn.channels.trace import trace
from lth_sparse.nn.channels.walk import Rules, Walk
from lth_sparse.nn.masks import check_model
from lth_sparse.nn.report import table
from lth_sparse.nn.tree import extent

__all__ = ["ChannelGroups", "Group", "Member", "Solved", "channel_groups", "first_names", "solved", "walk_model"]

#: Tensors that the table names for each group.
SHOWN = 4

RULES = Rules(
    {
        **MODULES,
        nn.Flatten: reshaped,
        **dict.fromkeys(
            (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), lambda call, module: padded(call, module.padding, True)
        ),
    },
    {**FUNCTIONS, **MOVES},
)


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one tensor that carries a group.

    Attributes:
        name: parameter or buffer, by its first name in the model.
        axis: of that tensor.
        index: int64 [size, repeat]; row c holds the places of channel c along the axis.
        rows: only this range ``(start, stop)`` of axis 0 carries the group so (grouped convolutions); None: all of it.
        names: all names of the tensor in the model's state_dict (tied weights), and the one it has without the masks of
            torch's pruning tools.
    """

    name: str
    axis: int
    index: Tensor
    rows: tuple[int, int] | None
    names: tuple[str, ...]

    @property
    def repeat(self) -> int:
        """Places of each channel: the pixels of an image behind a flattening, else mostly 1."""
        return self.index.shape[1]


@dataclass(frozen=True, eq=False)
class Group:
    """Channels under one permutation.

    Attributes:
        id: place in the groups of the model.
        size: number of channels.
        members: where they lie.
        reason: why they cannot be permuted; None when they can.
        rigid: why none of them can be removed though they may be permuted; None when they can.
    """

    id: int
    size: int
    members: tuple[Member, ...]
    reason: str | None
    rigid: str | None

    @property
    def free(self) -> bool:
        """Whether a permutation changes nothing about the model's function."""
        return self.reason is None

    @property
    def name(self) -> str:
        """Where the group comes from: the first tensor that carries it along axis 0, else the first of all."""
        return next((member.name for member in self.members if member.axis == 0), self.members[0].name)


class ChannelGroups(Sequence[Group]):
    """The groups of a model; ``print`` them for a table."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = tuple(groups)

    def __getitem__(self, index: Any) -> Any:
        return self._groups[index]

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups)

    @property
    def free(self) -> list[Group]:
        """Groups of more than one channel that may be permuted."""
        return [group for group in self._groups if group.free and group.size > 1]

    def of(self, name: str, axis: int) -> list[Group]:
        """The groups along an axis of a parameter or buffer; none for an axis that carries no channels."""
        found = [
            group for group in self._groups for member in group.members if name in member.names and member.axis == axis
        ]
        return list(dict.fromkeys(found))

    def checked(self, perms: Mapping[int, Any]) -> dict[int, Tensor]:
        """Permutations by group as int64 tensors on the CPU.

        Raises:
            ArgumentError: no such group, a group that cannot be permuted (with its reason), or no permutation.
        """
        if not isinstance(perms, Mapping):
            raise ArgumentError(expected("perms", "a mapping {group id: permutation}", type(perms).__name__))
        made = {}
        for index, perm in perms.items():
            argument = f"perms[{index!r}]"
            if type(index) is not int or not 0 <= index < len(self):
                raise ArgumentError(expected("perms", f"ids of groups, 0 to {len(self) - 1}", index))
            group = self._groups[index]
            if group.reason is not None:
                what = f"a group that can be permuted, but {group.name}: {group.reason}"
                raise ArgumentError(f"{argument}: expected {what}")
            order = torch.as_tensor(perm).detach().cpu()
            if order.dtype not in (torch.int64, torch.int32) or order.shape != (group.size,):
                raise ArgumentError(
                    expected(argument, f"integers [{group.size}]", f"{order.dtype} {list(order.shape)}")
                )
            order = order.to(torch.int64)
            if not torch.equal(order.sort().values, torch.arange(group.size)):
                raise ArgumentError(expected(argument, f"each of 0 to {group.size - 1} once", "something else"))
            made[index] = order
        return made

    def __str__(self) -> str:
        rows = []
        shown = [group for group in self._groups if group.size > 1]
        for group in shown:
            where = [
                f"{member.name}[{member.axis}]" + (f" x{member.repeat}" if member.repeat > 1 else "")
                for member in group.members
            ]
            more = f" and {len(where) - SHOWN} more" if len(where) > SHOWN else ""
            rows.append((str(group.id), str(group.size), group.reason or "free", ", ".join(where[:SHOWN]) + more))
        free = sum(group.size for group in self.free)
        single = len(self) - len(shown)
        beside = f"and {single} groups of one channel" if single else ""
        total = ("all", str(sum(group.size for group in self._groups)), f"{free} channels are free", beside)
        return table(("group", "channels", "permutable", "carried by"), [*rows, total], {"channels"})


def channel_groups(model: nn.Module, sample_input: Any) -> ChannelGroups:
    """The groups of channels of a dense model, from a torch.fx trace on ``sample_input``.

    What the model does in training is followed, and what it does in eval mode. Operations that are not understood fix
    the channels that reach them, with a reason; they never lead to a wrong group. Code that branches on sizes is
    followed as the sample's sizes have it.

    Args:
        model: is left as it was. It runs in eval mode, without gradients.
        sample_input: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.

    Raises:
        ArgumentError, ArgumentTypeError: the model does not take the sample, or cannot be traced (branches on values,
            shapes made from values); the message names the module and the line.
    """
    return solved(walk_model(model, sample_input)).groups


def walk_model(model: nn.Module, sample_input: Any, masks: Mapping[str, Tensor] | None = None) -> Walk:
    """Walk over the model as it runs in eval mode, and in training mode where that differs."""
    tensors = _tensors(check_model(model))
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    walk = Walk(model, names, masks, trouble=_overlaps({alias[0]: tensors[alias[0]] for alias in names.values()}))
    inference = trace(model, sample_input, RULES.knows, training=False)
    walk.over(inference, RULES, training=False)
    learning = trace(model, sample_input, RULES.knows, training=True)
    if learning.code() != inference.code():
        walk.over(learning, RULES, training=True)
    return walk


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    return tensors


def first_names(model: nn.Module) -> dict[str, str]:
    """Name of each parameter and buffer -> the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in _tensors(model).items()}


def _overlaps(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Parameters and buffers that share memory without being one tensor: moving one would move the other."""
    found: dict[str, str] = {}
    spans = sorted((str(tensor.device), *extent(tensor), name) for name, tensor in tensors.items())
    last = ("", 0, 0, "")
    for device, begin, end, name in spans:
        if begin == end:
            continue
        if device == last[0] and begin < last[2]:
            found[name] = found[last[3]] = f"{name} and {last[3]} are views of the same memory"
        if device != last[0] or end > last[2]:
            last = (device, begin, end, name)
    return found


@dataclass(frozen=True)
class Solved:
    """Groups, and where each element of the walk went.

    Attributes:
        groups: the groups.
        group: int64 [elements], id of its group; -1 for an element that no tensor carries.
        channel: int64 [elements], place in the group.
    """

    groups: ChannelGroups
    group: np.ndarray
    channel: np.ndarray


def solved(walk: Walk) -> Solved:
    """Solve a walk: its classes of channels with the axes that carry them."""
    solution = walk.coupling.solve()
    order = {names[0]: place for place, names in enumerate(walk.names.values())}
    found: dict[int, list[Member]] = {}
    reasons = {index: each.fixed for index, each in enumerate(solution.classes)}
    for (name, axis, rows), elements in sorted(walk.axes.items(), key=lambda item: (order[item[0][0]], item[0][1])):
        names = _spellings(walk.names[id(walk.tensor(name))])
        places = np.flatnonzero(elements >= 0)
        ids = elements[places]
        owners = solution.owner[ids]
        order_of_owners = np.argsort(owners, kind="stable")
        for mine in np.split(order_of_owners, np.flatnonzero(np.diff(owners[order_of_owners])) + 1):
            if not len(mine):
                continue
            owner = int(owners[mine[0]])
            size = solution.classes[owner].size
            index = _index(places[mine], solution.run[ids[mine]], solution.offset[ids[mine]], size)
            if index is None:
                reasons[owner] = reasons[owner] or f"{name} does not hold its channels in one order"
                index = places[mine][:, None]
            found.setdefault(owner, []).append(Member(name, axis, torch.from_numpy(index), rows, names))
    groups = [
        Group(place, solution.classes[owner].size, tuple(members), reasons[owner], solution.classes[owner].rigid)
        for place, (owner, members) in enumerate(found.items())
    ]
    ids = np.full(len(solution.classes), -1, dtype=np.int64)
    ids[list(found)] = np.arange(len(found))
    return Solved(ChannelGroups(groups), ids[solution.owner], solution.offset)


def _index(places: np.ndarray, runs: np.ndarray, offsets: np.ndarray, size: int) -> np.ndarray | None:
    """Places of each channel, ``[size, repeat]``; None when the channels do not all lie alike."""
    counts = np.bincount(offsets, minlength=size)
    if len(set(counts.tolist())) != 1:
        return None
    rows = places[np.lexsort((places, runs, offsets))].reshape(size, -1)
    steps = np.diff(rows, axis=0)
    return np.ascontiguousarray(rows) if bool((steps == steps[:1]).all()) else None


def _spellings(names: list[str]) -> tuple[str, ...]:
    """All names of a tensor, and of the parameter behind torch's pruning tools."""
    plain = []
    for name in names:
        plain.append(name)
        if name.endswith("_orig"):
            plain.append(name.removesuffix("_orig"))
        elif name.endswith(".original") and ".parametrizations." in f".{name}":
            path, _, rest = f".{name}".partition(".parametrizations.")
            plain.append(f"{path}.{rest.removesuffix('.original')}".lstrip("."))
    return tuple(plain)

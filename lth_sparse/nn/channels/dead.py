"""Which channels can go: nobody reads them, or all that is read is a constant that the readers' biases can take over.

A channel is decided over all its readers together. Each reader either has pruned every weight on it, or knows its value
(see :mod:`.constants`). Rows of channels that go read nothing any more, so one that goes may let others go before it;
this ends when nothing is added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lth_sparse.nn.channels.groups import Solved
from lth_sparse.nn.channels.walk import Reader, Walk

__all__ = ["DeadChannels", "find_dead"]


@dataclass
class DeadChannels:
    """What may be removed from each group.

    Attributes:
        removed: group id -> bool [size].
        learning: group id -> bool [size]: removed, though training would still have moved them.
        kept: group id -> {reason: channels} of those that are constant or partly unread, but stay.
        shifts: reader's module name -> float64 [out], what its bias takes over.
    """

    removed: dict[int, np.ndarray]
    learning: dict[int, np.ndarray] = field(default_factory=dict)
    kept: dict[int, dict[str, int]] = field(default_factory=dict)
    shifts: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class _Columns:
    """One call of a reader.

    Attributes:
        group, channel: int64 [in], which channel each column reads; group -1 for none that a tensor carries.
        rows_group, rows_channel: int64 [out], likewise for what it writes.
        live: bool [out, in].
        weight: float64 [out, in], summed over the kernel, zeros where pruned.
        steady: bool [in], the constant is 0 and training cannot move it.
        foldable: bool [in], the bias can take it over in eval mode.
    """

    reader: Reader
    group: np.ndarray
    channel: np.ndarray
    rows_group: np.ndarray
    rows_channel: np.ndarray
    live: np.ndarray
    weight: np.ndarray
    steady: np.ndarray
    foldable: np.ndarray


def find_dead(walk: Walk, solved: Solved, exact: str, shared_biases: set[str]) -> DeadChannels:
    """Channels of ``solved`` that may be removed from the model of ``walk``.

    Args:
        exact: "inference" folds any constant; "training" takes only what training cannot move.
        shared_biases: readers whose bias others use too, which can take over nothing.
    """
    columns = [_columns(walk, solved, reader, exact, shared_biases) for reader in walk.readers]
    running = {reader.weight for reader in walk.readers if not reader.training}
    columns = [
        each for each in columns if exact == "training" or not each.reader.training or each.reader.weight not in running
    ]
    _same_constants(columns)
    sizes = {group.id: group.size for group in solved.groups}
    loose = {
        group.id: np.full(group.size, group.free and group.rigid is None and group.size > 1) for group in solved.groups
    }
    while True:
        removed = _fixpoint(columns, loose, sizes)
        gone = [index for index, dead in removed.items() if dead.all() and len(dead)]
        if not gone:
            break
        for index in gone:  # a layer needs a channel
            loose[index] = loose[index].copy()
            loose[index][0] = False
    found = DeadChannels(removed)
    _explain(found, columns, solved, loose, shared_biases)
    for each in columns:
        if not each.reader.training:
            taken = _at(removed, each.group, each.channel) & each.foldable & ~each.steady
            shift = (each.weight * np.where(taken, each.reader.inputs["value"], 0.0)[None, :]).sum(axis=1)
            if shift.any():
                found.shifts[each.reader.name] = shift
    return found


def _columns(walk: Walk, solved: Solved, reader: Reader, exact: str, shared_biases: set[str]) -> _Columns:
    weight = walk.tensor(reader.weight)
    assert walk.masks is not None
    mask = walk.masks.get(reader.weight)
    dense = weight.detach().cpu().double().numpy()
    live = np.ones(weight.shape[:2], dtype=bool)
    if mask is not None:
        dense = dense * mask.cpu().numpy()
        live = mask.cpu().reshape(*weight.shape[:2], -1).any(dim=2).numpy()
    inputs = reader.inputs
    known = inputs["known"] & np.isfinite(inputs["value"])
    steady = known & (inputs["value"] == 0) & (inputs["train"] == 0) & inputs["frozen"]
    zero = known & (inputs["value"] == 0)
    anything = known & (not reader.padded and reader.name not in shared_biases)
    foldable = steady if exact == "training" else known if reader.training else zero | anything
    rows = walk.axes[(reader.weight, 0, None)]
    return _Columns(
        reader,
        *_places(solved, inputs["id"]),
        *_places(solved, rows),
        live,
        dense.reshape(*weight.shape[:2], -1).sum(axis=2),
        steady,
        foldable,
    )


def _places(solved: Solved, elements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group and channel of elements; group -1 for plain ones."""
    if not len(solved.group):
        return np.full(len(elements), -1), np.zeros(len(elements), dtype=np.int64)
    return np.where(elements < 0, -1, solved.group[elements]), solved.channel[elements]


def _same_constants(columns: list[_Columns]) -> None:
    """A layer that is called several times has one bias: only constants that are the same in all calls can go there."""
    calls: defaultdict[str, list[_Columns]] = defaultdict(list)
    for each in columns:
        if not each.reader.training:
            calls[each.reader.weight].append(each)
    for first, *others in calls.values():
        for other in others:
            alike = first.reader.inputs["value"] == other.reader.inputs["value"]
            alike &= np.array_equal(first.group, other.group) & (first.channel == other.channel)
            for each in (first, *others):
                each.foldable &= alike | (each.reader.inputs["value"] == 0)


def _fixpoint(
    columns: list[_Columns], loose: Mapping[int, np.ndarray], sizes: Mapping[int, int]
) -> dict[int, np.ndarray]:
    """The largest set of channels that can go together, starting from none."""
    removed = {index: np.zeros(size, dtype=bool) for index, size in sizes.items()}
    while True:
        possible = {index: dead.copy() for index, dead in loose.items()}
        for each in columns:
            stays = ~_at(removed, each.rows_group, each.rows_channel)
            needed = (each.live & stays[:, None]).any(axis=0) & ~each.foldable
            for index in np.unique(each.group[needed]):
                if index >= 0:
                    possible[int(index)][each.channel[needed & (each.group == index)]] = False
        if all(np.array_equal(possible[index], removed[index]) for index in sizes):
            return removed
        removed = possible


def _at(removed: Mapping[int, np.ndarray], group: np.ndarray, channel: np.ndarray) -> np.ndarray:
    """Whether the channels at these places are removed."""
    result = np.zeros(len(group), dtype=bool)
    for index in np.unique(group):
        if index >= 0:
            mine = group == index
            result[mine] = removed[int(index)][channel[mine]]
    return result


def _explain(
    found: DeadChannels,
    columns: list[_Columns],
    solved: Solved,
    loose: Mapping[int, np.ndarray],
    shared_biases: set[str],
) -> None:
    """Why constant channels stay, and which of those that go were still learning."""
    for group in solved.groups:
        dead = found.removed[group.id]
        learning, blocked = np.zeros(group.size, dtype=bool), np.zeros(group.size, dtype=bool)
        reasons: dict[str, int] = {}
        for each in columns:
            mine = each.group == group.id
            stays = ~_at(found.removed, each.rows_group, each.rows_channel)
            read = (each.live & stays[:, None]).any(axis=0)
            learning[each.channel[mine & read & ~each.steady]] = True
            constant = mine & (each.reader.inputs["known"] | ~read)
            kept = constant & read & ~each.foldable
            zero = each.reader.inputs["value"] == 0
            name = each.reader.name
            why = [(kept & zero, f"training would move the 0 that {name!r} reads")]
            padded, other = each.reader.padded, f"{name!r} reads another constant than 0"
            border = f"{other}, which its padding ends" if padded else f"{other}, which training needs there"
            border = f"{other}, and shares its bias" if name in shared_biases else border
            why.append((kept & ~zero, border))
            left = constant & ~dead[np.where(mine, each.channel, 0)]
            why.append((left & (not group.free), group.reason or ""))
            why.append((left & (group.rigid is not None), group.rigid or ""))
            for places, reason in why:
                channels = np.zeros(group.size, dtype=bool)
                channels[each.channel[places]] = True
                channels &= ~blocked & ~dead
                if channels.any():
                    reasons[reason] = reasons.get(reason, 0) + int(channels.sum())
                    blocked |= channels
        if group.free and group.rigid is None and group.size > 1 and not loose[group.id].all():
            reasons["a layer needs at least one channel"] = 1
        found.learning[group.id] = learning & dead
        if reasons:
            found.kept[group.id] = reasons

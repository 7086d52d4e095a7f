"""Which channels must move together: elements, the links between them, and the runs in which they may be permuted.

An element is one channel at the place where it comes from: output 7 of a layer is one. Whatever an operation does to
channels becomes one of four statements. Two elements are *linked*: added to each other, say, and so one channel of the
network. Elements are a *bag*: something sums over just these, so they may change places among themselves only. They are
*fixed*: nobody may move them. They are *rigid*: the code around them knows how many there are, so none may go.

Solving cuts the elements into runs of consecutive ones that every statement treats alike; linked runs form a class, and
one permutation may be applied to all runs of a class.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["PLAIN", "ChannelClass", "Coupling", "Solution"]

#: The element of a position that no one tracks, such as a channel of the model's input.
PLAIN = -1


@dataclass
class ChannelClass:
    """Runs of elements under one permutation.

    Attributes:
        starts: first element of each run, ascending.
        size: elements of each run.
        fixed: why they may not be permuted; None when they may.
        rigid: why none may be removed; None when they may.
    """

    starts: list[int]
    size: int
    fixed: str | None = None
    rigid: str | None = None


@dataclass
class Solution:
    """Classes, and for each element its class and its place in its run.

    Attributes:
        classes: in the order of their first element.
        owner: int64 [elements], index of the class.
        run: int64 [elements], which run of its class.
        offset: int64 [elements], place in the run.
    """

    classes: list[ChannelClass]
    owner: np.ndarray
    run: np.ndarray
    offset: np.ndarray


@dataclass
class Coupling:
    """Elements and the statements about them. Arrays of elements are int64 and may hold ``PLAIN``."""

    size: int = 0
    _bags: list[np.ndarray] = field(default_factory=list)
    _links: list[np.ndarray] = field(default_factory=list)
    _fixed: list[tuple[np.ndarray, str]] = field(default_factory=list)
    _rigid: list[tuple[np.ndarray, str]] = field(default_factory=list)
    _mentioned: list[np.ndarray] = field(default_factory=list)

    def fresh(self, count: int) -> np.ndarray:
        """``count`` elements, consecutive: one run, with borders at its ends."""
        elements = np.arange(self.size, self.size + count, dtype=np.int64)
        self.size += count
        if count:
            self._bags.append(elements)
        return elements

    def link(self, one: np.ndarray, other: np.ndarray, reason: str) -> None:
        """Position by position the same channel. An element that meets a plain position is fixed, for ``reason``.

        Both 1-D and of one length; repeated pairs count once.
        """
        self.mention(one, other)
        pairs = np.unique(np.stack([one, other], axis=1), axis=0)
        plain = (pairs < 0).any(axis=1)
        self.fix(pairs[plain].max(axis=1, initial=PLAIN), reason)
        pairs = pairs[~plain & (pairs[:, 0] != pairs[:, 1])]
        if len(pairs):
            self._links.append(pairs)

    def bag(self, elements: np.ndarray) -> None:
        """These may change places among themselves only."""
        self.mention(elements)
        elements = np.unique(elements[elements >= 0])
        if len(elements):
            self._bags.append(elements)

    def fix(self, elements: np.ndarray, reason: str) -> None:
        """These stay where they are."""
        self.mention(elements)
        elements = np.unique(elements[elements >= 0])
        if len(elements):
            self._bags.append(elements)
            self._fixed.append((elements, reason))

    def rigid(self, elements: np.ndarray, reason: str) -> None:
        """None of these may be removed."""
        elements = np.unique(elements[elements >= 0])
        if len(elements):
            self._rigid.append((elements, reason))

    def mention(self, *elements: np.ndarray) -> None:
        """Note that something was said of these: :meth:`unmentioned` asks for the others."""
        self._mentioned += elements

    def unmentioned(self, elements: np.ndarray) -> np.ndarray:
        """Those of ``elements`` of which nothing was said since :meth:`forget_mentions`."""
        if not self._mentioned or not len(elements):
            return elements
        return np.setdiff1d(elements, np.concatenate([said.ravel() for said in self._mentioned]))

    def forget_mentions(self) -> None:
        """Begin anew with what was said."""
        self._mentioned = []

    def solve(self) -> Solution:
        """Runs and classes under all statements made so far."""
        cut = np.zeros(self.size + 1, dtype=bool)
        for elements in self._bags:
            _cut_ends(cut, elements, np.diff(elements) != 1)
        for pairs in self._links:
            broken = (np.diff(pairs, axis=0) != 1).any(axis=1)
            _cut_ends(cut, pairs[:, 0], broken)
            _cut_ends(cut, pairs[:, 1], broken)
        pairs = np.concatenate(self._links) if self._links else np.zeros((0, 2), dtype=np.int64)
        while True:  # a border in one run is a border in every run linked with it
            one, other = cut[pairs[:, 0]], cut[pairs[:, 1]]
            if np.array_equal(one, other):
                break
            cut[pairs[one, 1]] = True
            cut[pairs[other, 0]] = True
        starts = np.flatnonzero(cut[: self.size])
        piece = np.cumsum(cut[: self.size]) - 1
        lengths = np.diff(np.append(starts, self.size))
        root = _united(len(starts), np.unique(piece[pairs], axis=0))
        members: dict[int, list[int]] = {}
        for index, top in enumerate(root):
            members.setdefault(int(top), []).append(index)
        classes: list[ChannelClass] = []
        owner, run = np.zeros(self.size, dtype=np.int64), np.zeros(self.size, dtype=np.int64)
        piece_owner, piece_run = np.zeros(len(starts), dtype=np.int64), np.zeros(len(starts), dtype=np.int64)
        for pieces in members.values():
            assert len({int(lengths[index]) for index in pieces}) == 1, "linked runs have one length"
            piece_owner[pieces], piece_run[pieces] = len(classes), np.arange(len(pieces))
            classes.append(ChannelClass([int(starts[index]) for index in pieces], int(lengths[pieces[0]])))
        if self.size:
            owner, run = piece_owner[piece], piece_run[piece]
        for elements, reason in self._fixed:
            for index in np.unique(owner[elements]):
                classes[index].fixed = classes[index].fixed or reason
        for elements, reason in self._rigid:
            for index in np.unique(owner[elements]):
                classes[index].rigid = classes[index].rigid or reason
        return Solution(classes, owner, run, np.arange(self.size) - starts[piece] if self.size else owner)


def _cut_ends(cut: np.ndarray, elements: np.ndarray, broken: np.ndarray) -> None:
    """Borders at both ends of ``elements`` and wherever ``broken`` says that the next does not continue."""
    cut[elements[0]] = True
    cut[elements[-1] + 1] = True
    cut[elements[1:][broken]] = True
    cut[elements[:-1][broken] + 1] = True


def _united(count: int, pairs: np.ndarray) -> np.ndarray:
    """Union-find: for each of ``count`` items the smallest item that ``pairs`` connect it with."""
    parent = np.arange(count)

    def find(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = int(parent[item])
        return item

    for one, other in pairs:
        low, high = sorted((find(int(one)), find(int(other))))
        parent[high] = low
    return np.array([find(item) for item in range(count)], dtype=np.int64)

"""Labels: which element of the coupling each position of a tensor carries, and what is known of its value.

A label is a list of parts. A part is an array with one axis for each axis of the tensor, of full size where the
channels run and of size 1 elsewhere: ``[1, C, 1, 1]`` for the channels of an image, ``[1, 1, H, D]`` for the D channels
of each of H heads, which run along two axes together. Whatever reorders a tensor (transpose, reshape, slice,
concatenate) reorders its parts in the same way, so numpy does it. Axes without a part are plain: batch, pixels, the
model's inputs.

Beside its element a position says whether its value is constant over everything else (``known``), with which value in
eval and in training mode, and whether no gradient can change that (``frozen``): what :mod:`.shrink` needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lth_sparse.nn.channels.coupling import PLAIN, Coupling

__all__ = [
    "RECORD",
    "Label",
    "carried",
    "concatenated",
    "dims_of",
    "fix_all",
    "follow_reshape",
    "forgotten",
    "line",
    "records",
    "rows_of",
    "same",
    "united",
]

RECORD = np.dtype([("id", "i8"), ("known", "?"), ("value", "f8"), ("train", "f8"), ("frozen", "?")])


@dataclass
class Label:
    """Label of one tensor.

    Attributes:
        shape: the tensor's.
        parts: arrays of ``RECORD``, see the head of this file; no two of them run along the same axis.
        source: name of the parameter or buffer that the tensor is; its axes get elements when something asks for them.
    """

    shape: tuple[int, ...]
    parts: list[np.ndarray] = field(default_factory=list)
    source: str | None = None

    def __post_init__(self) -> None:
        self.shape = tuple(self.shape)
        self.parts = [part for part in self.parts if dims_of(part) and bool((part["id"] >= 0).any())]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def touching(self, dims: Iterable[int]) -> list[np.ndarray]:
        """Parts that run along any of ``dims`` (not negative)."""
        wanted = set(dims)
        return [part for part in self.parts if wanted & set(dims_of(part))]

    def without(self, dims: Iterable[int]) -> list[np.ndarray]:
        """Parts that run along none of ``dims``."""
        wanted = set(dims)
        return [part for part in self.parts if not wanted & set(dims_of(part))]


def records(elements: np.ndarray) -> np.ndarray:
    """Records of elements of which nothing is known."""
    made = np.zeros(elements.shape, dtype=RECORD)
    made["id"] = elements
    return made


def forgotten(parts: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The same channels with nothing known of their values."""
    return [records(part["id"]) for part in parts]


def dims_of(part: np.ndarray) -> tuple[int, ...]:
    """The axes along which a part runs."""
    return tuple(dim for dim, size in enumerate(part.shape) if size != 1)


def rows_of(part: np.ndarray, inner: Iterable[int]) -> np.ndarray:
    """The part as ``[places on all other axes, places on the inner axes]``."""
    last = [dim for dim in range(part.ndim) if dim in set(inner)]
    first = [dim for dim in range(part.ndim) if dim not in set(inner)]
    width = int(np.prod([part.shape[dim] for dim in last], dtype=np.int64))
    return part.transpose(*first, *last).reshape(-1, width)


def fix_all(coupling: Coupling, parts: Iterable[np.ndarray], reason: str) -> None:
    """Fix every element of ``parts``."""
    for part in parts:
        coupling.fix(part["id"].ravel(), reason)


def line(coupling: Coupling, label: Label, dim: int, reason: str) -> np.ndarray:
    """The records along one axis, ``[size]``, as an operation sees them that treats all other places alike.

    A part that runs along other axes too has its rows linked, since one channel there is one here. Known values survive
    where the rows agree.
    """
    found = label.touching([dim])
    if not found:
        plain = np.full(label.shape[dim], PLAIN, dtype=np.int64)
        return records(plain)
    rows = rows_of(found[0], [dim])
    return united(coupling, rows, reason)


def united(coupling: Coupling, rows: np.ndarray, reason: str) -> np.ndarray:
    """One row of records for several that must be the same channels."""
    first = rows[0].copy()
    for row in rows[1:]:
        coupling.link(first["id"], row["id"], reason)
        agree = same(first["value"], row["value"]) & same(first["train"], row["train"])
        first["known"] &= row["known"] & agree
        first["frozen"] &= row["frozen"]
        first["id"] = np.where(first["id"] < 0, row["id"], first["id"])
    return first


def carried(row: np.ndarray, dim: int, ndim: int) -> np.ndarray:
    """A part of ``ndim`` axes that runs along ``dim``."""
    return row.reshape([-1 if axis == dim else 1 for axis in range(ndim)])


def concatenated(labels: Sequence[Label], dim: int) -> list[np.ndarray] | None:
    """Parts of tensors joined along ``dim``; None when their parts along that axis run along others as well.

    Parts that do not run along ``dim`` are not handled here.
    """
    pieces = []
    for label in labels:
        found = label.touching([dim])
        if any(dims_of(part) != (dim,) for part in found):
            return None
        plain = records(np.full(label.shape[dim], PLAIN, dtype=np.int64))
        pieces.append(found[0].ravel() if found else plain)
    return [carried(np.concatenate(pieces), dim, labels[0].ndim)]


def follow_reshape(coupling: Coupling, label: Label, shape: tuple[int, ...]) -> Label:
    """The label of the tensor reshaped to ``shape``.

    Axes are matched in the blocks within which row-major order is kept. Splitting a channel axis borders its rows.
    Channels that run along an axis of size 1 are no part, so nothing is lost with it.
    """
    if 0 in label.shape:
        fix_all(coupling, label.parts, "it is in a tensor without elements, whose reshaping cannot be followed")
        return Label(shape)
    parts: list[np.ndarray] = []
    blocks = _blocks(label.shape, shape)
    for part in label.parts:
        touched = [(old, new) for old, new in blocks if set(dims_of(part)) & set(old)]
        # Full size within the blocks that the part touches, so that numpy's reshape is torch's.
        full = [label.shape[dim] if any(dim in old for old, _ in touched) else 1 for dim in range(part.ndim)]
        target = [shape[dim] if any(dim in new for _, new in touched) else 1 for dim in range(len(shape))]
        moved = np.broadcast_to(part, full).reshape(target)
        for dim in range(moved.ndim):
            moved = _without_repeats(moved, dim)
        for _, new in touched:
            inner = [dim for dim in new if moved.shape[dim] != 1]
            if len(inner) > 1:
                for row in rows_of(moved, inner[-1:]):
                    coupling.bag(row["id"])
        meeting = [other for other in parts if set(dims_of(other)) & set(dims_of(moved))]
        if meeting:
            fix_all(coupling, [moved, *meeting], "two kinds of channels are flattened into one axis")
            parts = [other for other in parts if all(other is not one for one in meeting)]
        else:
            parts.append(moved)
    return Label(shape, parts)


def _without_repeats(part: np.ndarray, dim: int) -> np.ndarray:
    """The part without an axis along which its elements stay the same."""
    first = part.take([0], axis=dim)
    if part.shape[dim] == 1 or not bool((part["id"] == first["id"]).all()):
        return part
    agree = same(part["value"], first["value"]) & same(part["train"], first["train"])
    first["known"] = (part["known"] & agree).all(axis=dim, keepdims=True)
    first["frozen"] = part["frozen"].all(axis=dim, keepdims=True)
    return first


def same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Equal, or both not a number."""
    result: np.ndarray = (one == other) | (np.isnan(one) & np.isnan(other))
    return result


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Axes of ``old`` and ``new`` in the smallest consecutive blocks of equal product."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(left), j + len(right)
        a, b = int(np.prod([old[d] for d in left])), int(np.prod([new[d] for d in right]))
        while a != b:
            if a < b:
                left.append(i)
                a, i = a * old[i], i + 1
            else:
                right.append(j)
                b, j = b * new[j], j + 1
        blocks.append((left, right))
    return blocks

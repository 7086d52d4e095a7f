"""Rules that many operations share: tensors combined element by element, axes that are summed over, axes that mix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lth_sparse.nn.channels.coupling import PLAIN, Coupling
from lth_sparse.nn.channels.labels import Label, dims_of, fix_all, forgotten, records, rows_of

__all__ = ["Combine", "bag_rows", "combined", "elementwise", "keep_only", "runs_of_rows", "symmetric"]

#: What becomes of two aligned arrays of records.
Combine = Callable[[np.ndarray, np.ndarray], np.ndarray]


def unknown(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Nothing is known of the combined values."""
    return records(one["id"])


def elementwise(
    coupling: Coupling, labels: Sequence[Label], shape: tuple[int, ...], what: str, combine: Combine = unknown
) -> Label:
    """Label of tensors of ``labels`` combined element by element, broadcast to ``shape``."""
    result = _padded(labels[0], len(shape))
    if len(labels) == 1:
        result.parts = forgotten(result.parts)
    for label in labels[1:]:
        other = _padded(label, len(shape))
        parts = combined(coupling, result, other, what, combine)
        result = Label(tuple(max(a, b) for a, b in zip(result.shape, other.shape, strict=True)), parts)
    if result.shape != tuple(shape):  # something that is no tensor label widened it
        fix_all(coupling, result.parts, f"{what} has a shape that cannot be followed")
        return Label(shape)
    return result


def _padded(label: Label, ndim: int) -> Label:
    missing = (1,) * (ndim - label.ndim)
    return Label(missing + label.shape, [part.reshape(missing + part.shape) for part in label.parts])


def combined(coupling: Coupling, one: Label, other: Label, what: str, combine: Combine = unknown) -> list[np.ndarray]:
    """Parts of two tensors of as many axes, combined by broadcasting."""
    parts: list[np.ndarray] = []
    left = list(other.parts)
    for part in one.parts:
        meeting = [item for item in left if set(dims_of(item)) & set(dims_of(part))]
        left = [item for item in left if all(item is not met for met in meeting)]
        if len(meeting) > 1 or (meeting and _several(one, meeting[0])):
            fix_all(coupling, [part, *meeting], f"{what} combines channels along several axes")
            continue
        parts += _pair(coupling, part, meeting[0] if meeting else None, one, other, what, combine)
    for part in left:
        if len(one.touching(dims_of(part))) == 0:
            parts += _pair(coupling, part, None, other, one, what, lambda a, b: combine(b, a))
    return parts


def _several(label: Label, part: np.ndarray) -> bool:
    return len(label.touching(dims_of(part))) > 1


def _pair(
    coupling: Coupling,
    part: np.ndarray,
    met: np.ndarray | None,
    own: Label,
    other: Label,
    what: str,
    combine: Combine,
) -> list[np.ndarray]:
    """The part of the result for ``part`` of ``own`` and what it meets in ``other``."""
    dims = dims_of(part)
    varying = [dim for dim in dims if other.shape[dim] != 1]
    if met is None:
        if not varying:
            return [_carrying(part["id"], combine(part, records(np.full_like(part["id"], PLAIN))))]
        if len(varying) == len(dims):
            reason = f"{what} combines it with a tensor whose places are fixed (an input, a constant, a position)"
            fix_all(coupling, [part], reason)
            return []
        bag_rows(coupling, part, [dim for dim in dims if dim not in varying], f"{what} treats its rows differently")
        return [records(part["id"])]
    there = dims_of(met)
    if set(there) == set(dims):
        link_rows(coupling, part, met, what)
        return [_carrying(np.where(part["id"] < 0, met["id"], part["id"]), combine(part, met))]
    small, large, label = (met, part, other) if set(there) < set(dims) else (part, met, own)
    inner, outer = dims_of(small), dims_of(large)
    nested = set(inner) < set(outer) and all(label.shape[dim] == 1 for dim in outer if dim not in inner)
    if nested and inner == outer[len(outer) - len(inner) :]:
        for row in rows_of(large, inner):
            coupling.link(row["id"], small.ravel()["id"], f"{what} meets a position that is fixed")
        return [records(large["id"])]
    fix_all(coupling, [small] if nested else [small, large], f"{what} combines it with channels along other axes")
    if not nested:
        return []
    rest = [dim for dim in outer if dim not in inner]
    bag_rows(coupling, large, rest, f"{what} treats its rows differently")
    return [records(large["id"])]


def _carrying(elements: np.ndarray, combined: np.ndarray) -> np.ndarray:
    """What was found out about values, with the elements that they belong to."""
    combined["id"] = elements
    return combined


def link_rows(coupling: Coupling, one: np.ndarray, other: np.ndarray, what: str) -> None:
    """Link two parts along the same axes, row by row so that each row stays one run."""
    inner = dims_of(one)[-1:]
    for row, match in zip(rows_of(one, inner), rows_of(other, inner), strict=True):
        coupling.link(row["id"], match["id"], f"{what} combines it with a position that is fixed")


def bag_rows(coupling: Coupling, part: np.ndarray, inner: Iterable[int], why_rigid: str) -> None:
    """Each row of ``part`` along ``inner`` is summed over for itself, or treated otherwise than the rest."""
    for row in rows_of(part, inner):
        coupling.bag(row["id"])
        coupling.rigid(row["id"], why_rigid)


def symmetric(coupling: Coupling, label: Label, dims: Iterable[int], what: str) -> list[np.ndarray]:
    """Parts left when ``dims`` are reduced by a function that does not care for their order: a sum, a maximum.

    Parts come back with their axes as they were; those that ran along ``dims`` are gone.
    """
    reduced = set(dims)
    for part in label.touching(reduced):
        bag_rows(coupling, part, reduced, f"{what} runs over its channels")
    return label.without(reduced)


def keep_only(coupling: Coupling, label: Label, dims: Iterable[int], what: str) -> list[np.ndarray]:
    """Fix the parts along ``dims``, where places matter (pixels under a kernel); return the others."""
    fix_all(coupling, label.touching(dims), f"{what} mixes them by their places")
    return label.without(dims)


def runs_of_rows(coupling: Coupling, row: np.ndarray, count: int, why_rigid: str) -> np.ndarray:
    """A row of channels in ``count`` equal groups, each a bag: ``[count, size]``."""
    groups = row.reshape(count, -1)
    for group in groups:
        coupling.bag(group["id"])
        coupling.rigid(group["id"], why_rigid)
    return groups

"""Rules for what moves axes and places about without computing: reshapes, transpositions, slices, joins."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lth_sparse.nn.channels import constants
from lth_sparse.nn.channels.coupling import PLAIN
from lth_sparse.nn.channels.functions import every
from lth_sparse.nn.channels.labels import (
    Label,
    carried,
    concatenated,
    dims_of,
    fix_all,
    follow_reshape,
    records,
    rows_of,
)
from lth_sparse.nn.channels.merge import elementwise
from lth_sparse.nn.channels.walk import Call, Rule, is_nothing, plain

__all__ = ["MOVES", "padded", "reshaped"]


def reshaped(call: Call, module: Any = None) -> Any:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze, repeat of nothing: one row-major order in other axes."""
    label, shape = call.label(0), tuple(call.value.shape)
    name = call.node.target if isinstance(call.node.target, str) else getattr(call.node.target, "__name__", "")
    if name == "view" and len(call.args) == 2 and isinstance(call.args[1], torch.dtype):
        call.fix_inputs(f"{call.what} reads its bytes as another dtype")
        return plain(call.value)
    result = follow_reshape(call.coupling, label, shape)
    if module is not None or name not in ("view", "reshape", "unflatten"):
        return result
    sizes = call.args[1] if len(call.args) == 2 and isinstance(call.args[1], (tuple, list)) else call.args[1:]
    kept = []
    for part in result.parts:
        given = [] if name == "unflatten" or len(sizes) != len(shape) else [sizes[dim] for dim in dims_of(part)]
        if len(given) > 1 and any(call.varies(size) for size in given):
            fix_all(call.coupling, [part], f"{call.what} divides its channels by a size of the sample")
            continue
        kept.append(part)
        if not given or any(size != -1 for size in given):
            call.coupling.rigid(part["id"].ravel(), f"{call.what} gives its number of channels")
    return Label(shape, kept)


def _as_other(call: Call) -> Any:
    """view_as, reshape_as, expand_as."""
    label = follow_reshape(call.coupling, call.label(0), tuple(call.value.shape))
    for part in label.parts:
        call.coupling.rigid(part["id"].ravel(), f"{call.what} gives its number of channels")
    return label


def _permuted(call: Call) -> Any:
    label, name = call.label(0), _name(call)
    axes = list(range(label.ndim))
    if name == "permute":
        given = call.kwargs.get("dims", call.args[1:])
        given = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
        axes = [dim % label.ndim for dim in given]
    elif name == "movedim":
        source, target = call.arg(1, "source"), call.arg(2, "destination")
        axes = _moved(label.ndim, source, target)
    elif name == "t":
        axes = axes[::-1]
    else:
        one, other = (call.arg(1, "dim0") % label.ndim, call.arg(2, "dim1") % label.ndim)
        axes[one], axes[other] = axes[other], axes[one]
    return Label(call.value.shape, [part.transpose(axes) for part in label.parts])


def _moved(ndim: int, source: Any, target: Any) -> list[int]:
    """The order of axes after movedim."""
    sources = [dim % ndim for dim in (source if isinstance(source, (tuple, list)) else [source])]
    targets = [dim % ndim for dim in (target if isinstance(target, (tuple, list)) else [target])]
    order = [dim for dim in range(ndim) if dim not in sources]
    for place, dim in sorted(zip(targets, sources, strict=True)):
        order.insert(place, dim)
    return order


def _expanded(call: Call) -> Any:
    """expand: axes of size 1 become longer, and axes are put in front."""
    label, ndim = call.label(0), len(call.value.shape)
    missing = (1,) * (ndim - label.ndim)
    return Label(call.value.shape, [part.reshape(missing + part.shape) for part in label.parts])


def _same(call: Call) -> Any:
    """The same tensor: contiguous, clone, another dtype or device."""
    return call.label(0)


def _joined(call: Call) -> Any:
    tensors = call.label_args[0] if call.label_args else call.label_kwargs["tensors"]
    labels = [call.resolved(label) for label in tensors]
    ndim = len(call.value.shape)
    dim = call.arg(1, "dim", 0) % ndim
    if _name(call) == "stack":
        labels = [_with_axis(label, dim) for label in labels]
    labels = [label for label in labels if label.ndim == ndim]  # torch lets empty vectors through
    # Along the joined axis the tensors lie behind each other; along all others they are aligned.
    flat = [Label((*label.shape[:dim], 1, *label.shape[dim + 1 :]), label.without([dim])) for label in labels]
    shape = tuple(size if axis != dim else 1 for axis, size in enumerate(call.value.shape))
    aligned = elementwise(call.coupling, flat, shape, call.what) if len(flat) > 1 else flat[0]
    joined = concatenated(labels, dim)
    if joined is None:
        call.fix_inputs(f"{call.what} joins channels that run along several axes")
        return plain(call.value)
    return Label(call.value.shape, [*(records(part["id"]) for part in aligned.parts), *joined])


def _with_axis(label: Label, dim: int) -> Label:
    shape = (*label.shape[:dim], 1, *label.shape[dim:])
    return Label(shape, [np.expand_dims(part, dim) for part in label.parts])


def _taken(call: Call) -> Any:
    """x[...], and items of tuples."""
    held, index = call.label_args[0], call.args[1]
    for given in call.inputs():  # what is not taken goes nowhere, and need not
        call.coupling.mention(*(part["id"] for part in given.parts))
    if isinstance(held, tuple):
        return held[index]
    if not isinstance(held, Label):
        return plain(call.value)
    label = call.label(0)
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(item is None or item is Ellipsis or isinstance(item, (int, slice)) for item in items):
        call.fix_inputs(f"{call.what} takes places from a list or a mask")
        return plain(call.value)
    taken = label.ndim - sum(isinstance(item, (int, slice)) for item in items)
    if Ellipsis not in items:
        items.append(Ellipsis)
    at = items.index(Ellipsis)
    items[at : at + 1] = [slice(None)] * taken
    fixed_places = any(call.varies(item) for item in items) or held.source is not None
    parts = []
    for part in label.parts:
        cut: list[Any] = []
        dim = 0
        for item in items:
            if item is None:
                cut.append(None)
                continue
            one = part.shape[dim] == 1
            cut.append((0 if isinstance(item, int) else slice(None)) if one else item)
            dim += 1
        moved = part[tuple(cut)]
        if moved.size != part.size:
            _cut(call, moved, part)
            if fixed_places:  # another sample may take another slice
                fix_all(call.coupling, [part], f"{call.what} takes a slice that may depend on the sample")
        parts.append(moved)
    return Label(call.value.shape, parts)


def _cut(call: Call, moved: np.ndarray, part: np.ndarray) -> None:
    """Borders around what a slice takes, which the model's code knows by number."""
    inner = dims_of(moved)[-1:]
    for row in rows_of(moved, inner) if inner else [moved.reshape(-1)]:
        call.coupling.bag(row["id"])
    call.coupling.rigid(part["id"].ravel(), f"{call.what} takes a slice of its channels")


def _pieces(call: Call) -> Any:
    """chunk, split, unbind: a tuple of slices."""
    label, name = call.label(0), _name(call)
    dim = call.arg(1, "dim", 0) if name == "unbind" else call.arg(2, "dim", 0)
    dim %= label.ndim
    sizes = call.arg(1, "split_size_or_sections" if "split_size_or_sections" in call.kwargs else "chunks")
    if any(call.varies(size) for size in (sizes if isinstance(sizes, (tuple, list)) else [sizes])):
        fix_all(call.coupling, label.touching([dim]), f"{call.what} takes slices that depend on the sample")
    made, start = [], 0
    for value in call.value:
        size = 1 if name == "unbind" else value.shape[dim]
        parts = []
        for part in label.parts:
            if part.shape[dim] == 1:
                moved = part
            else:
                moved = part.take(range(start, start + size), axis=dim)
                _cut(call, moved, part)
            parts.append(moved.squeeze(dim) if name == "unbind" else moved)
        made.append(Label(value.shape, parts))
        start += size
    return tuple(made)


def padded(call: Call, pad: Sequence[int], constant: bool) -> Label:
    """Plain places around an axis; channels along other axes stay as they are."""
    label = call.label(0)
    sizes = {label.ndim - 1 - i // 2: (pad[i], pad[i + 1]) for i in range(0, len(pad), 2)}
    around = {dim for dim, size in sizes.items() if not is_nothing(size)}
    parts = []
    for part in label.parts:
        (dim, *more), why = dims_of(part), f"{call.what} fills up its channels"
        if around.isdisjoint({dim, *more}):
            parts.append(constants.kept_if_zero(part) if around else part)
        elif more or not constant or min(sizes[dim]) < 0:
            fix_all(call.coupling, [part], why)
        else:
            row = np.pad(part.ravel()["id"], sizes[dim], constant_values=PLAIN)
            call.coupling.rigid(row, why)
            parts.append(carried(records(row), dim, label.ndim))
    return Label(call.value.shape, parts)


def _functional_pad(call: Call) -> Label:
    zeros = call.arg(2, "mode", "constant") == "constant" and not call.arg(3, "value")
    return padded(call, call.arg(1, "pad"), zeros)


def _name(call: Call) -> str:
    target = call.node.target
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def _named(names: Sequence[str], rule: Rule) -> dict[Any, Rule]:
    return dict.fromkeys(every(*names), rule)


def _cast(call: Call) -> Any:
    return call.label(0) if isinstance(call.value, Tensor) else plain(call.value)


MOVES: dict[Any, Rule] = {
    **_named(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), reshaped),
    **dict.fromkeys(("view_as", "reshape_as"), _as_other),
    **_named(("permute", "transpose", "swapaxes", "swapdims", "movedim", "t"), _permuted),
    **dict.fromkeys(("expand", "expand_as"), _expanded),
    **dict.fromkeys(("contiguous", "clone", "detach", "float", "double", "half", "bfloat16", "to", "type"), _cast),
    **dict.fromkeys((torch.clone, torch.detach), _same),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate, torch.stack), _joined),
    operator.getitem: _taken,
    **_named(("chunk", "split", "unbind"), _pieces),
    F.pad: _functional_pad,
}

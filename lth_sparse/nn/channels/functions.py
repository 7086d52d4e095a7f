"""Rules for functions, operators and methods of tensors; those that move axes about are in :mod:`.moves`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lth_sparse.nn.channels import constants
from lth_sparse.nn.channels.labels import Label, carried, dims_of, fix_all, forgotten, line, records
from lth_sparse.nn.channels.layers import FIXED_INPUT, normalised_over, pointwise, pooled
from lth_sparse.nn.channels.merge import Combine, bag_rows, combined, elementwise, keep_only, symmetric
from lth_sparse.nn.channels.merge import unknown as nothing_known
from lth_sparse.nn.channels.walk import Call, Rule, plain

__all__ = ["FUNCTIONS", "every"]


def every(*names: str) -> list[Any]:
    """All spellings of functions: as methods, in torch and in torch.nn.functional."""
    found: list[Any] = [*names, *(f"{name}_" for name in names)]
    for place in (torch, F):
        for name in (*names, *(f"{name}_" for name in names)):
            function = getattr(place, name, None)
            if callable(function) and function not in found:
                found.append(function)
    return found


def _pointwise(call: Call) -> Any:
    if len(call.inputs()) > 1:  # a bound given by another tensor
        return _combined(nothing_known)(call)
    name = call.node.target if isinstance(call.node.target, str) else getattr(call.node.target, "__name__", "")
    rest, named = call.args[1:], {key: value for key, value in call.kwargs.items() if key not in ("input", "inplace")}

    def function(x: Tensor) -> Tensor:
        target: Any = call.node.target
        if isinstance(target, str):
            return getattr(x.clone(), target)(*rest, **named)
        return target(x.clone(), *rest, **named)

    return pointwise(call, function, str(name).rstrip("_") in ("relu", "relu6"))


def _combined(combine: Combine) -> Rule:
    def rule(call: Call) -> Any:
        labels = call.inputs()
        label = elementwise(call.coupling, labels, tuple(call.value.shape), call.what, combine)
        tensors = sum(isinstance(value, Tensor) for value in (*call.args, *call.kwargs.values()))
        if len(labels) != tensors:  # a constant that the trace has no label for
            call.fix_inputs(f"{call.what} combines it with a constant tensor")
            return plain(call.value)
        return label

    return rule


def _arithmetic(operation: Callable[..., Any], combine: Combine) -> Rule:
    """Sums and products: of two tensors, or of one and a number, which is a function of each element."""

    def rule(call: Call) -> Any:
        numbers = [value for value in call.args if isinstance(value, (int, float)) and not isinstance(value, bool)]
        if len(call.args) == 2 and len(numbers) == 1 and not call.kwargs and len(call.inputs()) == 1:
            first = isinstance(call.args[0], Tensor)
            number = numbers[0]
            label = call.inputs()[0]

            def function(x: Tensor) -> Tensor:
                result: Tensor = operation(x, number) if first else operation(number, x)
                return result

            parts = [constants.applied(part.ravel(), function, False).reshape(part.shape) for part in label.parts]
            return Label(label.shape, parts)
        return _combined(nothing_known if call.kwargs or len(call.args) != 2 else combine)(call)

    return rule


def _functional_dropout(call: Call) -> Label:
    label = call.label(0)
    always = bool(call.arg(2, "training", True)) and not call.training
    return Label(label.shape, [constants.dropped(part, always or call.training) for part in label.parts])


def _functional_pool(axes: int, averages: bool) -> Rule:
    def rule(call: Call) -> Any:
        plainly = len(call.args) <= 2 and not set(call.kwargs) - {"kernel_size", "stride", "output_size"}
        return pooled(call, axes, averages and not plainly)

    return rule


def _interpolate(call: Call) -> Any:
    return pooled(call, call.label(0).ndim - 2, padded=True)


def _softmax(call: Call) -> Any:
    return normalised_over(call, call.label(0), [call.arg(1, "dim")])


def _normalize(call: Call) -> Any:
    return normalised_over(call, call.label(0), [call.arg(2, "dim", 1)])


def _reduced(call: Call) -> Any:
    """mean, sum and the like over given axes."""
    label, dims = call.label(0), call.arg(1, "dim", None)
    if not isinstance(call.value, Tensor) or len(call.inputs()) != 1:
        call.fix_inputs(f"{call.what} returns places, too")
        return plain(call.value)
    wanted = range(label.ndim) if dims is None or dims == () else (dims if isinstance(dims, (tuple, list)) else (dims,))
    gone = [dim % label.ndim for dim in wanted] if label.ndim else []
    parts = symmetric(call.coupling, label, gone, call.what)
    name = call.node.target if isinstance(call.node.target, str) else getattr(call.node.target, "__name__", "")
    parts = [part if name in ("mean", "amax", "amin") else records(part["id"]) for part in parts]
    if len(call.value.shape) != label.ndim:
        parts = [part.squeeze(tuple(gone)) for part in parts]
    return Label(call.value.shape, parts)


def _places(call: Call) -> Any:
    """argmax and the like: along an axis with channels the answer is a place."""
    label, dim = call.label(0), call.arg(1, "dim", None)
    dims = range(label.ndim) if dim is None else [dim % label.ndim]
    parts = keep_only(call.coupling, label, dims, call.what)
    value = call.value if isinstance(call.value, Tensor) else call.value[0]
    if len(value.shape) != label.ndim:
        parts = [part.squeeze(tuple(dims)) for part in parts] if dim is not None else []
    made = [Label(value.shape, forgotten(parts)) for _ in range(2)]
    return made[0] if isinstance(call.value, Tensor) else tuple(made)


def _linear(call: Call) -> Any:
    """F.linear in the model's own code."""
    label, weight, walk = call.label(0), call.label_args[1], call.walk
    if isinstance(weight, Label) and weight.source is not None:
        last = label.ndim - 1
        inputs = line(call.coupling, label, last, f"{call.what} {FIXED_INPUT}")
        outputs = walk.axis(weight.source, 0)
        walk.axis(weight.source, 1, inputs["id"])
        for elements in (inputs["id"], outputs):
            call.coupling.rigid(elements, f"{weight.source} is used by the model's own code")
        result: Any = Label(
            call.value.shape, [*forgotten(label.without([last])), carried(records(outputs), last, last + 1)]
        )
    else:
        matrix = call.label(1, "weight")
        result = _product(call, label, Label(matrix.shape[::-1], [part.T for part in matrix.parts]))
    if not isinstance(call.arg(2, "bias"), Tensor):
        return result
    return elementwise(call.coupling, [result, call.label(2, "bias")], result.shape, call.what)


def _matmul(call: Call) -> Any:
    return _product(call, call.label(0), call.label(1, "other" if "other" in call.kwargs else "mat2"))


def _product(call: Call, one: Label, other: Label) -> Any:
    """``one @ other``: channels along the summed axis are the same ones on both sides."""
    ndim = max(one.ndim, other.ndim)
    if min(one.ndim, other.ndim) < 2 or ndim != len(call.value.shape):
        call.fix_inputs(f"{call.what} multiplies vectors")
        return plain(call.value)
    left, right = _as_batch(one, ndim), _as_batch(other, ndim)
    # The summed axis comes last on both sides, so that parts along it lie over each other.
    swapped = Label((*right.shape[:-2], right.shape[-1], right.shape[-2]), [p.swapaxes(-1, -2) for p in right.parts])
    last = ndim - 1
    a, b = left.touching([last]), swapped.touching([last])
    kept_left, kept_right = left.without([last]), swapped.without([last])
    if a and b and not {ndim - 2} & {*dims_of(a[0]), *dims_of(b[0])}:
        # Rows of the two matrices are batches of their own here: only the batch axes count.
        batch_a = Label((*left.shape[:-2], 1, left.shape[-1]), a)
        batch_b = Label((*swapped.shape[:-2], 1, swapped.shape[-1]), b)
        for part in combined(call.coupling, batch_a, batch_b, call.what):
            bag_rows(call.coupling, part, [last], f"{call.what} sums over its channels")
    elif a or b:
        fix_all(call.coupling, [*a, *b], f"{call.what} {FIXED_INPUT}")
    # What is left on the right runs along the columns of the result.
    flipped = Label((*right.shape[:-2], 1, right.shape[-1]), [part.swapaxes(-1, -2) for part in kept_right])
    rows = Label((*left.shape[:-2], left.shape[-2], 1), kept_left)
    shape = tuple(max(x, y) for x, y in zip(rows.shape, flipped.shape, strict=True))
    parts = [records(part["id"]) for part in combined(call.coupling, rows, flipped, call.what)]
    return Label(shape, parts)


def _as_batch(label: Label, ndim: int) -> Label:
    missing = (1,) * (ndim - label.ndim)
    return Label(missing + label.shape, [part.reshape(missing + part.shape) for part in label.parts])


def _scaled_attention(call: Call) -> Any:
    """softmax(q k^T) v: q and k meet along their last axis, v's goes on; all within a head."""
    q, k, v = (call.label(place, name) for place, name in enumerate(("query", "key", "value")))
    if call.arg(7, "enable_gqa", False) or len({q.ndim, k.ndim, v.ndim}) != 1:
        call.fix_inputs(f"{call.what} shares keys between heads")
        return plain(call.value)
    ndim, what = q.ndim, call.what
    mask = call.arg(3, "attn_mask")
    if isinstance(mask, Tensor):
        fix_all(call.coupling, call.label(3, "attn_mask").parts, f"{what} takes it for a mask")
    clean = []
    for label in (q, k, v):
        parts = keep_only(call.coupling, label, [ndim - 2], what)
        fix_all(call.coupling, [part for part in parts if ndim - 1 not in dims_of(part)], f"{what} mixes its heads")
        parts = [part for part in parts if ndim - 1 in dims_of(part)]
        # The tokens are no axis of the result's channels.
        clean.append(Label((*label.shape[:-2], 1, label.shape[-1]), parts))
    last = ndim - 1
    for part in combined(call.coupling, clean[0], clean[1], what):
        bag_rows(call.coupling, part, [last], f"{what} sums over its channels")
    for part in clean[2].touching([last]):
        bag_rows(call.coupling, part, [last], f"{what} works head by head")
    return Label(call.value.shape, [records(part["id"]) for part in clean[2].touching([last])])


def _nothing(call: Call) -> Any:
    """What depends on shapes alone."""
    return plain(call.value)


def _attribute(call: Call) -> Any:
    """getattr(x, name) where it was not answered from the sample."""
    if call.args[1] in ("T", "mT"):
        label = call.label(0)
        if label.ndim == 2 or call.args[1] == "mT":
            return Label(call.value.shape, [part.swapaxes(-1, -2) for part in label.parts])
    if call.args[1] == "data":
        return call.label(0)
    call.fix_inputs(f"{call.what} {call.args[1]!r} is not followed")
    return plain(call.value)


_POINTWISE = (
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "softplus"),
    *("softsign", "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "tanhshrink", "softshrink", "hardshrink"),
    *("threshold", "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "square", "abs", "neg", "sin", "cos", "erf"),
    *("clamp", "clamp_min", "clamp_max", "reciprocal", "sign", "nan_to_num"),
)
_OTHERS = ("maximum", "minimum", "where", "lerp", "addcmul", "addcdiv", "pow", "eq", "ne", "lt", "le", "gt", "ge")

_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)

FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys([*every(*_POINTWISE), operator.neg, operator.abs], _pointwise),
    **dict.fromkeys([*every("add"), operator.add, operator.iadd], _arithmetic(operator.add, constants.added)),
    **dict.fromkeys(
        [*every("sub", "subtract"), operator.sub, operator.isub],
        _arithmetic(operator.sub, lambda one, other: constants.added(one, other, -1.0)),
    ),
    **dict.fromkeys(
        [*every("mul", "multiply"), operator.mul, operator.imul], _arithmetic(operator.mul, constants.multiplied)
    ),
    **dict.fromkeys(
        [*every("div", "divide"), operator.truediv, operator.itruediv], _arithmetic(operator.truediv, nothing_known)
    ),
    **dict.fromkeys([*every(*_OTHERS), operator.pow, *_COMPARISONS], _combined(nothing_known)),
    **dict.fromkeys(every("dropout", "dropout1d", "dropout2d", "dropout3d"), _functional_dropout),
    **dict.fromkeys(every("max_pool1d", "adaptive_max_pool1d", "adaptive_avg_pool1d"), _functional_pool(1, False)),
    **dict.fromkeys(every("max_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d"), _functional_pool(2, False)),
    **dict.fromkeys(every("avg_pool1d"), _functional_pool(1, True)),
    **dict.fromkeys(every("avg_pool2d"), _functional_pool(2, True)),
    F.interpolate: _interpolate,
    **dict.fromkeys([F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, "softmax", "log_softmax"], _softmax),
    F.normalize: _normalize,
    **dict.fromkeys(every("mean", "sum", "amax", "amin", "prod", "logsumexp"), _reduced),
    **dict.fromkeys(every("argmax", "argmin"), _places),
    F.linear: _linear,
    **dict.fromkeys([*every("matmul", "bmm"), operator.matmul], _matmul),
    F.scaled_dot_product_attention: _scaled_attention,
    **dict.fromkeys(["size", "dim", "numel", "stride", "is_floating_point", "is_contiguous"], _nothing),
    getattr: _attribute,
    math.sqrt: _nothing,
}

"""Rules for modules: what each does to the channels that reach it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from lth_sparse.nn.channels import constants
from lth_sparse.nn.channels.labels import Label, carried, dims_of, forgotten, line, records
from lth_sparse.nn.channels.merge import keep_only, runs_of_rows, symmetric
from lth_sparse.nn.channels.walk import Call, Reader, as_double, is_nothing, plain
from lth_sparse.nn.reparam import dense_weight

__all__ = ["MODULES", "POINTWISE_MODULES", "pointwise", "pooled"]

FIXED_INPUT = "reads the model's input (or another tensor whose places are fixed) there"
#: Modules that apply one function to every element.
POINTWISE_MODULES: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink),
    *(nn.Hardshrink, nn.Softshrink, nn.Threshold),
)


def pointwise(call: Call, function: Callable[[Tensor], Tensor], stops_gradient: bool) -> Label:
    """A function of each element alone."""
    label = call.label(0)
    return Label(label.shape, [_each(part, function, stops_gradient) for part in label.parts])


def _each(part: np.ndarray, function: Callable[[Tensor], Tensor], stops_gradient: bool) -> np.ndarray:
    return constants.applied(part.ravel(), function, stops_gradient).reshape(part.shape)


def _pointwise_module(call: Call, module: nn.Module) -> Label:
    return pointwise(call, lambda x: module(x.clone()), isinstance(module, (nn.ReLU, nn.ReLU6)))


def _live(call: Call, module: nn.Module, name: str) -> np.ndarray | None:
    """Where the weight is live, ``[out, in]``; None when nothing was asked about constants."""
    masks = call.walk.masks
    if masks is None:
        return None
    weight = dense_weight(module)
    mask = masks.get(name)
    if mask is None:
        return np.ones(weight.shape[:2], dtype=bool)
    live: np.ndarray = mask.cpu().reshape(*weight.shape[:2], -1).any(dim=2).numpy()
    return live


def _masked_weight(call: Call, module: nn.Module, name: str) -> np.ndarray:
    """The weight in float64, zeros where pruned, summed over the kernel: ``[out, in]``."""
    assert call.walk.masks is not None
    weight = as_double(dense_weight(module))
    mask = call.walk.masks.get(name)
    weight = weight if mask is None else weight * mask.cpu().numpy()
    return weight.reshape(*weight.shape[:2], -1).sum(axis=2)


def _outputs(call: Call, module: Any) -> np.ndarray:
    """Elements along a layer's output axis, weight and bias."""
    elements = call.walk.along(module, "weight", 0)
    if module.bias is not None:
        call.walk.along(module, "bias", 0, elements)
    return elements


def _mixing(call: Call, module: Any, dim: int, padded: bool) -> np.ndarray:
    """Records of the outputs of a layer that mixes all channels along ``dim`` of its input."""
    walk, label = call.walk, call.label(0)
    inputs = line(call.coupling, label, dim, f"{call.what} {FIXED_INPUT}")
    walk.along(module, "weight", 1, inputs["id"])
    elements = _outputs(call, module)
    name = walk.weight_name(module)
    _count_work(call, module)
    walk.readers.append(Reader(str(call.node.target), name, inputs, padded, call.training))
    live = _live(call, module, name)
    if live is None:
        return records(elements)
    return constants.mixed(elements, inputs, _masked_weight(call, module, name), live, module.bias, padded)


def _count_work(call: Call, module: Any) -> None:
    if not call.training:
        name, outputs = call.walk.weight_name(module), module.weight.shape[0]
        call.walk.work.append((name, call.value.numel() // max(outputs, 1)))


def _linear(call: Call, module: nn.Linear) -> Label:
    label, last = call.label(0), len(call.value.shape) - 1
    outputs = _mixing(call, module, last, padded=False)
    return Label(call.value.shape, [*forgotten(label.without([last])), carried(outputs, last, last + 1)])


def _is_padded(module: Any) -> bool:
    """Whether a convolution puts zeros around its input."""
    if module.padding_mode != "zeros" or module.padding == "valid":
        return False
    if module.padding == "same":
        return any(size > 1 for size in module.kernel_size)
    return any(size > 0 for size in module.padding)


def _conv(call: Call, module: Any) -> Label:
    label, ndim = call.label(0), len(call.value.shape)
    dim = ndim - 1 - len(module.kernel_size)
    spatial = range(dim + 1, ndim)
    others = [part for part in keep_only(call.coupling, label, spatial, call.what) if dim not in dims_of(part)]
    label = Label(label.shape, label.without(spatial))
    if module.groups == 1:
        outputs = _mixing(call, module, dim, _is_padded(module))
    else:
        inputs = line(call.coupling, label, dim, f"{call.what} {FIXED_INPUT}")
        _count_work(call, module)
        split = module.groups == module.in_channels
        outputs = _channelwise(call, module, inputs) if split else _in_groups(call, module, inputs)
    return Label(call.value.shape, [*forgotten(others), carried(outputs, dim, ndim)])


def _channelwise(call: Call, module: Any, inputs: np.ndarray) -> np.ndarray:
    """A depthwise convolution: each channel has filters of its own, which go where it goes."""
    walk = call.walk
    spread = np.repeat(inputs, module.out_channels // module.in_channels)
    walk.along(module, "weight", 0, spread["id"])
    if module.bias is not None:
        walk.along(module, "bias", 0, spread["id"])
    if len(spread) != len(inputs):
        call.coupling.rigid(inputs["id"], f"{call.what} has several filters for each channel")
    name = walk.weight_name(module)
    live = _live(call, module, name)
    if live is None:
        return records(spread["id"])
    # Each output reads one channel: the same arithmetic as a full layer, on the diagonal.
    weight = _masked_weight(call, module, name)[:, 0]
    rows = [
        constants.mixed(
            spread["id"][i : i + 1],
            spread[i : i + 1],
            weight[i : i + 1, None],
            live[i : i + 1],
            None if module.bias is None else module.bias[i : i + 1],
            _is_padded(module),
        )
        for i in range(len(spread))
    ]
    return np.concatenate(rows)


def _in_groups(call: Call, module: Any, inputs: np.ndarray) -> np.ndarray:
    """A grouped convolution: channels change places inside their group, on either side."""
    walk, why = call.walk, f"{call.what} has groups"
    elements = _outputs(call, module)
    runs_of_rows(call.coupling, records(elements), module.groups, why)
    size = module.out_channels // module.groups
    for index, group in enumerate(runs_of_rows(call.coupling, inputs, module.groups, why)):
        for name in walk.behind(module, "weight"):
            walk.axis(name, 1, group["id"], span=(index * size, (index + 1) * size))
    return records(elements)


def _batch_norm(call: Call, module: Any) -> Label:
    label, ndim = call.label(0), len(call.value.shape)
    others = [dim for dim in range(ndim) if dim != 1]
    keep_only(call.coupling, label, others, call.what)
    row = line(call.coupling, Label(label.shape, label.without(others)), 1, "")
    call.walk.sized.append((str(call.node.target), "num_features", row["id"]))
    for attribute in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, attribute) is not None:
            call.walk.along(module, attribute, 0, row["id"])
    count = len(row)
    scale = np.ones(count) if module.weight is None else as_double(module.weight)
    shift = np.zeros(count) if module.bias is None else as_double(module.bias)
    learns = module.weight is not None and (module.weight.requires_grad or module.bias.requires_grad)
    mean = None if module.running_mean is None else as_double(module.running_mean)
    deviation = None if mean is None else np.sqrt(as_double(module.running_var) + module.eps)
    return Label(label.shape, [carried(constants.normalised(row, scale, shift, mean, deviation, learns), 1, ndim)])


def _instance_norm(call: Call, module: Any) -> Label:
    label, ndim = call.label(0), len(call.value.shape)
    dim = ndim - 1 - (1 if isinstance(module, nn.InstanceNorm1d) else 2)
    spatial = range(dim + 1, ndim)
    others = [part for part in keep_only(call.coupling, label, spatial, call.what) if dim not in dims_of(part)]
    row = line(call.coupling, Label(label.shape, label.without(spatial)), dim, "")
    call.walk.sized.append((str(call.node.target), "num_features", row["id"]))
    for attribute in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, attribute) is not None:
            call.walk.along(module, attribute, 0, row["id"])
    return Label(label.shape, [*forgotten(others), carried(records(row["id"]), dim, ndim)])


def _layer_norm(call: Call, module: Any) -> Label:
    label, ndim = call.label(0), len(call.value.shape)
    normalised = range(ndim - len(module.normalized_shape), ndim)
    symmetric(call.coupling, label, normalised, call.what)
    if not any(name in module._parameters and module._parameters[name] is not None for name in ("weight", "bias")):
        return Label(label.shape, forgotten(label.parts))
    parts = forgotten(label.without(normalised))
    for part in label.touching(normalised):
        inside = [dim for dim in dims_of(part) if dim in normalised]
        if len(inside) > 1:
            call.fix_inputs(f"{call.what} has a weight for each place of several axes")
            return plain(call.value)
    for axis, dim in enumerate(normalised):
        row = line(call.coupling, label, dim, f"{call.what} {FIXED_INPUT}")
        for attribute in ("weight", "bias"):
            if module._parameters.get(attribute) is not None:
                call.walk.along(module, attribute, axis, row["id"])
        parts += forgotten(label.touching([dim]))
    return Label(label.shape, parts)


def _group_norm(call: Call, module: nn.GroupNorm) -> Label:
    label, ndim = call.label(0), len(call.value.shape)
    spatial = range(2, ndim)
    others = keep_only(call.coupling, label, spatial, call.what)
    row = line(call.coupling, Label(label.shape, others), 1, "")
    runs_of_rows(call.coupling, row, module.num_groups, f"{call.what} takes statistics over its channels")
    for attribute in ("weight", "bias"):
        if getattr(module, attribute) is not None:
            call.walk.along(module, attribute, 0, row["id"])
    kept = [part for part in others if 1 not in dims_of(part)]
    return Label(label.shape, [*forgotten(kept), carried(records(row["id"]), 1, ndim)])


def _prelu(call: Call, module: nn.PReLU) -> Label:
    label = call.label(0)
    if module.num_parameters == 1:
        return Label(label.shape, forgotten(label.parts))
    row = line(call.coupling, label, 1, f"{call.what} {FIXED_INPUT}")
    call.walk.along(module, "weight", 0, row["id"])
    return Label(label.shape, [*forgotten(label.without([1])), carried(records(row["id"]), 1, label.ndim)])


def _dropout(call: Call, module: nn.Module) -> Label:
    label = call.label(0)
    return Label(label.shape, [constants.dropped(part, always=False) for part in label.parts])


def _alpha_dropout(call: Call, module: nn.Module) -> Label:
    """It moves zeros too: in training nothing is a constant behind it."""
    label = call.label(0)
    parts = [part.copy() for part in label.parts]
    for part in parts:
        part["train"] = np.nan
    return Label(label.shape, parts)


def pooled(call: Call, axes: int, padded: bool) -> Any:
    """Pooling over the last ``axes``; ``padded``: with zeros that count."""
    if not isinstance(call.value, Tensor):
        call.fix_inputs(f"{call.what} returns places")
        return plain(call.value)
    label, ndim = call.label(0), len(call.value.shape)
    parts = keep_only(call.coupling, label, range(ndim - axes, ndim), call.what)
    return Label(call.value.shape, [constants.kept_if_zero(part) if padded else part for part in parts])


def _pool_module(axes: int) -> Callable[[Call, Any], Any]:
    def rule(call: Call, module: Any) -> Any:
        averages = isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d))
        uneven = averages and (not is_nothing(module.padding) or module.ceil_mode)
        return pooled(call, axes, uneven or getattr(module, "divisor_override", None) is not None)

    return rule


def _resized(call: Call, module: nn.Module) -> Any:
    return pooled(call, call.label(0).ndim - 2, padded=True)


def _embedding(call: Call, module: nn.Embedding) -> Label:
    ndim = len(call.value.shape)
    elements = call.walk.along(module, "weight", 1)
    return Label(call.value.shape, [carried(records(elements), ndim - 1, ndim)])


def _attention(call: Call, module: nn.MultiheadAttention) -> Any:
    """Streams go in along their last axis; queries and keys, and values, move within a head."""
    walk, coupling, embed = call.walk, call.coupling, module.embed_dim
    why = f"{call.what} has a fixed number of channels"
    streams = [call.label(place, name) for place, name in enumerate(("query", "key", "value"))]
    packed = module.in_proj_weight is not None
    inner = []
    for label, kind in zip(streams, "qkv", strict=True):
        last = label.ndim - 1
        row = line(coupling, label, last, f"{call.what} {FIXED_INPUT}")
        coupling.rigid(row["id"], why)
        keep_only(coupling, Label(label.shape, label.without([last])), range(last), call.what)
        weight = "in_proj_weight" if packed else f"{kind}_proj_weight"
        walk.along(module, weight, 1, row["id"])
        inner.append(walk.along(module, weight, 0)["qkv".index(kind) * embed * packed :][:embed])
    q, k, v = inner
    if module.in_proj_bias is not None:
        walk.along(module, "in_proj_bias", 0, np.concatenate(inner))
    for name, elements in (("bias_k", k), ("bias_v", v)):
        if module._parameters.get(name) is not None:
            walk.along(module, name, 2, elements)
    walk.along(module.out_proj, "weight", 1, v)
    for elements in inner:
        runs_of_rows(coupling, records(elements), module.num_heads, why)
    for one, other in zip(q.reshape(module.num_heads, -1), k.reshape(module.num_heads, -1), strict=True):
        coupling.link(one, other, why)
    outputs = _outputs(call, module.out_proj)
    coupling.rigid(outputs, why)
    shape = call.value[0].shape
    label = Label(shape, [carried(records(outputs), len(shape) - 1, len(shape))])
    return (label, plain(call.value[1]))


def _softmax(call: Call, module: Any) -> Label:
    label = call.label(0)
    dims = [1] if isinstance(module, nn.Softmax2d) else [module.dim]
    return normalised_over(call, label, dims)


def normalised_over(call: Call, label: Label, dims: Any) -> Label:
    """A function that normalises over ``dims`` and treats the places there alike (softmax, x / |x|)."""
    if dims is None or any(dim is None for dim in dims):
        call.fix_inputs(f"{call.what} leaves its axis to torch")
        return plain(call.value)
    symmetric(call.coupling, label, [dim % label.ndim for dim in dims], call.what)
    return Label(label.shape, forgotten(label.parts))


def _identity(call: Call, module: nn.Module) -> Label:
    return call.label(0)


MODULES: dict[type[nn.Module], Callable[[Call, Any], Any]] = {
    **dict.fromkeys(POINTWISE_MODULES, _pointwise_module),
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d), _instance_norm),
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    nn.GroupNorm: _group_norm,
    nn.PReLU: _prelu,
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _dropout),
    **dict.fromkeys((nn.AlphaDropout, nn.FeatureAlphaDropout), _alpha_dropout),
    **dict.fromkeys((nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d), _pool_module(1)),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d), _pool_module(2)),
    **dict.fromkeys((nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d), _pool_module(3)),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), _resized),
    nn.Embedding: _embedding,
    nn.MultiheadAttention: _attention,
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax, nn.Softmax2d), _softmax),
    nn.Identity: _identity,
}

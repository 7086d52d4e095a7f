"""``resize_``: give layers of a plain architecture the sizes that a state dict has, before it is loaded.

A network from which dead units were removed (:func:`lth_sparse.nn.shrink_`) has the modules of the original and fewer
channels in some of them. Its ticket remembers the shapes; with them the original architecture becomes the small one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import Parameter

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.nn.masks import check_model

__all__ = ["resize_"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def resize_(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> nn.Module:
    """Change the sizes of layers in place; what their new tensors hold is undefined until a state dict is loaded.

    Parameters become new objects, so build the optimiser afterwards. Tensors that have their shape already, and those
    that ``shapes`` does not name, stay as they are.

    Args:
        model: plain torch layers: Linear, convolutions without groups or depthwise, BatchNorm, LayerNorm.
        shapes: name of a parameter or buffer -> shape.

    Raises:
        ArgumentError: a tensor of another layer has another shape, or another number of dimensions. The model is then
            unchanged.
    """
    changed: list[tuple[nn.Module, str, tuple[int, ...]]] = []
    for prefix, module in check_model(model).named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            name = f"{prefix}.{key}" if prefix else key
            if tensor is None or name not in shapes or tuple(tensor.shape) == tuple(shapes[name]):
                continue
            size = tuple(shapes[name])
            if type(module) not in (nn.Linear, *CONVOLUTIONS, *NORMS, nn.LayerNorm) or len(size) != tensor.dim():
                got = f"{name} of a {type(module).__name__} with shape {list(tensor.shape)}"
                raise ArgumentError(expected("model", f"a layer that can have the shape {list(size)}", got))
            changed.append((module, key, size))
    for module, key, size in changed:
        _replace(module, key, size)
    for module in dict.fromkeys(module for module, _, _ in changed):
        _describe(module)
    return model


def _replace(module: nn.Module, key: str, size: tuple[int, ...]) -> None:
    parameter = module._parameters.get(key)
    if parameter is not None:
        fresh = torch.empty(size, dtype=parameter.dtype, device=parameter.device)
        module._parameters[key] = Parameter(fresh, requires_grad=parameter.requires_grad)
        return
    buffer = module._buffers[key]
    assert buffer is not None  # resize_ has seen it
    module._buffers[key] = torch.empty(size, dtype=buffer.dtype, device=buffer.device)


def _describe(module: nn.Module) -> None:
    """Bring the attributes that say sizes in line with the tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, CONVOLUTIONS):
        out, per_group = module.weight.shape[:2]
        if module.groups > 1 and per_group == 1 and module.groups == module.in_channels:
            module.groups = out * module.groups // module.out_channels  # depthwise: as many outputs for each channel
        module.out_channels, module.in_channels = out, per_group * module.groups
    elif isinstance(module, NORMS):
        known = next(t for t in (module.weight, module.running_mean, module.bias) if t is not None)
        module.num_features = known.numel()
    elif isinstance(module, nn.LayerNorm):
        known = next(t for t in (module.weight, module.bias) if t is not None)
        module.normalized_shape = tuple(known.shape)

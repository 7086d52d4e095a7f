"""A model that keeps its activations feature-major between its layers, so that sparse layers rearrange nothing.

Sparse layers and torch's elementwise functions keep the format by themselves (see :mod:`lth_sparse.ops.strides`). What
would drop it are torch's pooling, BatchNorm, Flatten and dense convolutions: they copy such a tensor first. The classes
here are those modules with one difference: of a feature-major input they take the view on which torch is fast, and
return a feature-major output. Everything else about them, state_dict and ``isinstance`` included, is unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.ops.strides import batch_major, feature_major, flattened, is_feature_major, kept_format

__all__ = ["feature_major_"]


class _Planes:
    """Modules that treat every (image, channel) plane alike: with both exchanged, the images are "channels last"."""

    def forward(self, input: Tensor) -> Any:
        if input.dim() != 4 or not is_feature_major(input) or getattr(self, "return_indices", False):
            return super().forward(input)  # type: ignore[misc]
        return super().forward(input.transpose(0, 1)).transpose(0, 1)  # type: ignore[misc]


class MaxPool2d(_Planes, nn.MaxPool2d): ...


class AvgPool2d(_Planes, nn.AvgPool2d): ...


class AdaptiveMaxPool2d(_Planes, nn.AdaptiveMaxPool2d): ...


class AdaptiveAvgPool2d(_Planes, nn.AdaptiveAvgPool2d): ...


class _Norm:
    """Statistics are per channel: all images and pixels of a channel are the pixels of one image."""

    def forward(self, input: Tensor) -> Any:
        if not is_feature_major(input):
            return super().forward(input)  # type: ignore[misc]
        self._check_input_dim(input)  # type: ignore[attr-defined]
        batch, channels, *pixels = input.shape
        height = pixels[:-1] if len(pixels) == 2 else []
        image = input.movedim(0, -1).reshape(1, channels, *height, -1)
        return super().forward(image).view(channels, *pixels, batch).movedim(-1, 0)  # type: ignore[misc]


class BatchNorm1d(_Norm, nn.BatchNorm1d): ...


class BatchNorm2d(_Norm, nn.BatchNorm2d): ...


class Flatten(nn.Flatten):
    """A feature-major tensor is flattened to a feature-major matrix without a copy."""

    def forward(self, input: Tensor) -> Tensor:
        whole = self.start_dim == 1 and self.end_dim in (-1, input.dim() - 1)
        return flattened(input) if whole and is_feature_major(input) else super().forward(input)


class _Dense:
    """torch's own convolution computes on contiguous images; its result goes on feature-major."""

    def forward(self, input: Tensor) -> Any:
        if not is_feature_major(input):
            return super().forward(input)  # type: ignore[misc]
        return kept_format(super().forward(batch_major(input)), input)  # type: ignore[misc]


class Conv1d(_Dense, nn.Conv1d): ...


class Conv2d(_Dense, nn.Conv2d): ...


#: torch's class -> the class here, and back.
_AWARE: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, cls.__name__): cls
    for cls in (
        MaxPool2d,
        AvgPool2d,
        AdaptiveMaxPool2d,
        AdaptiveAvgPool2d,
        BatchNorm1d,
        BatchNorm2d,
        Flatten,
        Conv1d,
        Conv2d,
    )
}
_PLAIN = {aware: plain for plain, aware in _AWARE.items()}

#: Attribute of a converted model: the handles of its two hooks.
_HOOKS = "_lth_sparse_feature_major"


def feature_major_(model: nn.Module, enabled: bool = True) -> nn.Module:
    """Let ``model`` keep its activations feature-major between its layers; in place, and ``model`` is returned.

    Tensors that the model is called with are rearranged once at its entrance and what it returns once at its exit, so
    nothing changes for the caller. It pays where several sparse layers follow each other, and the more the sparser they
    are: rearranging for each layer costs the same at any density. Results are equal up to rounding; dropout draws the
    same number of random numbers but deals them out in another order.

    Convert last: :func:`lth_sparse.sparsify_` takes plain torch modules. ``x.view(...)`` in a ``forward`` refuses
    feature-major images as it refuses channels_last ones; use ``nn.Flatten`` (no copy) or ``x.flatten(1)`` (a copy).

    Args:
        model: a model whose first dimension is the batch. Modules of torch's pooling, BatchNorm, Flatten and
            convolution classes become subclasses of theirs; modules of other classes are left alone.
        enabled: False takes everything back.

    Raises:
        ArgumentTypeError: ``model`` is no module. ArgumentError: ``enabled`` is no bool.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(expected("model", "a torch.nn.Module", type(model).__name__))
    if not isinstance(enabled, bool):
        raise ArgumentError(expected("enabled", "True or False", repr(enabled)))
    table = _AWARE if enabled else _PLAIN
    for module in model.modules():
        # A class of one's own may rely on anything; only torch's very own are known.
        module.__class__ = table.get(type(module), type(module))
    for handle in model.__dict__.pop(_HOOKS, ()):
        handle.remove()
    if enabled:
        hooks = (model.register_forward_pre_hook(_enter, with_kwargs=True), model.register_forward_hook(_leave))
        model.__dict__[_HOOKS] = hooks
    return model


def _enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(map(_to_feature_major, args)), {name: _to_feature_major(value) for name, value in kwargs.items()}


def _to_feature_major(value: Any) -> Any:
    is_batch = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
    return feature_major(value) if is_batch else value


def _leave(module: nn.Module, args: Any, output: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, batch_major, output)

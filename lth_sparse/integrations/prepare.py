"""What every export begins with: a copy of the model as it is to be deployed, and the shapes that stay free."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse._files import atomic_write
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.nn import SparseModule, densify_, feature_major_, fuse_activations_, sparse_modules
from lth_sparse.nn.sample import call_model

__all__ = ["arguments_of", "dynamic_shapes_of", "inference_copy", "quiet", "write_to"]


def inference_copy(model: nn.Module, *, sparse: bool = False, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of ``model`` in eval mode whose parameters need no gradient; ``model`` stays as it is.

    Args:
        sparse: keep sparse layers. False makes them torch's own, zeros where pruned. Either way fused activations and
            feature-major modules (:func:`lth_sparse.nn.fuse_activations_`, :func:`lth_sparse.nn.feature_major_`) are
            torch's own again: they act on marks and strides, which no exported graph has.
        dtype: for parameters and floating-point buffers; None keeps theirs.

    Raises:
        ArgumentTypeError, ArgumentError: no module; ``sparse`` and no sparse layer in it; no floating-point dtype; a
            sparse layer with hooks that would be lost.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(expected("model", "a torch.nn.Module", type(model).__name__))
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ArgumentError(expected("dtype", "None or a floating-point torch.dtype", str(dtype)))
    if sparse and not any(True for _ in sparse_modules(model)):
        raise ArgumentError(expected("model", "one with sparse layers, for a sparse export", "none"))
    copied = copy.deepcopy(model)
    fuse_activations_(copied, enabled=False)
    feature_major_(copied, enabled=False)
    if not sparse:
        copied = copied.to_dense() if isinstance(copied, SparseModule) else densify_(copied)
    return copied.to(dtype).eval().requires_grad_(False)


def arguments_of(model: nn.Module, sample_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``sample_input`` as positional and keyword arguments, tried on ``model``.

    Args:
        sample_input: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.

    Raises:
        ArgumentTypeError: something else. ArgumentError: the model does not take it.
    """
    if not isinstance(sample_input, (Tensor, tuple, Mapping)):
        what = "a tensor, a tuple of arguments or a mapping of keyword arguments"
        raise ArgumentTypeError(expected("sample_input", what, type(sample_input).__name__))
    try:
        with torch.no_grad():
            call_model(model, sample_input)
    except Exception as error:  # the user's forward may raise anything
        raise ArgumentError(f"sample_input: expected an input that the model takes, but it raised: {error}") from error
    if isinstance(sample_input, Mapping):
        return (), dict(sample_input)
    return (sample_input if isinstance(sample_input, tuple) else (sample_input,)), {}


def dynamic_shapes_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword ``dynamic_shapes`` of torch's exporters: the first dimension of every tensor is one free size, "batch".

    Raises:
        ArgumentError: a batch of one, which torch.export takes for a constant, or of none, or different ones.
    """
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
    sizes = sorted({tensor.shape[0] for tensor in tensors})
    if len(sizes) != 1 or sizes[0] < 2:
        got = ", ".join(map(str, sizes)) or "no tensor"
        raise ArgumentError(expected("sample_input", "tensors of one batch size, 2 or more, for a dynamic batch", got))
    batch = torch.export.Dim("batch")

    def free(value: Any) -> Any:
        return {0: batch} if isinstance(value, Tensor) and value.dim() else None

    named = {name: free(value) for name, value in kwargs.items()}
    return {"dynamic_shapes": named if kwargs else tuple(map(free, args))}


def write_to(path: Any, suffix: str, data: bytes) -> None:
    """Write the file, completely or not at all."""
    atomic_write(checked_path(path, suffix), data)


def checked_path(path: Any, suffix: str) -> Path:
    """``path`` if its name ends in ``suffix``.

    Raises:
        ArgumentError: it does not.
    """
    if Path(path).suffix != suffix:
        raise ArgumentError(expected("path", f"a file name that ends in {suffix}", str(path)))
    return Path(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporters say about their own insides: deprecations, and packages that are not needed."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", "# The axis name")  # two inputs share the batch, as they are to
            yield
    finally:
        log.setLevel(before)

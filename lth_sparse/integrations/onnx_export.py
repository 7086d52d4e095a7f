"""A model as an ONNX file for any runtime, zeros where pruned; or with pruned weights stored sparsely, for onnxruntime.

ONNX has sparse initializers (values beside int64 positions), and onnxruntime reads them, computing on dense weights. So
they make the file small, not inference fast: 12 bytes for each live float32 weight, less than dense below a third of
the weights. onnx's own reference evaluator does not read them.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import nn

from lth_sparse.errors import ArgumentError, BackendError, expected
from lth_sparse.integrations.prepare import (
    arguments_of,
    checked_path,
    dynamic_shapes_of,
    inference_copy,
    quiet,
    write_to,
)

__all__ = ["export_onnx"]

SUFFIX = ".onnx"
#: bfloat16 is missing from ONNX's convolutions up to opset 21 and from onnxruntime's kernels for CPUs.
DTYPES = (torch.float32, torch.float64, torch.float16)
#: A protobuf message, which such a file is, holds less.
LARGEST = 2**31 - 2**20


def export_onnx(
    model: nn.Module,
    sample_input: Any,
    path: str | os.PathLike[str],
    *,
    sparse: bool = False,
    dynamic_batch: bool = False,
    dtype: torch.dtype | None = None,
) -> Any:
    """Write the model as one ONNX file, completely or not at all, and return the ``onnx.ModelProto``.

    Inputs are called input, or input_0, input_1, ... (by their names in a mapping); outputs as torch names them.

    Args:
        model: dense or sparse; a dense copy in eval mode is exported.
        sample_input: a tensor, a tuple of arguments or a mapping of keyword arguments, in ``dtype`` where it is given.
        path: the .onnx file.
        sparse: store weights as sparse initializers where that takes fewer bytes, see the module's first lines.
        dynamic_batch: leave the first dimension of every tensor free; the sample then has a batch of 2 or more.
        dtype: float32 or float16 for parameters and buffers; None keeps the model's.

    Raises:
        ArgumentTypeError, ArgumentError: what the model does not take, a path that does not end in .onnx, bfloat16, a
            model of 2 GiB. BackendError: onnx or onnxscript is not installed. RunError: the file cannot be written.
    """
    checked_path(path, SUFFIX)
    onnx = _onnx()
    copied = inference_copy(model, dtype=dtype)
    tensors = [*copied.parameters(), *copied.buffers()]
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            what = "float32, float64 or float16, which ONNX runtimes know"
            raise ArgumentError(expected("dtype", what, f"{tensor.dtype}"))
    if sum(tensor.nbytes for tensor in tensors) >= LARGEST:
        raise ArgumentError(expected("model", "less than 2 GiB of weights, all that one ONNX file holds", "more"))
    args, kwargs = arguments_of(copied, sample_input)
    shapes = dynamic_shapes_of(args, kwargs) if dynamic_batch else {}
    names = list(kwargs) or (["input"] if len(args) == 1 else [f"input_{i}" for i in range(len(args))])
    with quiet(), torch.no_grad():
        options: dict[str, Any] = {"dynamo": True, "verbose": False, "input_names": names, **shapes}
        proto = torch.onnx.export(copied, args, kwargs=kwargs, **options).model_proto  # type: ignore[union-attr]
    for node in proto.graph.node:
        del node.metadata_props[:]  # torch's stack traces: paths of this machine
    onnx.checker.check_model(proto, full_check=True)
    if sparse:
        _store_sparsely(onnx, proto.graph)
        onnx.checker.check_model(proto)  # its inference of types takes no sparse initializer
    write_to(path, SUFFIX, proto.SerializeToString(deterministic=True))
    return proto


def _onnx() -> Any:
    try:
        importlib.import_module("onnxscript")
        return importlib.import_module("onnx")
    except ImportError as error:
        raise BackendError(
            f"ONNX export needs onnx and onnxscript: pip install 'lth_sparse[onnx]' ({error})"
        ) from error


def _store_sparsely(onnx: Any, graph: Any) -> None:
    """Move initializers to ``sparse_initializer``, values and flat int64 positions, where that takes fewer bytes."""
    dense = []
    for initializer in graph.initializer:
        array = onnx.numpy_helper.to_array(initializer)
        places = array.reshape(-1).nonzero()[0].astype("int64")
        if places.size * (array.itemsize + places.itemsize) >= array.nbytes:
            dense.append(initializer)
            continue
        values = onnx.numpy_helper.from_array(array.reshape(-1)[places], initializer.name)
        stored = onnx.helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(places), list(array.shape))
        graph.sparse_initializer.append(stored)
    del graph.initializer[:]
    graph.initializer.extend(dense)

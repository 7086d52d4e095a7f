"""A model as a program of ``torch.export`` in a .pt2 file: dense for torch alone, sparse for torch with this library.

A sparse program calls the operators ``lth_sparse::...`` on compact values and index tensors, so it runs on the kernels
that the model runs on. Whoever loads it imports this library first, which registers them:

    import lth_sparse
    program = torch.export.load("model.pt2").module()

Without the import torch refuses: its log says "We failed to resolve torch.ops.lth_sparse... Please import the custom op
to register it before deserializing". ``torch._inductor.aoti_compile_and_package`` compiles a sparse program too, and
the package runs in a Python process that has imported this library; in one that has not, it stops with "Could not find
schema for lth_sparse::...". The operators are registered from Python, so C++ without Python cannot have them either.
"""

from __future__ import annotations

import io
import os
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from lth_sparse.integrations.prepare import (
    arguments_of,
    checked_path,
    dynamic_shapes_of,
    inference_copy,
    quiet,
    write_to,
)

__all__ = ["export_program"]

SUFFIX = ".pt2"


def export_program(
    model: nn.Module,
    sample_input: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    sparse: bool = False,
    dynamic_batch: bool = False,
    dtype: torch.dtype | None = None,
) -> ExportedProgram:
    """The model as an exported program for inference on the device that it is on.

    Args:
        model: dense or sparse; a copy in eval mode is exported.
        sample_input: a tensor, a tuple of arguments or a mapping of keyword arguments, in ``dtype`` where it is given.
        path: a .pt2 file to write too, completely or not at all; None writes nothing.
        sparse: keep the sparse layers, see the module's first lines; False exports plain torch, zeros where pruned.
        dynamic_batch: leave the first dimension of every tensor free; the sample then has a batch of 2 or more.
        dtype: of parameters and buffers; None keeps the model's.

    Raises:
        ArgumentTypeError, ArgumentError: what the model does not take, a path that does not end in .pt2, ``sparse`` for
            a model without sparse layers. RunError: the file cannot be written.
    """
    if path is not None:
        checked_path(path, SUFFIX)
    copied = inference_copy(model, sparse=sparse, dtype=dtype)
    args, kwargs = arguments_of(copied, sample_input)
    shapes = dynamic_shapes_of(args, kwargs) if dynamic_batch else {}
    with quiet(), torch.no_grad():
        program = torch.export.export(copied, args, kwargs, **shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine, which would go into the file
        if path is not None:
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
            write_to(path, SUFFIX, buffer.getvalue())
    return program

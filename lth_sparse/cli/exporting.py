"""What `lth-sparse export` does: build the network, put the ticket into it, write the file, run it, and compare.

Dense networks are what is written unless --sparse is given. The comparison is with the dense network in torch in the
dtype of the file; where nothing is installed that runs an ONNX file, the output says that it was not run.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lth_sparse._files import atomic_write
from lth_sparse.cli.convert import WEIGHTS, dense_tensors
from lth_sparse.cli.plan import network, parse_shape
from lth_sparse.engine import Ticket
from lth_sparse.errors import ArgumentError, RunError, expected
from lth_sparse.integrations import export_onnx, export_program, inference_copy

__all__ = ["Options", "run"]

#: Formats and the ending of their files; the first two need a network to put the ticket into.
FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors", "ticket": ".safetensors"}
PROGRAMS = ("onnx", "pt2")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#: Largest difference of outputs, relative to the largest output: some hundred roundings of the dtype.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class Options:
    """The command line; None means that the option was not given."""

    ticket: Path
    output: Path
    to: str = "onnx"
    model: str | None = None
    shape: str | None = None
    dynamic_batch: bool = False
    sparse: bool = False
    weights: str = "trained"
    dtype: str | None = None


def run(options: Options) -> int:
    """Write, check and print; 0.

    Raises:
        ArgumentError: any of the user's mistakes. TicketError: the ticket is missing, damaged or foreign.
        RunError: the output cannot be written, or computes something else than torch does.
        BackendError: onnx is not installed.
    """
    _check(options)
    ticket = Ticket.load(options.ticket)
    dtype = None if options.dtype is None else DTYPES[options.dtype]
    dense = sum(tensor.nbytes for tensor in dense_tensors(ticket, options.weights).values())
    checked = _program(options, ticket, dtype) if options.to in PROGRAMS else _weights(options, ticket, dtype)
    size = options.output.stat().st_size
    print(f"weights kept   {ticket.masks.nnz:,} of {ticket.masks.numel:,} ({100.0 * ticket.density:.2f}%)")
    print(f"bytes          {size:,} on disk, {100.0 * size / max(dense, 1):.1f}% of {dense:,} of dense tensors")
    if checked:
        print(f"checked        {checked}")
    print(f"written        {options.output}: level {ticket.level}, {options.weights} weights")
    return 0


def _check(options: Options) -> None:
    """Refuse what no ticket could make valid, before anything is read."""
    if options.to not in FORMATS:
        raise ArgumentError(expected("--to", f"one of {', '.join(FORMATS)}", options.to))
    if options.weights not in WEIGHTS:
        raise ArgumentError(expected("--weights", f"one of {', '.join(WEIGHTS)}", options.weights))
    if options.dtype is not None and options.dtype not in DTYPES:
        raise ArgumentError(expected("--dtype", f"one of {', '.join(DTYPES)}", options.dtype))
    if options.output.suffix != FORMATS[options.to]:
        what = f"a file name that ends in {FORMATS[options.to]} with --to {options.to}"
        raise ArgumentError(expected("--output", what, str(options.output)))
    if options.ticket.resolve() == options.output.resolve():
        raise ArgumentError(expected("--output", "another file than the ticket itself", str(options.output)))
    if options.to in PROGRAMS:
        if options.model is None:
            raise ArgumentError(
                expected("--model", f"the network to put the ticket into, with --to {options.to}", "none")
            )
        return
    given = {"--model": options.model, "--input": options.shape}
    for name, value in {**given, "--dynamic-batch": options.dynamic_batch, "--sparse": options.sparse}.items():
        if value:
            raise ArgumentError(expected(name, f"--to {' or '.join(PROGRAMS)} beside it", f"--to {options.to}"))


def _weights(options: Options, ticket: Ticket, dtype: torch.dtype | None) -> str:
    if options.to == "ticket":
        ticket.save(options.output, weights=options.weights, dtype=dtype)
        return ""
    reduced = ticket.reduced(options.weights, dtype)
    tensors = {name: _as(tensor, dtype) for name, tensor in dense_tensors(reduced, options.weights).items()}
    atomic_write(options.output, save(tensors, metadata={"format": "pt"}))
    return ""


def _program(options: Options, ticket: Ticket, dtype: torch.dtype | None) -> str:
    """Write the model; who ran it, and how far its outputs are from torch's."""
    assert options.model is not None
    plain, size = network(options.model, None if options.shape is None else parse_shape(options.shape))
    if options.shape is None:
        size = (1, *size[1:])
    if options.dynamic_batch and size[0] < 2:
        size = (2, *size[1:])  # torch.export takes a batch of one for a constant
    parameter = next(plain.parameters())
    model = ticket.apply(plain, weights=options.weights, layout="auto" if options.sparse else "dense")
    dtype = dtype or parameter.dtype
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    write = export_onnx if options.to == "onnx" else export_program
    write(model, x, options.output, sparse=options.sparse, dynamic_batch=options.dynamic_batch, dtype=dtype)
    return _compared(options, inference_copy(model, dtype=dtype), x)


@torch.no_grad()
def _compared(options: Options, dense: nn.Module, x: Tensor) -> str:
    inputs = [x, x[:1]] if options.dynamic_batch else [x]
    if options.to == "pt2":
        who, program = "torch", torch.export.load(options.output).module()
        outputs = [program(part) for part in inputs]
    else:
        try:
            runtime = importlib.import_module("onnxruntime")
        except ImportError:
            return "not run: onnxruntime is not installed"
        who = f"onnxruntime {runtime.__version__}"
        session = runtime.InferenceSession(str(options.output), providers=["CPUExecutionProvider"])
        outputs = [torch.from_numpy(session.run(None, {"input": part.numpy()})[0]) for part in inputs]
    largest = 0.0
    for part, found in zip(inputs, outputs, strict=True):
        right = dense(part)
        largest = max(largest, float((found.double() - right.double()).abs().max()))
        if not largest <= TOLERANCE[x.dtype] * float(right.abs().max()):
            raise RunError(f"{options.output}: {who} computes other outputs than the ticket, by up to {largest:.2g}")
    shapes = " and ".join("x".join(map(str, part.shape)) for part in inputs)
    return f"by {who} on {shapes}: largest difference to dense torch {largest:.2g}"


def _as(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

"""Which code runs an operator: the C++ kernels, the Triton kernels, or the plain-torch reference.

``LTH_SPARSE_BACKEND=reference`` forces the reference everywhere, :func:`use_backend` does so for a ``with`` block, and
:func:`backend_of` says what a call would use, so that no fallback is ever silent.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Container, Iterator
from typing import Any

import torch

import lth_sparse._C as _C
from lth_sparse.errors import ArgumentError, BackendError, expected
from lth_sparse.ops.library import REFERENCES

__all__ = [
    "FORWARD_DTYPES",
    "HAS_TRITON",
    "KERNEL_DTYPES",
    "TRITON_DTYPES",
    "backend_of",
    "forced_reference",
    "kernel_or_reference",
    "use_backend",
]

BACKENDS = ("auto", "reference")
ENVIRONMENT = "LTH_SPARSE_BACKEND"

#: Codes by which the extension knows a dtype: those of the gradients, and those of the forward pass.
KERNEL_DTYPES: dict[torch.dtype, int] = {torch.float32: 0, torch.float64: 1}
FORWARD_DTYPES: dict[torch.dtype, int] = {**KERNEL_DTYPES, torch.bfloat16: 2}

#: Dtypes of the Triton kernels.
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _find_triton() -> bool:
    """Whether Triton can be imported. torch for CPUs comes without it, and nothing but the CUDA kernels needs it."""
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True


HAS_TRITON = _find_triton()

_current = os.environ.get(ENVIRONMENT, "auto")
if _current not in BACKENDS:
    raise BackendError(expected(f"environment variable {ENVIRONMENT}", "'auto' or 'reference'", repr(_current)))


def forced_reference() -> bool:
    """True when the user asked for the reference."""
    return _current == "reference"


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block run operators by ``"reference"`` or by the best kernel, ``"auto"``. Not thread-local."""
    global _current
    if name not in BACKENDS:
        raise ArgumentError(expected("name", "'auto' or 'reference'", repr(name)))
    before, _current = _current, name
    try:
        yield
    finally:
        _current = before


def backend_of(
    kind: str,
    device: torch.device | str,
    dtype: torch.dtype,
    dims: int = 2,
    gradients: bool = False,
    channels_last: bool = False,
) -> str:
    """What runs the forward pass of a layer of this layout kind: ``"cpu-avx512"``, ``"cpu-avx2"``, ``"cpu-neon"``,
    ``"cpu-scalar"``, ``"cuda-triton"``, ``"torch"`` or ``"reference"``.

    ``dims`` is the number of dimensions of the weight: 2 for a linear layer, 3 or 4 for a convolution.
    ``channels_last``: its blocks are those of channels_last memory, which the kernels for CPUs do not know. ``"torch"``
    is torch's own dense product, which the dense layout uses; ``"reference"`` skips no pruned weight. ``gradients``
    asks for what runs the backward pass: the same, but for bfloat16 on the CPU, whose kernels are for inference.
    """
    if kind == "dense":
        return "torch"
    place = torch.device(device).type
    dtypes = KERNEL_DTYPES if gradients else FORWARD_DTYPES
    known = kind == "csr" or (kind == "bsr" and not (channels_last and dims > 2))
    if known and place == "cpu" and dtype in dtypes and not forced_reference():
        return f"cpu-{_C.isa()}"
    triton = HAS_TRITON and kind == "bsr" and place == "cuda" and dtype in TRITON_DTYPES
    return "cuda-triton" if triton and not forced_reference() else "reference"


def kernel_or_reference(name: str, kernel: Callable[..., Any], dtypes: Container[torch.dtype]) -> Callable[..., Any]:
    """Implementation of operator ``name``: ``kernel`` where it has the dtype of the first argument, else the reference.

    The reference, too, while the user asks for it.
    """
    reference = REFERENCES[name]

    def run(first: torch.Tensor, *rest: Any) -> Any:
        return (kernel if first.dtype in dtypes and not forced_reference() else reference)(first, *rest)

    return run

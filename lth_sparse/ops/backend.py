"""Which code runs an operator: the C++ kernels, the Triton kernels, or the plain-torch reference.

``LTH_SPARSE_BACKEND=reference`` forces the reference everywhere, :func:`use_backend` does so for a ``with`` block, and
:func:`backend_of` says what a call would use, so that no fallback is ever silent.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import torch

import lth_sparse._C as _C
from lth_sparse.errors import ArgumentError, BackendError, expected
from lth_sparse.ops.library import REFERENCES
from lth_sparse.ops.sparse_cores import runs_semi

__all__ = [
    "FORWARD_DTYPES",
    "FUSED",
    "HAS_TRITON",
    "KERNEL_DTYPES",
    "TRITON_DTYPES",
    "backend_of",
    "forced_reference",
    "has_bitmap_kernel",
    "is_pointwise",
    "kernel_or_reference",
    "use_backend",
]

BACKENDS = ("auto", "reference")
ENVIRONMENT = "LTH_SPARSE_BACKEND"

#: Codes by which the extension knows a dtype: those of the gradients, and those of the forward pass.
KERNEL_DTYPES: dict[torch.dtype, int] = {torch.float32: 0, torch.float64: 1}
FORWARD_DTYPES: dict[torch.dtype, int] = {**KERNEL_DTYPES, torch.bfloat16: 2}

#: Activations that the kernels of the extension apply before they store a result.
FUSED = ("none", "relu")

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


def is_pointwise(shape: Sequence[int], groups: int = 1) -> bool:
    """Whether a weight of this shape is that of a 1x1 convolution without groups, a linear layer over pixels."""
    return groups == 1 and len(shape) > 2 and all(size == 1 for size in shape[2:])


#: Rows of x up to which the dense layout multiplies straight from its bitmap, where there is the kernel.
BITMAP_TOKENS = 16


def has_bitmap_kernel(device_type: str, dtype: torch.dtype, tokens: int) -> bool:
    """Whether a linear layer in the dense layout runs ``tokens`` rows, without gradients, from its bitmap."""
    fits = device_type == "cuda" and tokens <= BITMAP_TOKENS and dtype in TRITON_DTYPES
    return fits and HAS_TRITON and not forced_reference()


def backend_of(
    kind: str,
    device: torch.device | str,
    dtype: torch.dtype,
    dims: int = 2,
    gradients: bool = False,
    *,
    shape: Sequence[int] | None = None,
    pointwise: bool = False,
    tokens: int | None = None,
    channels_last: bool = False,
) -> str:
    """What runs the forward pass of a layer of this layout kind: ``"cpu-avx512"``, ``"cpu-avx2"``, ``"cpu-neon"``,
    ``"cpu-scalar"``, ``"cuda-triton"``, ``"cuda-semi-structured"``, ``"torch"`` or ``"reference"``.

    ``dims`` is the number of dimensions of the weight: 2 for a linear layer, 3 or 4 for a convolution, of which CSR has
    a kernel on CUDA only where it is ``pointwise`` (:func:`is_pointwise`); ``shape`` is the weight's, any by default,
    on which ``"2:4"`` depends. ``"torch"`` is torch's own dense product, which the dense layout uses; but on CUDA a
    linear layer that is given at most 16 rows, ``tokens``, and asked for no gradients reads its bitmap.
    ``channels_last``: its blocks are those of channels_last memory, which the kernels for CPUs do not know.
    ``"reference"`` skips no pruned weight. ``gradients`` asks for what runs the backward pass: the same, but for
    bfloat16 on the CPU, whose kernels are for inference, and for ``"2:4"``, whose gradients are dense products.
    """
    place = torch.device(device).type
    kind = "bsr" if kind == "reordered" else kind  # an index around the same kernels
    if kind == "dense":
        bitmap = dims == 2 and not gradients and tokens is not None and has_bitmap_kernel(place, dtype, tokens)
        return "cuda-triton" if bitmap else "torch"
    dtypes = KERNEL_DTYPES if gradients else FORWARD_DTYPES
    known = kind == "csr" or (kind == "bsr" and not (channels_last and dims > 2))
    if known and place == "cpu" and dtype in dtypes and not forced_reference():
        return f"cpu-{_C.isa()}"
    if kind == "2:4" and dims == 2 and runs_semi(torch.device(device), dtype, shape) and not forced_reference():
        return "torch" if gradients else "cuda-semi-structured"
    written = kind == "bsr" or (kind == "csr" and (dims == 2 or pointwise))
    triton = HAS_TRITON and written and place == "cuda" and dtype in TRITON_DTYPES
    return "cuda-triton" if triton and not forced_reference() else "reference"


def kernel_or_reference(name: str, kernel: Callable[..., Any], dtypes: Container[torch.dtype]) -> Callable[..., Any]:
    """Implementation of operator ``name``: ``kernel`` where it has the dtype of the first argument, else the reference.

    The reference, too, while the user asks for it.
    """
    reference = REFERENCES[name]

    def run(first: torch.Tensor, *rest: Any) -> Any:
        # not forced_reference(), without the call: every operator comes through here
        return (kernel if _current == "auto" and first.dtype in dtypes else reference)(first, *rest)

    return run

"""Which code runs an operator: the C++ kernels, or the plain-torch reference.

``LTH_SPARSE_BACKEND=reference`` forces the reference everywhere, :func:`use_backend` does so for a ``with`` block, and
:func:`backend_of` says what a call would use, so that no fallback is ever silent.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

import lth_sparse._C as _C
from lth_sparse.errors import ArgumentError, BackendError, expected

__all__ = ["KERNEL_DTYPES", "backend_of", "forced_reference", "use_backend"]

BACKENDS = ("auto", "reference")
ENVIRONMENT = "LTH_SPARSE_BACKEND"

#: Codes by which the extension knows a dtype.
KERNEL_DTYPES: dict[torch.dtype, int] = {torch.float32: 0, torch.float64: 1}

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


def backend_of(kind: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """What runs a layer of this layout kind: ``"cpu-avx512"``, ``"cpu-avx2"``, ``"cpu-scalar"``, ``"torch"`` or
    ``"reference"``.

    ``"torch"`` is torch's own dense product, which the dense layout uses; ``"reference"`` skips no pruned weight.
    """
    if kind == "dense":
        return "torch"
    if kind == "csr" and torch.device(device).type == "cpu" and dtype in KERNEL_DTYPES and not forced_reference():
        return f"cpu-{_C.isa()}"
    return "reference"

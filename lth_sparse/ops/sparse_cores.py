"""Where torch has a product with a 2:4 operand on the GPU's sparse tensor cores, and which.

CUTLASS (``torch._sparse_semi_structured_mm``) takes compact values and metadata as they are, so that nothing is
compressed in a training step; torch refuses it outside compute capability 8.x. cuSPARSELt (``torch._cslt_sparse_mm``)
runs on 9.x as well, and wants both in one buffer of its own order. On 8.x CUTLASS is preferred, as it needs no copy of
the values. ROCm's library has yet another order, and later capabilities have not been tried here: neither has a kernel.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import torch

from lth_sparse.formats.semi_structured import fits

__all__ = ["SEMI_DTYPES", "product_of", "runs_semi"]

#: float32 has sparse tensor cores for 1 of 2 weights only.
SEMI_DTYPES = (torch.float16, torch.bfloat16)

CUTLASS, CUSPARSELT = "cutlass", "cusparselt"


@functools.cache
def product_of(device_index: int) -> str | None:
    """``"cutlass"``, ``"cusparselt"`` or None for CUDA device ``device_index``."""
    if torch.version.hip is not None:
        return None
    major = torch.cuda.get_device_capability(device_index)[0]
    if major == 8 and sys.platform != "win32":  # torch builds its CUTLASS kernels for Linux only
        return CUTLASS
    return CUSPARSELT if major in (8, 9) and torch.backends.cusparselt.is_available() else None


def runs_semi(device: torch.device, dtype: torch.dtype, shape: Sequence[int] | None) -> bool:
    """Whether linear layers with a 2:4 weight ``[rows, cols]`` of ``shape`` (any, where None) run on sparse cores."""
    if device.type != "cuda" or dtype not in SEMI_DTYPES or not torch.cuda.is_available():
        return False
    if shape is not None and not fits(*shape):
        return False
    index = torch.cuda.current_device() if device.index is None else device.index
    return product_of(index) is not None

"""Operators: what a sparse layer computes, on every device, with gradients.

A call takes four hops: ``functional`` (checks) -> ``autograd`` (gradient) -> torch's dispatcher -> ``cpu`` (C++
kernels), ``cuda`` (Triton kernels) or the reference. ``plan`` decides which layout a layer should have.
"""

from __future__ import annotations

from lth_sparse.ops import cpu as _cpu  # noqa: F401  # registers the CPU kernels
from lth_sparse.ops import cpu_bsr as _cpu_bsr  # noqa: F401  # and those for BSR weights
from lth_sparse.ops import cuda_semi as _cuda_semi  # noqa: F401  # registers torch's own CUDA kernels for 2:4 weights
from lth_sparse.ops import functional
from lth_sparse.ops.backend import HAS_TRITON, backend_of, use_backend

if HAS_TRITON:
    from lth_sparse.ops import cuda as _cuda  # noqa: F401  # registers the CUDA kernels
    from lth_sparse.ops import cuda_conv as _cuda_conv  # noqa: F401  # and those of convolutions
    from lth_sparse.ops import cuda_csr as _cuda_csr  # noqa: F401  # and those for unstructured weights

__all__ = ["backend_of", "functional", "use_backend"]

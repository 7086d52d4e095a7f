"""Triton kernels for NVIDIA GPUs: imported as ``lth_sparse.kernels``, kept in ``kernels/`` in the repository's root.

This floor holds none yet. It is where the block-sparse (BSR) products for CUDA go, one file for each op with the stem
of its op: ``bsr_spmm.py`` beside ``tests/kernels/test_bsr_spmm.py``. Until they exist, CUDA tensors are served by the
plain torch reference of ``lth_sparse.ops``: right, but not faster than dense, and ``sparsify_`` reports the backend as
``reference``.

What belongs here: functions that launch a kernel on tensors that were checked above. What does not: formats, autograd,
modules. This package imports nothing from the rest of ``lth_sparse``, and only a machine with Triton can import its
kernels.
"""

from __future__ import annotations

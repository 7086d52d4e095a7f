"""Registration of the CUDA operators, which needs Triton but no device."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lth_sparse.ops import backend_of, use_backend
from lth_sparse.ops.backend import HAS_TRITON

NAMES = ("linear_bsr", "linear_bsr_backward", "conv2d_bsr", "conv2d_bsr_backward")


def registered(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"lth_sparse::{name}", "CUDA")


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_block_sparse_layers_have_kernels_on_cuda_and_nothing_else_does() -> None:
    assert all(registered(name) for name in NAMES)
    assert not any(registered(name) for name in ("linear_csr", "conv2d_csr", "conv2d_csr_backward", "expand"))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for dims in (2, 3, 4):
            assert backend_of("bsr", "cuda", dtype, dims) == "cuda-triton"
            assert backend_of("bsr", "cuda", dtype, dims, gradients=True) == "cuda-triton"
            assert backend_of("bsr", "cuda", dtype, dims, channels_last=True) == "cuda-triton"
    assert backend_of("bsr", "cuda", torch.float64) == "reference"
    assert backend_of("bsr", "cuda", torch.float64, dims=4) == "reference"
    assert backend_of("csr", "cuda", torch.float32) == "reference"
    assert backend_of("dense", "cuda", torch.float32) == "torch"
    with use_backend("reference"):
        assert backend_of("bsr", "cuda", torch.float32) == "reference"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_without_triton_everything_imports_and_cuda_has_the_reference() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"  # what an import finds where it is not installed
        "import torch, lth_sparse.ops as ops\n"
        "assert not torch._C._dispatch_has_kernel_for_dispatch_key('lth_sparse::linear_bsr', 'CUDA')\n"
        "print(ops.backend_of('bsr', 'cuda', torch.float32))"
    )
    result = run_python(code)
    assert result.stdout.strip() == "reference", result.stderr


def test_a_broken_triton_is_not_taken_for_a_missing_one(tmp_path) -> None:
    (tmp_path / "triton.py").write_text("raise RuntimeError('driver too old')")
    result = run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport lth_sparse.ops")
    assert result.returncode != 0
    assert "driver too old" in result.stderr

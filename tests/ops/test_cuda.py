"""What of the CUDA operators needs no device: their registration, and the shapes of the reference behind them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

from lth_sparse.formats import Dense, make_layout
from lth_sparse.ops import backend_of, functional, use_backend
from lth_sparse.ops.backend import HAS_TRITON, is_pointwise
from lth_sparse.ops.library import REFERENCES

KINDS = ("bsr", "csr")
NAMES = [f"{name}_{kind}{end}" for name in ("linear", "conv2d") for kind in KINDS for end in ("", "_backward")]


def registered(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"lth_sparse::{name}", "CUDA")


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_what_has_a_kernel_on_cuda_and_what_has_not() -> None:
    assert all(registered(name) for name in (*NAMES, "linear_bitmap"))
    assert not any(registered(name) for name in ("expand", "compress"))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for gradients in (False, True):
            for dims in (2, 3, 4):
                assert backend_of("bsr", "cuda", dtype, dims, gradients) == "cuda-triton"
                assert backend_of("bsr", "cuda", dtype, dims, gradients, channels_last=True) == "cuda-triton"
                assert backend_of("csr", "cuda", dtype, dims, gradients, pointwise=True) == "cuda-triton"
            assert backend_of("csr", "cuda", dtype, 2, gradients) == "cuda-triton"
            assert backend_of("csr", "cuda", dtype, 4, gradients) == "reference"
    for kind in KINDS:
        assert backend_of(kind, "cuda", torch.float64) == "reference"
        assert backend_of(kind, "cuda", torch.float64, 4, pointwise=True) == "reference"
    with use_backend("reference"):
        assert backend_of("bsr", "cuda", torch.float32) == "reference"
        assert backend_of("csr", "cuda", torch.float32) == "reference"


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_the_dense_layout_reads_its_bitmap_for_few_rows_without_gradients() -> None:
    assert backend_of("dense", "cuda", torch.float16, tokens=16) == "cuda-triton"
    assert backend_of("dense", "cuda", torch.float32) == "torch"
    assert backend_of("dense", "cuda", torch.float32, tokens=17) == "torch"
    assert backend_of("dense", "cuda", torch.float64, tokens=1) == "torch"
    assert backend_of("dense", "cuda", torch.float32, 4, tokens=1) == "torch"
    assert backend_of("dense", "cuda", torch.float32, gradients=True, tokens=1) == "torch"
    assert backend_of("dense", "cpu", torch.float32, tokens=1) == "torch"
    with use_backend("reference"):
        assert backend_of("dense", "cuda", torch.float32, tokens=1) == "torch"


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize(
    ("size", "density", "dtype", "grad", "reads"),
    [
        ((16, 32), 0.5, torch.float16, False, True),
        ((2, 3, 32), 0.5, torch.float32, False, True),
        ((32,), 0.5, torch.bfloat16, False, True),
        ((0, 32), 0.5, torch.float32, False, True),
        ((17, 32), 0.5, torch.float32, False, False),
        ((1, 32), 1.0, torch.float32, False, False),  # nothing pruned: the values are the weight
        ((1, 32), 0.5, torch.float64, False, False),
        ((1, 32), 0.5, torch.float32, True, False),
    ],
)
def test_when_a_layer_reads_its_bitmap(
    size: tuple[int, ...], density: float, dtype: torch.dtype, grad: bool, reads: bool
) -> None:
    """On fake tensors, which know of devices that are not there."""
    layout = Dense.from_mask(torch.rand(6, 32) < density)
    with FakeTensorMode():
        index = tuple(torch.empty(one.shape, dtype=one.dtype, device="cuda") for one in layout.index)
        layout = layout.with_index(index)
        values = torch.empty(layout.nnz, device="cuda", dtype=dtype, requires_grad=grad)
        x, bias = (torch.empty(shape, device="cuda", dtype=dtype) for shape in (size, (6,)))
        assert functional._decodes(x, values, layout, bias) == reads
        with torch.no_grad():
            assert functional._decodes(x, values, layout, bias) == (reads or grad)
            if reads:
                assert functional.linear(x, values, layout, bias, "relu").shape == (*size[:-1], 6)


@pytest.mark.parametrize(
    ("shape", "groups", "pointwise"),
    [
        ((6, 4, 1, 1), 1, True),
        ((6, 4, 1), 1, True),
        ((6, 4), 1, False),
        ((6, 4, 1, 1), 2, False),
        ((6, 4, 3, 1), 1, False),
    ],
)
def test_pointwise_convolutions_are_known_by_shape_and_groups(
    shape: tuple[int, ...], groups: int, pointwise: bool
) -> None:
    assert is_pointwise(shape, groups) == pointwise


@pytest.mark.parametrize("kind", ["csr", "bsr", "dense"])
def test_the_reference_on_a_device_waits_for_no_data(kind: str) -> None:
    """Tensors without data refuse whatever depends on it: a count, a comparison, a number for the host."""
    options = {"block": (4, 4), "cover": "zeros"} if kind == "bsr" else {}
    for shape, size, conv in (((9, 7), (3, 7), ()), ((6, 2, 3, 3), (3, 2, 7, 8), ([1, 1], [1, 1], [1, 1], 1))):
        layout = make_layout(kind, torch.rand(shape) < 0.5, **options)  # type: ignore[arg-type]
        index = [torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for tensor in layout.index]
        x, values, bias = (torch.empty(s, device="meta") for s in (size, layout.values_shape, shape[:1]))
        if kind == "dense":
            dense = REFERENCES["expand"](values, *index, layout.numel)
            assert dense.shape == (layout.numel,)
            assert REFERENCES["compress"](dense, *index, layout.nnz).shape == values.shape
            continue
        name = f"conv2d_{kind}" if conv else f"linear_{kind}"
        y = REFERENCES[name](x, values, bias, index, list(shape), *conv, "relu")
        found = REFERENCES[f"{name}_backward"](y, x, values, index, list(shape), *conv, [True, True, True], y)
        assert [tuple(tensor.shape) for tensor in found] == [size, layout.values_shape, shape[:1]]


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

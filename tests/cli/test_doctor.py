"""`lth-sparse doctor`: passes here, and fails where something essential is broken."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lth_sparse import __version__
from lth_sparse.cli import doctor, gpu
from lth_sparse.cli.doctor import Check, check_linear, check_linear_gpu
from lth_sparse.errors import BackendError
from lth_sparse.ops import functional
from lth_sparse.ops.plan_cache import PlanCache

Run = Callable[..., Any]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure a small layer for a moment."""
    small = functools.partial(check_linear, seconds=0.02, features=96, batch=17)
    monkeypatch.setattr(doctor, "check_linear", small)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("short")
def test_passes_and_shows_what_runs(run: Run) -> None:
    outcome = run("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    for words in (__version__, torch.__version__, "instruction set", "runnable here", "triton", "speed-up", "Caches"):
        assert words in outcome.out


@pytest.mark.usefixtures("short")
def test_the_planners_cache_has_a_place_and_a_size(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "planner        off" in run("doctor").out
    monkeypatch.setenv("LTH_SPARSE_CACHE", "1")
    monkeypatch.setenv("LTH_SPARSE_CACHE_DIR", str(tmp_path))
    assert f"{tmp_path} (not there yet)" in run("doctor").out
    PlanCache.of(torch.device("cpu")).put({"key": "x" * 2048})
    assert re.search(rf"planner +{re.escape(str(tmp_path))} \(1 file\(s\), 2\.\d KiB\)", run("doctor").out)


@pytest.mark.usefixtures("short")
def test_overrides_are_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert "OMP_WAIT_POLICY" in run("doctor").out


@pytest.mark.usefixtures("short")
def test_wrong_numbers_are_a_problem(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    right = functional.linear

    def wrong(x: Tensor, values: Tensor, layout: Any, bias: Tensor | None = None) -> Tensor:
        return 1.001 * right(x, values, layout, bias)

    monkeypatch.setattr(functional, "linear", wrong)
    outcome = run("doctor")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "a sparse layer is wrong" in outcome.err


def test_a_broken_kernel_is_a_problem_and_doctor_reaches_its_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Check:
        raise BackendError("LTH_SPARSE_ISA: expected one of scalar, avx2, got 'sse'")

    monkeypatch.setattr(doctor, "check_linear", broken)
    outcome = run("doctor")
    assert outcome.code == 1
    assert outcome.err == (
        "lth-sparse doctor: 1 problem(s): the sparse layer: LTH_SPARSE_ISA: expected one of scalar, avx2, got 'sse'\n"
    )


@pytest.mark.usefixtures("short")
def test_a_missing_package_is_a_problem(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", ("numpy", "no_such_package"))
    outcome = run("doctor")
    assert outcome.code == 1
    assert "no_such_package cannot be imported" in outcome.err


def test_the_check_notices_nan() -> None:
    exact = [torch.ones(3, dtype=torch.float64)]
    assert doctor._error([torch.full((3,), float("nan"))], exact) == float("inf")


def test_the_check_compares_output_and_all_gradients() -> None:
    check = check_linear(seconds=0.0, features=64, batch=5)
    assert check.right
    assert 0.0 < check.error < 1e-5


def test_numbers_that_are_not_finite_are_never_right() -> None:
    assert not Check("cpu-avx2", 1.0, 1.0, error=float("inf"), torch_error=float("inf")).right


def test_speedup_is_dense_over_sparse() -> None:
    assert Check("cpu-avx2", dense=3.0, sparse=1.5, error=0.0, torch_error=0.0).speedup == 2.0


def test_what_would_run_on_a_gpu_is_shown_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "backend_of", lambda kind, device, dtype, *_: f"{kind}-{device}")
    found = gpu.facts()
    assert found["CUDA"].startswith("none")
    assert found["bsr linear"] == "bsr-cuda: float32, float16, bfloat16, float64"
    assert set(found) >= {f"{kind} {op}" for kind in ("csr", "bsr") for op in ("linear", "conv2d")}
    assert not any("dense" in name for name in found)


def test_dtypes_are_grouped_by_what_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend_of(kind: str, device: str, dtype: torch.dtype, dims: int, gradients: bool) -> str:
        return "reference" if dtype is torch.float64 or (gradients and dtype is torch.float16) else "cuda-triton"

    monkeypatch.setattr(gpu, "backend_of", backend_of)
    assert gpu.kernels()["bsr conv2d"] == (
        "cuda-triton: float32, bfloat16; cuda-triton, its gradients reference: float16; reference: float64"
    )


def test_devices_are_named_with_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    about = SimpleNamespace(name="Test GPU", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    monkeypatch.setattr(gpu, "driver", lambda: "580.1")
    found = gpu.devices()
    assert found["cuda:0"] == "Test GPU, compute capability 9.0, 80 GiB, 132 multiprocessors"
    assert found["driver"].startswith("580.1; torch was built with CUDA")


def test_a_missing_nvidia_smi_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu.driver() == "unknown (no nvidia-smi)"


def test_the_check_for_gpus_is_right_wherever_it_runs() -> None:
    check = check_linear_gpu(seconds=0.0, features=512, batch=9, device="cpu")
    assert check.right
    assert 1e-4 < check.error < 1e-2  # bfloat16's


@pytest.mark.usefixtures("short")
def test_a_machine_with_a_gpu_gets_a_layer_measured_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "facts", lambda: {"cuda:0": "Test GPU"})
    monkeypatch.setattr(doctor, "check_linear_gpu", lambda: Check("cuda-triton", 3e-3, 1e-3, 1e-3, 1e-3))
    outcome = run("doctor")
    assert outcome.code == 0, outcome.err
    assert "10% of the blocks of 64x64, batch 4096, bfloat16" in outcome.out
    assert "3.00x" in outcome.out


@pytest.mark.usefixtures("short")
def test_a_gpu_that_fails_is_a_problem_and_doctor_reaches_its_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class CompilationError(Exception):
        pass

    def broken() -> Check:
        raise CompilationError("no such target")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "facts", lambda: {"cuda:0": "Test GPU"})
    monkeypatch.setattr(doctor, "check_linear_gpu", broken)
    outcome = run("doctor")
    assert (outcome.code, outcome.err) == (1, "lth-sparse doctor: 1 problem(s): the GPU: no such target\n")


@pytest.mark.gpu
def test_a_layer_on_the_gpu_is_right() -> None:
    check = check_linear_gpu(seconds=0.05)
    assert check.backend == "cuda-triton"
    assert check.right

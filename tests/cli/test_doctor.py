"""`lth-sparse doctor`: passes here, and fails where something essential is broken."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lth_sparse import __version__
from lth_sparse.cli import doctor
from lth_sparse.cli.doctor import Check, check_linear
from lth_sparse.errors import BackendError
from lth_sparse.ops import functional
from lth_sparse.ops.plan_cache import PlanCache

Run = Callable[..., Any]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure a small layer for a moment."""
    small = functools.partial(check_linear, seconds=0.02, features=96, batch=17)
    monkeypatch.setattr(doctor, "check_linear", small)


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


def test_speedup_is_dense_over_sparse() -> None:
    assert Check("cpu-avx2", dense=3.0, sparse=1.5, error=0.0, torch_error=0.0).speedup == 2.0

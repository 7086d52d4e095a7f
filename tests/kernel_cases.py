"""What the cases of every Triton kernel share, and how they are launched.

Triton decides when it decorates a kernel whether the kernel is interpreted, so the choice holds for a whole process:
with TRITON_INTERPRET=1 cases run on CPU tensors and without a GPU, else on the device. bfloat16 is for the device only:
the interpreter's product of it is wrong.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
from packaging.requirements import Requirement
from torch import Tensor
from torch.nn import functional as F
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

from lth_sparse.kernels.launch import Device as Launch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
#: Rounding of the result alone: sums are float32, and few are long here.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SMALL = Launch("test", 80, 101376, 4, hip=torch.version.hip is not None)
#: What every fused activation computes.
ACTIVATED: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.clone,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}

#: Where `make test` puts the oldest and the newest supported Triton: outside of what Python finds by itself.
OLDEST, NEWEST = Path(sys.prefix) / "oldest", Path(sys.prefix) / "newest"
#: Whether the newest stands in for the installed one: not in a process that was given a Triton of its own.
BY_NEWEST = NEWEST.is_dir() and Path(sysconfig.get_path("purelib")) in Path(triton.__file__).parents

#: Runs that tests of this session are going to ask for; all begin with the first, two at a time.
WANTED: list[tuple[Path, bool, Path | None]] = []
_POOL = ThreadPoolExecutor(max_workers=2)
#: Functions called by kernels, around which the interpreter has patched `triton.language` already.
_PATCHED: set[Any] = set()
_EXACT: dict[str, Callable[..., Any]] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def run_cases(cases: Path, interpreted: bool, packages: Path | None = None, skips: tuple[str, ...] = ()) -> None:
    """Run a file of cases in a process of its own; they all pass, and none is skipped but for reasons in ``skips``.

    ``packages``: a folder whose packages come before those that are installed; by default, interpreted cases take the
    newest Triton where it is at hand.
    """
    for run in WANTED:
        _begun(*run)
    result = _begun(cases, interpreted, packages).result()
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    skipped = [line for line in result.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all(any(reason in line for reason in skips) for line in skipped), skipped
    assert skipped or "skipped" not in result.stdout


@functools.cache
def _begun(cases: Path, interpreted: bool, packages: Path | None) -> Future[subprocess.CompletedProcess[str]]:
    return _POOL.submit(_run, cases, interpreted, packages)


def _run(cases: Path, interpreted: bool, packages: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1" if interpreted else "0"}
    packages = packages or (NEWEST if interpreted and BY_NEWEST else None)
    if packages is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(packages), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    root = Path(__file__).resolve().parents[1]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=1200)


def pinned(which: str) -> str:
    """The version of Triton in requirements-oldest.txt or requirements-newest.txt that is for this Python."""
    lines = (Path(__file__).resolve().parents[1] / f"requirements-{which}.txt").read_text().splitlines()
    asked = [Requirement(line) for line in lines if line and not line.startswith("#")]
    (version,) = [str(one.specifier) for one in asked if one.marker is None or one.marker.evaluate()]
    return version.removeprefix("==")


def version_in(packages: Path) -> str:
    """The version of the Triton that a process finds which is given a folder of packages."""
    command = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def check(found: Tensor, truth: Tensor) -> None:
    """Right to the rounding of its dtype, relative to the largest entry: sums cancel."""
    assert found.shape == truth.shape
    scale = float(truth.abs().max()) if truth.numel() else 1.0
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=TOLERANCE[found.dtype] * max(scale, 1.0))


def no_overflow(self: TritonSemantic, lhs: Any, rhs: Any, operation: Callable[..., Any]) -> None:
    """What the interpreter does only in debug mode: signed results must fit. Unsigned ones may wrap, as in C."""
    bits = lhs.type.scalar.int_bitwidth
    if bits < 64 and lhs.type.scalar.is_int_signed():
        exact = _EXACT[operation.__name__](lhs.handle.data.astype(np.int64), rhs.handle.data.astype(np.int64))
        limit = 2 ** (bits - 1)
        assert max(-exact.min(), exact.max() + 1) <= limit, f"int{bits} overflow in {operation.__name__}"


@pytest.fixture(autouse=True)
def patched_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter, mended where it is old and quicker everywhere.

    Before 3.7, interpreted `range` over a loaded bound makes an int of a one-element array, which numpy gave up. Every
    call of a function inside a kernel patches all of `triton.language` once more, and every sum of integers is computed
    again by kernel code to see whether it overflows, which is then not looked at: together three quarters of the time.
    A comparison of two numbers is made a block of the numbers' type, which 3.9 does not take for a mask.
    """
    if not INTERPRETED:
        return
    call = interpreter.InterpretedFunction.__call__

    def quick(self: Any, *args: Any, **names: Any) -> Any:
        if self.fn in _PATCHED:
            return self.rewrite()(*args, **names)
        _PATCHED.add(self.fn)
        return call(self, *args, **names)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", quick)
    monkeypatch.setattr(TritonSemantic, "binary_op_sanitize_overflow_impl", no_overflow)
    splat = interpreter.InterpreterBuilder.create_splat

    def spread(self: Any, kind: Any, value: Any) -> Any:
        block = splat(self, kind, value)
        block.data = block.data.astype(value.data.dtype, copy=False)
        return block

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_splat", spread)
    if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7):
        return
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)

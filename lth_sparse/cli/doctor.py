"""`lth-sparse doctor`: what is installed, what will run, and whether one sparse layer is right and fast here.

The measurement is a Linear 1024 x 1024 at 10% density, batch 128: one training step (forward and the gradients of
input, weight and bias) by the kernels and by dense torch, taking turns for about two seconds. It is right when its
error against masked dense float64 is at most twice torch's own float32 error on the same numbers.
"""

from __future__ import annotations

import getpass
import importlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.errors import LTHSparseError
from lth_sparse.formats import CSR
from lth_sparse.ops import backend_of, functional, plan_cache
from lth_sparse.report import facts

__all__ = ["Check", "check_linear", "run"]

FEATURES, BATCH, DENSITY, SECONDS = 1024, 128, 0.1, 2.0
REQUIRED = ("numpy", "safetensors", "rich", "typer", "jinja2", "matplotlib", "sklearn")


@dataclass(frozen=True)
class Check:
    """Outcome of the measurement.

    Attributes:
        backend: what ran the sparse layer.
        dense, sparse: median seconds of one training step.
        error, torch_error: largest relative root-mean-square error over output and gradients, ours and dense torch's.
    """

    backend: str
    dense: float
    sparse: float
    error: float
    torch_error: float

    @property
    def speedup(self) -> float:
        """Dense time over sparse time."""
        return self.dense / self.sparse

    @property
    def right(self) -> bool:
        """True when the numbers are as good as torch's own."""
        return self.error <= 2.0 * self.torch_error + 1e-6


def run() -> int:
    """Print everything; 0 when nothing essential is broken, else 1 with one line on stderr."""
    problems: list[str] = []
    _section("Versions", facts.versions())
    _section("Machine", facts.machine())
    _section("Kernels", _guarded("kernels", facts.kernels, problems))
    _section("Environment", facts.environment() or {"overrides": "none"})
    _section("GPU", _gpu())
    _section("Caches", caches())
    for name in REQUIRED:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken package raises while it is imported is what is reported
            problems.append(f"{name} cannot be imported ({type(error).__name__}: {error})")
    _section("One sparse layer", _guarded("the sparse layer", lambda: _measured(problems), problems))
    if problems:
        print(f"lth-sparse doctor: {len(problems)} problem(s): " + "; ".join(problems), file=sys.stderr)
        return 1
    print("Everything essential works.")
    return 0


def check_linear(seconds: float = SECONDS, features: int = FEATURES, batch: int = BATCH) -> Check:
    """Measure and verify a Linear features x features with `DENSITY` of its weights; see the top of this file."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(features, features, generator=generator) < DENSITY
    weight = torch.randn(features, features, generator=generator) * mask / (DENSITY * features) ** 0.5
    x, grad = (torch.randn(batch, features, generator=generator) for _ in range(2))
    bias = torch.randn(features, generator=generator)
    layout = CSR.from_mask(mask).narrow()
    sparse = _step(lambda x, w, b: functional.linear(x, w, layout, b), x, layout.gather(weight), bias, grad)
    dense = _step(F.linear, x, weight, bias, grad)
    exact = _step(F.linear, *(tensor.double() for tensor in (x, weight, bias, grad)))()
    exact[2] = layout.gather(exact[2])
    error = _error(sparse(), exact)
    reference = dense()
    reference[2] = layout.gather(reference[2])
    times = _take_turns({"sparse": sparse, "dense": dense}, seconds)
    backend = backend_of(layout.kind, x.device, x.dtype)
    return Check(backend, times["dense"], times["sparse"], error, _error(reference, exact))


def caches() -> dict[str, str]:
    """What fills up on disk: what planner and tuner timed, and what torch and Triton compile; where, and how large."""
    home = Path(os.environ.get("TRITON_HOME", Path.home()))
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "user"
    places = {
        "torch.compile": os.environ.get("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{user}"),
        "triton": os.environ.get("TRITON_CACHE_DIR", str(home / ".triton" / "cache")),
    }
    found = {name: place + ("" if Path(place).is_dir() else " (not there yet)") for name, place in places.items()}
    return {**{owner: _times(owner) for owner in plan_cache.PREFIXES}, **found}


def _times(owner: str) -> str:
    """Where the planner or the tuner remembers timings, and how many bytes they take."""
    if not plan_cache.cache_enabled():
        return "off (LTH_SPARSE_CACHE is set)"
    files, size = plan_cache.usage(owner)
    held = f"{files} file(s), {size / 1024:.1f} KiB" if files else "not there yet"
    return f"{plan_cache.cache_directory()} ({held})"


def _step(
    operator: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor
) -> Callable[[], list[Tensor]]:
    """One training step as a function: [output, gradients of x, weight, bias]."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias)]

    def call() -> list[Tensor]:
        output = operator(*leaves)
        return [output.detach(), *torch.autograd.grad(output, leaves, grad)]

    return call


def _take_turns(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of each call; turns spread the machine's other business over all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 3:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Largest |found - exact| / |exact| over the tensors, Euclidean norms; infinite for anything not finite."""
    worst = 0.0
    for ours, truth in zip(found, exact, strict=True):
        ratio = float((ours.double() - truth).norm() / truth.norm())
        worst = max(worst, ratio if ratio == ratio else float("inf"))
    return worst


def _measured(problems: list[str]) -> dict[str, str]:
    check = check_linear()
    if not check.right:
        problems.append(
            f"a sparse layer is wrong: relative error {check.error:.2e}, dense torch {check.torch_error:.2e}"
        )
    lines = {
        "layer": f"Linear {FEATURES}x{FEATURES}, {100 * DENSITY:.0f}% of the weights, batch {BATCH}, float32",
        "backend": check.backend,
        "dense torch": f"{1e3 * check.dense:.2f} ms for forward and backward",
        "lth_sparse": f"{1e3 * check.sparse:.2f} ms",
        "speed-up": f"{check.speedup:.2f}x",
        "relative error": f"{check.error:.1e} (dense torch's own: {check.torch_error:.1e})",
    }
    if check.backend == "reference":
        lines["note"] = "the reference ran, which skips nothing: LTH_SPARSE_BACKEND=reference is set"
    elif check.speedup < 1.0:
        lines["note"] = "slower than dense: other work on this machine, or more threads than cores?"
    return lines


def _gpu() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {"CUDA": "none (torch sees no device, or was built without CUDA)"}
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "CUDA": ", ".join(names) + f" (CUDA {torch.version.cuda})",
        "used": "not yet: layers on a GPU run the reference",
    }


def _guarded(what: str, facts_of: Callable[[], dict[str, str]], problems: list[str]) -> dict[str, str]:
    """The facts, or the failure as one: doctor must reach its end on a broken installation."""
    try:
        return facts_of()
    except (LTHSparseError, ImportError, RuntimeError, ValueError, OSError) as error:
        problems.append(f"{what}: {' '.join(str(error).split())}")
        return {"broken": " ".join(str(error).split())}


def _section(title: str, lines: Mapping[str, str]) -> None:
    print(title)
    width = max((len(name) for name in lines), default=0)
    for name, value in lines.items():
        print(f"  {name:<{width}}  {value}")
    sys.stdout.flush()

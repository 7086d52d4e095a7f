"""`lth-sparse doctor`: what is installed, what will run, and whether one sparse layer is right and fast here.

The measurement is a Linear 1024 x 1024 at 10% density, batch 128: one training step (forward and the gradients of
input, weight and bias) by the kernels and by dense torch, taking turns for about two seconds. It is right when its
error against masked dense float64 is at most twice torch's own float32 error on the same numbers. Where torch finds a
GPU, the same for a Linear 4096 x 4096 in bfloat16 at 10% of its blocks of 64 x 64, on 4096 tokens, there.
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

from lth_sparse.cli import gpu
from lth_sparse.formats import BSR, CSR, Layout
from lth_sparse.ops import backend_of, cost, functional, plan_cache
from lth_sparse.ops.backend import forced_reference
from lth_sparse.ops.measure import interleave
from lth_sparse.report import facts

__all__ = ["Check", "check_linear", "check_linear_gpu", "run"]

FEATURES, BATCH, DENSITY, SECONDS = 1024, 128, 0.1, 2.0
GPU_FEATURES, GPU_BATCH, GPU_BLOCK = 4096, 4096, (64, 64)
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
        return self.error <= 2.0 * self.torch_error + 1e-6 and self.error < float("inf")


def run() -> int:
    """Print everything; 0 when nothing essential is broken, else 1 with one line on stderr."""
    problems: list[str] = []
    _section("Versions", facts.versions())
    _section("Machine", facts.machine())
    _section("Kernels", _guarded("kernels", facts.kernels, problems))
    _section("Environment", facts.environment() or {"overrides": "none"})
    _section("GPU", _guarded("GPU", gpu.facts, problems))
    _section("Caches", caches())
    for name in REQUIRED:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken package raises while it is imported is what is reported
            problems.append(f"{name} cannot be imported ({type(error).__name__}: {error})")
    _section("One sparse layer", _guarded("the sparse layer", lambda: _measured(problems), problems))
    if torch.cuda.is_available():
        _section("One sparse layer on the GPU", _guarded("the GPU", lambda: _measured_gpu(problems), problems))
    if problems:
        print(f"lth-sparse doctor: {len(problems)} problem(s): " + "; ".join(problems), file=sys.stderr)
        return 1
    print("Everything essential works.")
    return 0


def check_linear(seconds: float = SECONDS, features: int = FEATURES, batch: int = BATCH) -> Check:
    """Measure and verify a Linear features x features with `DENSITY` of its weights; see the top of this file."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(features, features, generator=generator) < DENSITY
    layout = CSR.from_mask(mask).narrow()
    return _check(mask, layout, batch, torch.float32, lambda calls: _take_turns(calls, seconds), generator)


def check_linear_gpu(
    seconds: float = SECONDS, features: int = GPU_FEATURES, batch: int = GPU_BATCH, device: str = "cuda"
) -> Check:
    """The same in bfloat16 on a GPU, with whole blocks pruned; medians of events on the device."""
    generator = torch.Generator().manual_seed(0)
    mask = cost.random_mask((features, features), DENSITY, GPU_BLOCK, generator).to(device)
    layout = BSR.from_mask(mask, GPU_BLOCK)

    def timed(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        samples = interleave(calls, mask.device, budget=seconds / 2)
        return {name: statistics.median(values) for name, values in samples.items()}

    return _check(mask, layout, batch, torch.bfloat16, timed, generator)


def _check(
    mask: Tensor,
    layout: Layout,
    batch: int,
    dtype: torch.dtype,
    timed: Callable[[Mapping[str, Callable[[], object]]], dict[str, float]],
    generator: torch.Generator,
) -> Check:
    """Ours and dense torch on one layer: errors against float64, and times by ``timed``."""
    rows, features = mask.shape

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(mask.device, dtype)

    weight = random(rows, features) * mask / (DENSITY * features) ** 0.5
    x, grad, bias = random(batch, features), random(batch, rows), random(rows)
    sparse = _step(lambda x, w, b: functional.linear(x, w, layout, b), x, layout.gather(weight), bias, grad)
    dense = _step(F.linear, x, weight, bias, grad)
    exact = _step(F.linear, *(tensor.double() for tensor in (x, weight, bias, grad)))()
    exact[2] = layout.gather(exact[2])
    error = _error(sparse(), exact)
    reference = dense()
    reference[2] = layout.gather(reference[2])
    times = timed({"sparse": sparse, "dense": dense})
    backend = backend_of(layout.kind, x.device, x.dtype, gradients=True)
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
    layer = f"Linear {FEATURES}x{FEATURES}, {100 * DENSITY:.0f}% of the weights, batch {BATCH}, float32"
    return _outcome(
        check_linear(), layer, "a sparse layer", "other work on this machine, or more threads than cores?", problems
    )


def _measured_gpu(problems: list[str]) -> dict[str, str]:
    size, block = f"{GPU_FEATURES}x{GPU_FEATURES}", f"{GPU_BLOCK[0]}x{GPU_BLOCK[1]}"
    layer = f"Linear {size}, {100 * DENSITY:.0f}% of the blocks of {block}, batch {GPU_BATCH}, bfloat16"
    return _outcome(check_linear_gpu(), layer, "a sparse layer on the GPU", "other work on this GPU?", problems)


def _outcome(check: Check, layer: str, what: str, why_slow: str, problems: list[str]) -> dict[str, str]:
    if not check.right:
        problems.append(f"{what} is wrong: relative error {check.error:.2e}, dense torch {check.torch_error:.2e}")
    lines = {
        "layer": layer,
        "backend": check.backend,
        "dense torch": f"{1e3 * check.dense:.2f} ms for forward and backward",
        "lth_sparse": f"{1e3 * check.sparse:.2f} ms",
        "speed-up": f"{check.speedup:.2f}x",
        "relative error": f"{check.error:.1e} (dense torch's own: {check.torch_error:.1e})",
    }
    if check.backend == "reference":
        forced = "LTH_SPARSE_BACKEND=reference is set" if forced_reference() else "no kernel runs this layer here"
        lines["note"] = f"the reference ran, which skips nothing: {forced}"
    elif check.speedup < 1.0:
        lines["note"] = f"slower than dense: {why_slow}"
    return lines


def _guarded(what: str, facts_of: Callable[[], dict[str, str]], problems: list[str]) -> dict[str, str]:
    """The facts, or the failure as one: doctor must reach its end on a broken installation."""
    try:
        return facts_of()
    except Exception as error:  # drivers and compilers raise what they like
        problems.append(f"{what}: {' '.join(str(error).split())}")
        return {"broken": " ".join(str(error).split())}


def _section(title: str, lines: Mapping[str, str]) -> None:
    print(title)
    width = max((len(name) for name in lines), default=0)
    for name, value in lines.items():
        print(f"  {name:<{width}}  {value}")
    sys.stdout.flush()

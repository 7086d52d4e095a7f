"""Times the block-sparse linear kernels on one NVIDIA GPU: ``python -m benchmarks.gpu_linear --csv gpu.csv``.

The script has not run on a GPU yet: no figure comes from it so far. It checks every case against float64 first, then
times dense ``F.linear``, torch's own BSR product where it runs, and ours, as CUDA graphs between events, with the L2
cache flushed before each run; it stops after ``--minutes``. The forward pass counts ``x W^T + b``, a step all gradients
too. ``share`` is ours against the ceiling that the device's rates allow, which a probe of L2 measures first:

    T >= max(2 d M N K / F, (2 M K + 2 M N + 2 d K N) / B_dram, 2 d M N K (1 / b + 1 / 128) / B_L2),   bf16
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from lth_sparse._version import __version__
from lth_sparse.formats import BSR
from lth_sparse.ops import backend_of, functional
from lth_sparse.ops.schemas import OPS

from .timing import quantile

BLOCKS = (64, 32, 128, 16)
DENSITIES = (0.1, 0.2, 0.05, 0.5)
MODES = ("forward", "dx", "dw", "step")
ROUNDS, FLUSH_BYTES = 15, 256 * 2**20
READ_ROUNDS, READ_BLOCK = 200, 2048
DEVICE = "cuda"
COLUMNS = (
    *("case", "m", "n", "k", "block", "density", "dtype", "mode", "provider"),
    *("median_us", "p20_us", "p80_us", "rounds", "share_of_ceiling", "error", "dense_error"),
    *("device", "driver", "cuda", "torch", "triton", "lth_sparse", "python", "date"),
)


@dataclass(frozen=True)
class Shape:
    """One layer: M tokens, K features in, N out."""

    name: str
    m: int
    n: int
    k: int
    modes: tuple[str, ...] = MODES


SHAPES = (
    Shape("square", 4096, 4096, 4096),
    Shape("vit-l-fc1", 13008, 4096, 1024),
    Shape("vit-l-fc2", 13008, 1024, 4096),
    *(Shape(f"llama-up-m{m}", m, 14336, 4096, ("forward",)) for m in (1, 4, 16)),
    *(Shape(f"llama-down-m{m}", m, 4096, 14336, ("forward",)) for m in (1, 16)),
)


@dataclass(frozen=True)
class Rates:
    """What the device does, measured here: products a second, bytes a second from DRAM and from L2."""

    flops: float
    dram: float
    l2: float

    def least_seconds(self, shape: Shape, block: int, density: float, mode: str) -> float:
        """The ceiling's time; each gradient moves and multiplies as much as a forward pass."""
        m, n, k = shape.m, shape.n, shape.k
        work = 2 * density * m * n * k
        moved = 2 * (m * k + m * n + density * k * n)
        once = max(work / self.flops, moved / self.dram, work * (1 / block + 1 / min(128, max(m, 16))) / self.l2)
        return once * (3 if mode == "step" else 1)


@triton.jit
def read_kernel(source, sums, size, rounds, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Every program reads ``rounds`` blocks of ``source``, all programs together in order, around and around."""
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    i = tl.arange(0, BLOCK)
    for done in range(0, rounds):
        first = ((done * tl.num_programs(0) + tl.program_id(0)) * BLOCK) % size
        acc += tl.load(source + first + i, cache_modifier=".cg")
    tl.store(sums + tl.program_id(0), tl.sum(acc, axis=0))


class Clock:
    """Times a call: captured once in a CUDA graph, replayed with a cold L2, seconds of each round."""

    def __init__(self) -> None:
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=DEVICE)

    def __call__(self, call: Callable[[], object], rounds: int = ROUNDS, *, cold: bool = True) -> list[float]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles and chooses algorithms outside of the capture
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
        for start, end in pairs:
            if cold:
                self.flush.zero_()
            start.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in pairs]


def probe(clock: Clock) -> Rates:
    """The first hour's probes: a dense product for the arithmetic, a copy for DRAM, reading 16 MiB often for L2.

    The L2 figure is of reads into registers, past L1. Copies into shared memory may do better; the ceiling would then
    lie higher and ``share`` lower than printed, where L2 is the limit.
    """
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    flops = 2 * 8192**3 / quantile(clock(lambda: a @ a), 0.5)
    source, target = torch.empty(2, 2**30, dtype=torch.int8, device=DEVICE).unbind()
    dram = 2 * 2**30 / quantile(clock(lambda: target.copy_(source)), 0.5)
    small = torch.zeros(2**22, device=DEVICE)  # 16 MiB
    programs = 4 * torch.cuda.get_device_properties(0).multi_processor_count
    sums = torch.empty(programs, device=DEVICE)
    read = 4 * READ_BLOCK * READ_ROUNDS * programs
    call = lambda: read_kernel[(programs,)](small, sums, small.numel(), READ_ROUNDS, BLOCK=READ_BLOCK)  # noqa: E731
    return Rates(flops, dram, l2=read / quantile(clock(call, cold=False), 0.5))


class Layer:
    """One case: dense and sparse leaves of one weight, and the calls to time."""

    def __init__(self, shape: Shape, block: int, density: float):
        half: Any = {"device": DEVICE, "dtype": torch.bfloat16}
        rows, cols = -(-shape.n // block), -(-shape.k // block)
        kept = torch.zeros(rows * cols, dtype=torch.bool)
        kept[torch.randperm(rows * cols)[: max(1, round(density * rows * cols))]] = True
        mask = kept.view(rows, cols).repeat_interleave(block, 0).repeat_interleave(block, 1)[: shape.n, : shape.k]
        self.mask = mask.to(DEVICE)
        self.layout = BSR.from_mask(self.mask, (block, block))
        self.dense = (torch.randn(shape.n, shape.k, **half) * self.mask / shape.k**0.5).requires_grad_()
        self.values = self.layout.gather(self.dense.detach()).requires_grad_()
        self.x = torch.randn(shape.m, shape.k, **half).requires_grad_()
        self.bias = torch.randn(shape.n, **half).requires_grad_()
        self.upstream = torch.randn(shape.m, shape.n, **half)

    def output(self, provider: str) -> Tensor:
        if provider == "dense":
            return F.linear(self.x, self.dense, self.bias)
        return functional.linear(self.x, self.values, self.layout, self.bias)

    def leaves(self, provider: str) -> list[Tensor]:
        return [self.x, self.dense if provider == "dense" else self.values, self.bias]

    def call(self, provider: str, mode: str) -> Callable[[], object]:
        """What is timed. ``dx`` and ``dw`` are the products that autograd would call, without autograd.

        A backward runs on the stream of its forward, so one of a graph that was built before could not be captured.
        """
        if provider == "torch BSR":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls its sparse tensors a prototype
                weight = self.dense.detach().to_sparse_bsr(self.layout.block)
            x, bias = self.x.detach(), self.bias.detach()
            return lambda: F.linear(x, weight, bias)
        if mode == "forward":
            return torch.no_grad()(lambda: self.output(provider))
        if mode == "step":
            return lambda: torch.autograd.grad(self.output(provider), self.leaves(provider), self.upstream)
        x, up = self.x.detach(), self.upstream
        if provider == "dense":
            weight = self.dense.detach()
            return (lambda: up @ weight) if mode == "dx" else (lambda: up.t() @ x)
        values, index, wanted = self.values.detach(), list(self.layout.index), [mode == "dx", mode == "dw", False]
        return lambda: OPS["bsr"].linear_backward(up, x, values, index, list(self.layout.shape), wanted)

    def errors(self) -> tuple[float, float]:
        """(ours, dense torch's): the largest deviation of output and gradients from float64, over the largest entry."""
        found = {}
        for provider in ("ours", "dense"):
            y = self.output(provider)
            dx, dw, db = torch.autograd.grad(y, self.leaves(provider), self.upstream)
            found[provider] = [y.detach(), dx, dw if provider == "ours" else self.layout.gather(dw), db]
        x, w, up = (tensor.detach().double() for tensor in (self.x, self.dense, self.upstream))
        truth = [x @ w.t() + self.bias.detach().double(), up @ w, self.layout.gather(up.t() @ x), up.sum(0)]
        errors = {
            provider: max(
                float((one.double() - right).abs().max() / right.abs().max())
                for one, right in zip(tensors, truth, strict=True)
            )
            for provider, tensors in found.items()
        }
        return errors["ours"], errors["dense"]


def about() -> dict[str, str]:
    """Device and versions, without which no figure means anything."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    return {
        "device": torch.cuda.get_device_name(),
        "driver": driver,
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "lth_sparse": __version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def cases() -> Iterator[tuple[Shape, int, float]]:
    """Every block and density of a shape before the next density, so that a run that ends early has a bit of each."""
    for density in DENSITIES:
        for block in BLOCKS:
            for shape in SHAPES:
                yield shape, block, density


def measure(
    shape: Shape, block: int, density: float, clock: Clock, rates: Rates
) -> Iterator[dict[str, str | float | int]]:
    """The rows of one case; raises if ours is further from float64 than twice dense torch."""
    layer = Layer(shape, block, density)
    ours_error, dense_error = layer.errors()
    if not ours_error <= 2 * dense_error + 1e-6:
        raise SystemExit(f"{shape} block {block} density {density}: error {ours_error}, dense torch {dense_error}")
    for mode in shape.modes:
        for provider in ("dense", "ours", *(("torch BSR",) if mode == "forward" else ())):
            try:
                samples = clock(layer.call(provider, mode))
            except (RuntimeError, NotImplementedError) as error:
                if provider != "torch BSR":
                    raise
                print(f"  torch BSR does not run: {str(error).splitlines()[0]}", file=sys.stderr)
                torch.cuda.synchronize()
                continue
            least = rates.least_seconds(shape, block, density, mode)
            yield {
                "case": shape.name, "m": shape.m, "n": shape.n, "k": shape.k, "block": block, "density": density,
                "dtype": "bfloat16", "mode": mode, "provider": provider,
                "median_us": 1e6 * quantile(samples, 0.5), "p20_us": 1e6 * quantile(samples, 0.2),
                "p80_us": 1e6 * quantile(samples, 0.8), "rounds": len(samples),
                "share_of_ceiling": least / quantile(samples, 0.5) if provider == "ours" else "",
                "error": ours_error if provider == "ours" else "", "dense_error": dense_error,
            }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--csv", type=Path, required=True, help="file that gets one row for each measurement, appended")
    parser.add_argument("--minutes", type=float, default=7.5, help="no new case is begun after this")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu_linear: needs an NVIDIA GPU, and torch finds none")
    if (backend := backend_of("bsr", "cuda", torch.bfloat16)) != "cuda-triton":
        raise SystemExit(f"gpu_linear: block-sparse layers would run by the backend '{backend}': is Triton installed?")
    end = time.monotonic() + 60 * options.minutes
    torch.manual_seed(0)
    clock, facts = Clock(), about()
    rates = probe(clock)
    print("  ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"dense {rates.flops / 1e12:.0f} TFLOP/s, DRAM {rates.dram / 1e12:.2f} TB/s, L2 {rates.l2 / 1e12:.2f} TB/s")
    print(f"{'case':<15} {'block':>5} {'density':>7} {'mode':<8} {'dense':>9} {'BSR':>9} {'ours':>9} ratio share")
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    left = list(cases())
    with options.csv.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            writer.writeheader()
        while left and time.monotonic() < end:
            shape, block, density = left.pop(0)
            rows = list(measure(shape, block, density, clock, rates))
            writer.writerows({**row, **facts} for row in rows)
            file.flush()
            for mode in shape.modes:
                by = {str(row["provider"]): row for row in rows if row["mode"] == mode}
                dense, ours = float(by["dense"]["median_us"]), float(by["ours"]["median_us"])
                peer = f"{by['torch BSR']['median_us']:.1f}" if "torch BSR" in by else "-"
                print(
                    f"{shape.name:<15} {block:>5} {density:>7g} {mode:<8} {dense:>9.1f} {peer:>9} {ours:>9.1f} "
                    f"{dense / ours:>5.2f} {by['ours']['share_of_ceiling']:>5.0%}",
                    flush=True,
                )
    if left:
        print(f"time is up: {len(left)} of {len(list(cases()))} cases were not measured; --minutes gives more")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the device can do, probed here, and the shortest time that it allows a case: the ceiling.

    T >= max( 2 d M N K / F,  (s M K + s M N + d N K (s + i)) / B_dram,  s d M N K (1 / b + 1 / M') / B_L2 )

with d the density, s the bytes of an element, i those of an index per stored value (nearly none for blocks, 4 for
CSR), b the block's side along the result (rows forward, columns for the input's gradient, the smaller one for the
weights'), and M' = min(M, 128) the tile of tokens. The last term is for blocks on large inputs: a gathered tile of
activations is used for b outputs only, so that small blocks are bound by L2. Each gradient costs what the forward pass
costs, a step three of them. F for float32 in blocks is a third of the TF32 rate, since three TF32 products make one
as accurate as float32; for CSR it is the rate of float32 without tensor cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..timing import quantile
from .cases import Case
from .clock import Clock, first_line

__all__ = ["Rates", "ceiling", "probe", "tf32"]

TILE = 128
ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
SIDE, COPY_BYTES, READ_BYTES = 8192, 2**30, 2**24
READ_ROUNDS, READ_BLOCK = 200, 2048
#: Seconds of products before the first probe: an idle device has a tenth of its clock.
SETTLE = 1.0


@dataclass(frozen=True)
class Rates:
    """Operations a second of dense products, bytes a second from DRAM and from L2; None where the probe failed."""

    bfloat16: float | None = None
    float16: float | None = None
    tf32: float | None = None
    float32: float | None = None
    dram: float | None = None
    l2: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        units = {"dram": "TB/s", "l2": "TB/s"}
        shown = [
            f"{name} {value / 1e12:.2f} {units[name]}" if name in units else f"{name} {value / 1e12:.0f} TFLOP/s"
            for name, value in self.to_dict().items()
            if value is not None
        ]
        return ", ".join(shown) or "no probe worked"

    def flops(self, case: Case) -> float | None:
        """The rate that bounds a case's products."""
        if case.dtype != "float32":
            return self.bfloat16 if case.dtype == "bfloat16" else self.float16
        if case.layout == "csr":
            return self.float32
        return None if self.tf32 is None else self.tf32 / 3


def ceiling(case: Case, rates: Rates, mode: str) -> float | None:
    """Seconds that no implementation goes below; None where a rate is missing or the formula does not speak of it."""
    flops = rates.flops(case)
    if case.op not in ("linear", "conv") or flops is None or rates.dram is None or rates.l2 is None:
        return None
    m, n, k = case.products
    item, d = ITEM[case.dtype], case.density
    inputs, outputs = m * k, m * n
    if case.is_conv:
        images, _, channels, side, _ = case.size
        inputs = images * channels * side * side
    index = 4 if case.layout == "csr" else 0
    work = d * m * n * k
    bounds = [2 * work / flops, (item * (inputs + outputs) + d * n * k * (item + index)) / rates.dram]
    if case.block is not None:
        rows, columns = case.block
        reuse = {"forward": rows, "dx": columns, "dw": min(rows, columns)}.get(mode, min(rows, columns))
        bounds.append(item * work * (1 / reuse + 1 / min(TILE, max(m, 16))) / rates.l2)
    return max(bounds) * (3 if mode == "step" else 1)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """torch's switch for TF32 in matrix products within the block. Older torch knows the older name alone."""
    matmul: Any = torch.backends.cuda.matmul
    name, value = (
        ("fp32_precision", "tf32" if allowed else "ieee")
        if hasattr(matmul, "fp32_precision")
        else (
            "allow_tf32",
            allowed,
        )
    )
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def probe(clock: Clock, device: str = "cuda", side: int = SIDE, size: int = COPY_BYTES) -> tuple[Rates, dict[str, str]]:
    """The first hour's probes: dense products by dtype, a copy for DRAM (read and written), 16 MiB read often for L2.

    The L2 figure is of reads into registers, past L1. Copies into shared memory may do better; the ceiling would then
    lie higher and the shares lower than printed, where L2 is the limit. Returns the errors of failed probes too.
    """
    found: dict[str, float] = {}
    errors: dict[str, str] = {}

    def product(dtype: torch.dtype, allowed: bool) -> float:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        with tf32(allowed):
            return 2 * side**3 / _median(clock, lambda: a @ b)

    def copy() -> float:
        source, target = torch.empty(2, size, dtype=torch.int8, device=device).unbind()
        return 2 * size / _median(clock, lambda: target.copy_(source))

    def settle() -> float:
        a = torch.randn(min(side, 4096), min(side, 4096), device=device, dtype=torch.bfloat16)
        end = time.perf_counter() + (SETTLE if device == "cuda" else 0.0)
        while time.perf_counter() < end:
            a @ a
            clock.finish()
        return 0.0

    probes: dict[str, Callable[[], float]] = {
        "settle": settle,
        "bfloat16": partial(product, torch.bfloat16, False),
        "float16": partial(product, torch.float16, False),
        "tf32": partial(product, torch.float32, True),
        "float32": partial(product, torch.float32, False),
        "dram": copy,
        "l2": partial(read_rate, clock, device),
    }
    for name, run in probes.items():
        try:
            found[name] = run()
        except (RuntimeError, ImportError, NotImplementedError, AttributeError, TypeError) as error:
            errors[name] = first_line(error)
    found.pop("settle", None)
    return Rates(**found), errors


def _median(clock: Clock, call: Any, cold: bool = True) -> float:
    return quantile(clock.rounds({"probe": clock.ready(call)}, 0.1, cold)["probe"], 0.5)


def read_rate(clock: Clock, device: str) -> float:
    """Bytes a second that all multiprocessors together read from 16 MiB, which L2 holds."""
    from .read_kernel import read

    source = torch.zeros(READ_BYTES // 4, device=device)
    programs = 8 * torch.cuda.get_device_properties(0).multi_processor_count if device == "cuda" else 2
    sums: Tensor = torch.empty(programs, device=device)
    moved = 4 * READ_BLOCK * READ_ROUNDS * programs
    call = partial(read, source, sums, READ_ROUNDS, READ_BLOCK)
    return moved / _median(clock, call, cold=False)

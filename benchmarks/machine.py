"""What a figure means nothing without: processor, versions, date, and the rates that this machine reaches at most."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

import torch

from lth_sparse import _C
from lth_sparse.report import facts

#: Bytes that the memory probe reads: more than any cache of the processors we know.
PROBE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Rates:
    """Measured ceilings of a number of threads.

    Attributes:
        flops: multiply-adds on registers alone with the instruction set in use, two operations each, a second.
        read_bytes: bytes a second read from memory by `torch.sum`, the best of a few runs.
    """

    flops: float
    read_bytes: float

    @classmethod
    def measure(cls, threads: int, seconds: float = 0.2) -> Rates:
        probe = torch.ones(PROBE_BYTES // 4)
        best = float("inf")
        with torch_threads(threads):
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or best == float("inf"):
                start = time.perf_counter()
                probe.sum()
                best = min(best, time.perf_counter() - start)
        return cls(_C.fma_peak(seconds, threads), PROBE_BYTES / best)


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch's number of threads within the block; MKL and this library's kernels follow it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def about() -> dict[str, str]:
    """Columns that say where and with what a row was measured."""
    machine, versions = facts.machine(), facts.versions(("scipy", "onnxruntime"))
    generation = facts.cpu_generation()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": f"{machine['processor']} ({generation})" if generation else machine["processor"],
        "cores": machine["cores"],
        "isa": _C.isa(),
        "system": machine["system"],
        **{name: versions[name] for name in ("python", "torch", "numpy", "scipy", "onnxruntime", "lth_sparse")},
    }


#: The names of the columns of `about`.
ABOUT = (
    "date",
    "processor",
    "cores",
    "isa",
    "system",
    "python",
    "torch",
    "numpy",
    "scipy",
    "onnxruntime",
    "lth_sparse",
)

"""How long one call takes: by the processor's clocks on the CPU, by events on the device on a GPU.

A GPU is timed as it computes, cold: its L2 is rewritten before every call, since pruned weights would fit where a
network's other layers have been meanwhile; and several calls are queued before anything is waited for, so that the
processor is ahead of the device wherever it can be. Where it cannot, the call is bound by its launches, and the time
between the events says so.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, TypeVar

import torch

__all__ = ["DeviceTimer", "HostTimer", "Timer", "timer_for", "turns"]

#: Before a call shorter than this, seconds, so many bytes are rewritten: what a network's other layers do to the caches
#: between two calls of one. Without it a small layer looks up to 20% faster, sparse ones more than dense ones.
SHORT, SPACER = 1e-3, 1 << 20

#: A first call of so many seconds is warm-up enough.
WARM = 0.02

#: Bytes rewritten before each call on a GPU: several times the L2 of any.
FLUSH = 1 << 28

#: A sample of a GPU is the mean of as many calls as fill these seconds, up to so many: events tick coarsely.
LONG, MOST_CALLS = 2e-4, 16

Run = Callable[[], object]
Name = TypeVar("Name")


class Timer(Protocol):
    """Warm up each candidate once, then take samples in any order."""

    def warm(self, name: str, run: Run) -> None:
        """Call ``run`` until nothing of a first call is left: page faults, code caches, compilation."""

    def sample(self, name: str, run: Run) -> float:
        """Seconds of one call."""


class HostTimer:
    """One thread by its own processor time, which other programs do not enter; several by the clock on the wall."""

    def __init__(self, spaced: bool = True) -> None:
        self.clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        self.spaced, self.short = spaced, set[str]()
        self.spacer = torch.zeros(SPACER, dtype=torch.uint8)

    def warm(self, name: str, run: Run) -> None:
        if self._timed(run) < WARM and self.spaced and self._timed(run) < SHORT:
            self.short.add(name)

    def sample(self, name: str, run: Run) -> float:
        if name in self.short:
            self.spacer.add_(1)
        return self._timed(run)

    def _timed(self, run: Run) -> float:
        begin = self.clock()
        run()
        return self.clock() - begin


class DeviceTimer:
    """Events around each call on a CUDA device.

    Args:
        device: with or without an index.
        cuda: stands in for ``torch.cuda``.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.device, self.cuda = device, cuda
        self.spacer = torch.empty(FLUSH, dtype=torch.uint8, device=device)
        self.calls: dict[str, int] = {}

    def warm(self, name: str, run: Run) -> None:
        with self.cuda.device(self.device):
            for _ in range(2):  # the first compiles, the second finds what the first allocated
                run()
            self.cuda.synchronize(self.device)
            once = self._mean(run, 1)
        self.calls[name] = max(1, min(MOST_CALLS, math.ceil(LONG / max(once, 1e-9))))

    def sample(self, name: str, run: Run) -> float:
        with self.cuda.device(self.device):
            return self._mean(run, self.calls[name])

    def _mean(self, run: Run, calls: int) -> float:
        pairs = []
        for _ in range(calls):
            begin, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
            self.spacer.zero_()
            begin.record()
            run()
            end.record()
            pairs.append((begin, end))
        self.cuda.synchronize(self.device)
        return float(sum(begin.elapsed_time(end) for begin, end in pairs)) * 1e-3 / calls


def timer_for(device: torch.device, spaced: bool = True) -> Timer:
    """The timer of a device. ``spaced``: disturb a CPU's caches before short calls; a GPU's always are."""
    return DeviceTimer(device) if device.type == "cuda" else HostTimer(spaced)


def turns(names: Iterable[Name]) -> Generator[list[Name], None, None]:
    """The candidates' order in each of endless rounds; until the iterator is closed, no garbage is collected.

    Another order every time, the same in every run: what comes behind a candidate that fills the caches looks slower
    than the same behind a small one, and would in all rounds.
    """
    order, shuffle = list(names), random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.disable()
    try:
        while True:
            shuffle(order)
            yield order
    finally:
        if collecting:
            gc.enable()

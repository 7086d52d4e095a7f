"""Timing candidates against each other on a device, in turns.

On CUDA a call is captured once in a CUDA graph and replayed between two events. Before every replay 256 MiB are
rewritten, so that L2 holds nothing of the weights (pruned weights would fit and the benchmark would lie) and so that
the processor is ahead of the device: no launch is waited for. What cannot be captured (it waits for the device in the
middle) runs eagerly between the same events. Candidates take turns within a round, in a new order each time.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch

from lth_sparse.ops import timers

__all__ = ["CaptureError", "Clock", "DeviceClock", "HostClock", "clock_for"]

FLUSH_BYTES = 256 * 2**20
WARM_UP = 3
#: Rounds between two looks at the time, least and most of them, and seconds for all candidates of a comparison.
BATCH, LEAST, MOST, SECONDS = 5, 10, 50, 0.25

Call = Callable[[], object]
#: A run with the events around it.
Pair = tuple[str, torch.cuda.Event, torch.cuda.Event]


class CaptureError(RuntimeError):
    """A capture broke off. The process cannot be trusted afterwards: its random generators believe in it still."""


class Clock(Protocol):
    """What measures: makes calls ready, then times them."""

    how: str

    def place(self) -> contextlib.AbstractContextManager[object]:
        """Where a call has to be built: a backward pass runs on the stream of its forward pass."""

    def ready(self, call: Call, captured: bool = True) -> Call:
        """Warm up ``call``, compilation included; what is to be timed in its stead."""

    def rounds(self, runs: Mapping[str, Call], seconds: float = SECONDS, cold: bool = True) -> dict[str, list[float]]:
        """Seconds of each run, as many as there were rounds."""

    def finish(self) -> None:
        """Wait for the device; raises what went wrong there."""


class HostClock:
    """The clock on the wall, for tensors on the CPU."""

    how = "wall"

    def place(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def ready(self, call: Call, captured: bool = True) -> Call:
        call()
        return call

    def rounds(self, runs: Mapping[str, Call], seconds: float = SECONDS, cold: bool = True) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in runs}
        for order in turns(runs, seconds):
            for name in order:
                begin = time.perf_counter()
                runs[name]()
                found[name].append(time.perf_counter() - begin)
        return found

    def finish(self) -> None:
        return None


class DeviceClock:
    """CUDA graphs between events."""

    how = "graph"

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)

    def ready(self, call: Call, captured: bool = True) -> Call:
        with self.place():
            for _ in range(WARM_UP):
                call()
            if captured:
                captured = not waits(call)
        self.finish()
        if not captured:
            return call
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                call()
        except RuntimeError as error:
            raise CaptureError(first_line(error)) from error
        graph.replay()
        self.finish()
        return graph.replay

    def rounds(self, runs: Mapping[str, Call], seconds: float = SECONDS, cold: bool = True) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in runs}
        waiting: list[Pair] = []
        with self.place():
            for number, order in enumerate(turns(runs, seconds), 1):
                for name in order:
                    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    if cold:
                        self.flush.zero_()
                    begin.record()
                    runs[name]()
                    end.record()
                    waiting.append((name, begin, end))
                if number % BATCH == 0:  # the budget is looked at when the device is done
                    self._collect(waiting, found)
            self._collect(waiting, found)
        return found

    def _collect(self, waiting: list[Pair], found: dict[str, list[float]]) -> None:
        self.finish()
        for name, begin, end in waiting:
            found[name].append(begin.elapsed_time(end) * 1e-3)
        waiting.clear()

    def finish(self) -> None:
        torch.cuda.synchronize()


def clock_for(device: str) -> Clock:
    """The clock of a device type."""
    return DeviceClock() if device == "cuda" else HostClock()


def waits(call: Call) -> bool:
    """Whether a warmed-up call of torch's waits for the device, which no capture allows."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


def turns(runs: Mapping[str, Call], seconds: float) -> Iterator[list[str]]:
    """The order of each round: ``LEAST`` rounds, and on to ``MOST`` while there is time. No garbage is collected."""
    end = time.perf_counter() + seconds
    with contextlib.closing(timers.turns(runs)) as rounds:
        for done, order in enumerate(itertools.islice(rounds, MOST if runs else 0)):
            if done >= LEAST and done % BATCH == 0 and time.perf_counter() > end:
                return
            yield order


def first_line(error: BaseException) -> str:
    """Class and first line of an error: what a table has room for."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

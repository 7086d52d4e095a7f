"""A device is timed by events, cold, warmed up, several calls to a sample; a processor by its own clocks."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from lth_sparse.ops import timers
from lth_sparse.ops.timers import DeviceTimer, HostTimer, timer_for


class Cuda:
    """Stands in for torch.cuda: a device on which calls take time only where they are waited for or marked."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, []

    def call(self, name: str, milliseconds: float) -> Any:
        def run() -> None:
            self.log.append(name)
            self.now += milliseconds

        return run

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        cuda = self

        class Event:
            def record(self) -> None:
                self.at = cuda.now
                cuda.log.append("event")

            def elapsed_time(self, end: Any) -> float:
                return end.at - self.at

        return Event()

    def synchronize(self, device: torch.device) -> None:
        self.log.append("wait")

    def device(self, device: torch.device) -> Any:
        return contextlib.nullcontext()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    monkeypatch.setattr(timers, "FLUSH", 64)
    return Cuda()


def timer_on(cuda: Cuda) -> DeviceTimer:
    timer = DeviceTimer(torch.device("cpu"), cuda)

    class Spacer:
        def zero_(self) -> None:
            cuda.call("flush", 5.0)()

    timer.spacer = Spacer()  # type: ignore[assignment]
    return timer


def test_compilation_and_flushes_are_not_timed(cuda: Cuda) -> None:
    timer, first = timer_on(cuda), iter([1000.0])

    def run() -> None:
        cuda.call("run", next(first, 0.5))()

    timer.warm("a", run)
    assert timer.sample("a", run) == pytest.approx(0.5e-3)
    assert cuda.log[-5:] == ["flush", "event", "run", "event", "wait"]


@pytest.mark.parametrize(("milliseconds", "calls"), [(0.01, 16), (0.06, 4), (0.3, 1), (9.0, 1)])
def test_short_calls_are_many_to_a_sample_and_each_is_cold(milliseconds: float, calls: int, cuda: Cuda) -> None:
    timer, run = timer_on(cuda), cuda.call("run", milliseconds)
    timer.warm("a", run)
    cuda.log.clear()
    assert timer.sample("a", run) == pytest.approx(milliseconds * 1e-3)
    assert cuda.log == ["flush", "event", "run", "event"] * calls + ["wait"]


def test_candidates_have_their_own_number_of_calls(cuda: Cuda) -> None:
    timer = timer_on(cuda)
    for name, milliseconds in (("short", 0.11), ("long", 1.0)):
        timer.warm(name, cuda.call(name, milliseconds))
    assert timer.calls == {"short": 2, "long": 1}


def test_the_device_decides() -> None:
    assert isinstance(timer_for(torch.device("cpu")), HostTimer)


@pytest.mark.gpu
def test_a_product_on_the_device_takes_as_long_as_arithmetic_and_memory_allow() -> None:
    x = torch.randn(4096, 4096, device="cuda", dtype=torch.float32)
    timer = timer_for(torch.device("cuda"))
    timer.warm("product", lambda: x @ x)
    # 137 GFLOP: no device does them in a microsecond, none that is of use needs seconds.
    assert 1e-5 < timer.sample("product", lambda: x @ x) < 5.0

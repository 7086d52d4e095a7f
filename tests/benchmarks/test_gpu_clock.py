"""The clocks of the GPU suite: turns, cold caches, captures and what cannot be captured, on a device made up here."""

from __future__ import annotations

import contextlib
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lth_sparse.benchmarks.gpu import clock as clocks
from lth_sparse.benchmarks.gpu.clock import BATCH, LEAST, MOST, CaptureError, DeviceClock, HostClock, first_line, turns


class Device:
    """Stands in for torch: a stream whose calls take made-up milliseconds, events that mark its time."""

    int8 = torch.int8

    def __init__(self) -> None:
        self.now, self.log, self.capturing, self.mode = 0.0, [], False, "default"
        self.cuda = self

    def spend(self, name: str, milliseconds: float) -> None:
        self.log.append(name)
        self.now += 0.0 if self.capturing else milliseconds

    def empty(self, *_: object, **__: object) -> Any:
        return SimpleNamespace(zero_=lambda: self.spend("flush", 7.0))

    def Stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda other: None)

    def current_stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda other: None)

    def stream(self, stream: object) -> Any:
        return contextlib.nullcontext()

    def Event(self, enable_timing: bool) -> Any:
        device = self

        class Event:
            def record(self) -> None:
                self.at = device.now

            def elapsed_time(self, end: Any) -> float:
                return end.at - self.at

        return Event()

    def synchronize(self) -> None:
        self.log.append("wait")

    def get_sync_debug_mode(self) -> str:
        return self.mode

    def set_sync_debug_mode(self, mode: str) -> None:
        self.mode = mode

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(calls=[], replay=None)

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: object) -> Any:
        self.capturing, before = True, len(self.log)
        yield
        self.capturing = False
        captured = self.log[before:]
        graph.replay = lambda: [self.spend(f"replayed {name}", 2.0) for name in captured]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    monkeypatch.setattr(clocks, "torch", found)
    return found


def test_turns_shuffle_every_round_and_end_in_time() -> None:
    runs = {name: lambda: None for name in "abcd"}
    orders = [tuple(order) for order in turns(runs, 0.0)]
    assert len(orders) == LEAST
    assert len(set(orders)) > LEAST // 2
    assert all(sorted(order) == list("abcd") for order in orders)
    assert len(list(turns(runs, 1e9))) == MOST
    assert list(turns({}, 1.0)) == []


def test_the_host_times_each_call_of_a_round() -> None:
    counts: Counter[str] = Counter()
    runs = {name: (lambda name=name: counts.update([name])) for name in "ab"}
    clock = HostClock()
    ready = {name: clock.ready(run) for name, run in runs.items()}
    samples = clock.rounds(ready, 0.0)
    assert {name: len(times) for name, times in samples.items()} == {"a": LEAST, "b": LEAST}
    assert counts == {"a": LEAST + 1, "b": LEAST + 1}  # one warmed up


def test_a_call_is_captured_and_its_replays_timed_cold(device: Device) -> None:
    clock = DeviceClock()
    run = clock.ready(lambda: device.spend("work", 100.0))
    device.log.clear()
    samples = clock.rounds({"a": run}, 0.0)["a"]
    assert samples == pytest.approx([2e-3] * LEAST)  # the replay, not the flush before it
    assert device.log[:2] == ["flush", "replayed work"]
    assert device.log.count("wait") == LEAST // BATCH + 1  # the queue is never drained within a batch
    device.log.clear()
    clock.rounds({"a": run}, 0.0, cold=False)
    assert "flush" not in device.log


def test_what_waits_for_the_device_runs_eagerly(device: Device) -> None:
    def call() -> None:
        if device.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        device.spend("work", 3.0)

    clock = DeviceClock()
    assert clock.ready(call) is call
    assert device.mode == "default"
    assert clock.rounds({"a": call}, 0.0)["a"] == pytest.approx([3e-3] * LEAST)
    assert clock.ready(call, captured=False) is call


def test_a_capture_that_breaks_off_is_told_apart_from_a_call_that_fails(device: Device) -> None:
    def uncapturable() -> None:
        if device.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    def failing() -> None:
        raise RuntimeError("no kernel image")

    clock = DeviceClock()
    with pytest.raises(CaptureError, match="not permitted"):
        clock.ready(uncapturable)
    with pytest.raises(RuntimeError, match="no kernel image") as caught:
        clock.ready(failing)
    assert not isinstance(caught.value, CaptureError)


def test_the_first_line_of_an_error_is_enough() -> None:
    assert first_line(ValueError("\n  no luck \nat all")) == "ValueError: no luck"
    assert first_line(KeyError()) == "KeyError"


@pytest.mark.gpu
def test_a_step_is_captured_on_a_device_and_takes_time() -> None:
    weight = torch.randn(512, 512, device="cuda", requires_grad=True)
    x = torch.randn(512, 512, device="cuda")
    clock = DeviceClock()
    run = clock.ready(lambda: torch.autograd.grad((x @ weight).sum(), weight))
    waiting = clock.ready(lambda: (x @ weight.detach()).sum().item())
    samples = clock.rounds({"step": run, "waiting": waiting}, 0.01)
    assert all(seconds > 0.0 for times in samples.values() for seconds in times)

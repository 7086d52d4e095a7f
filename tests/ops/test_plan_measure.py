"""Measuring times every candidate and pass, leaves the caller alone, and goes on while two are close."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools

import pytest
import torch

from lth_sparse.ops import measure as timing
from lth_sparse.ops import timers
from lth_sparse.ops.measure import PASSES, Timing, interleave, measure
from lth_sparse.ops.plan import layout_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("shape", "sample", "conv"),
    [
        ((64, 48), (8, 48), None),
        ((64, 48), (2, 4, 48), None),
        ((6, 4, 3), (2, 4, 10), {"padding": 1}),
        ((6, 4, 3, 3), (2, 4, 8, 8), {"padding": 1, "padding_mode": "reflect", "stride": 2}),
        ((6, 2, 3, 3), (2, 4, 8, 8), {"padding": "same", "groups": 2}),
    ],
)
def test_every_candidate_and_pass_is_timed_and_the_caller_left_alone(
    shape: tuple[int, ...], sample: tuple[int, ...], conv: dict | None
) -> None:
    weight, mask = torch.randn(shape, requires_grad=True), torch.rand(shape) < 0.2
    x, bias = torch.randn(sample, requires_grad=True), torch.randn(shape[0])
    state = torch.get_rng_state()
    layouts = {kind: layout_of(kind, mask, None) for kind in ("csr", "dense")}
    with torch.no_grad():
        timings = measure(weight, layouts, x, bias, conv, mask=mask, passes=PASSES, budget=0.0, rounds=1)
    assert set(timings) == {"torch", "masked", "csr", "dense"}
    for found in timings.values():
        assert all((found.of(which) or 0.0) > 0.0 for which in PASSES)
        assert found.noise >= 0.0
    assert weight.grad is None
    assert x.grad is None
    assert torch.equal(state, torch.get_rng_state())


def test_an_input_without_gradient_has_no_such_pass() -> None:
    layouts = {"csr": layout_of("csr", torch.rand(6, 5) < 0.5, None)}
    options = {"passes": PASSES, "input_gradient": False, "budget": 0.0, "rounds": 1}
    timings = measure(torch.randn(6, 5), layouts, torch.randn(3, 5), **options)
    assert all(found.backward_input is None and found.backward_weight for found in timings.values())


class Clock:
    """Stands in for the module `time`: each candidate's call moves it by a given amount."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, 0

    def perf_counter(self) -> float:
        return self.now

    thread_time = perf_counter

    def run(self, *seconds: float) -> object:
        turns = iter(())

        def call() -> None:
            nonlocal turns
            try:
                step = next(turns)
            except StopIteration:
                turns = iter(seconds)
                step = next(turns)
            self.now += step
            self.calls += 1

        return call


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    for module in (timing, timers):
        monkeypatch.setattr(module, "time", clock)


def test_rounds_fill_the_budget_but_are_never_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    set_clock(monkeypatch, clock)
    assert len(interleave({"a": clock.run(1.0)}, CPU, budget=0.0, least=3)["a"]) == 3
    assert len(interleave({"a": clock.run(1.0)}, CPU, budget=7.0, least=3)["a"]) == 7


def test_rivals_that_cannot_be_told_apart_get_more_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    set_clock(monkeypatch, clock)
    noisy, steady = (0.9, 1.1, 1.0, 1.3, 0.7, 1.02), (1.0, 1.0)
    close = {"a": clock.run(*noisy), "b": clock.run(*steady)}
    assert len(interleave(close, CPU, ["a", "b"], budget=6.0, least=3, patience=4)["a"]) > 20
    clear = {"a": clock.run(*noisy), "b": clock.run(5.0)}
    assert len(interleave(clear, CPU, ["a", "b"], budget=6.0, least=3, patience=4)["a"]) < 6


@pytest.mark.parametrize("spaced", [True, False])
def test_what_disturbs_the_caches_is_not_timed(spaced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    set_clock(monkeypatch, clock)
    seconds = interleave({"a": clock.run(1e-6)}, CPU, budget=0.0, least=2, spaced=spaced)["a"]
    assert seconds == pytest.approx([1e-6, 1e-6])


def test_every_candidate_runs_behind_every_other() -> None:
    """And behind itself where untimed calls are asked for."""
    called: list[str] = []
    runs = {name: functools.partial(called.append, name) for name in "abcd"}
    samples = interleave(runs, CPU, budget=0.0, least=40, spaced=False)
    assert [len(samples[name]) for name in runs] == [40] * 4
    rounds = called[-160:]
    assert all(sorted(rounds[i : i + 4]) == list("abcd") for i in range(0, 160, 4))
    before = {pair for i in range(0, 160, 4) for pair in itertools.pairwise(rounds[i : i + 4])}
    assert len(before) == 12
    called.clear()
    interleave(runs, CPU, budget=0.0, least=5, spaced=False, untimed=2)
    assert [len(list(group)) for _, group in itertools.groupby(called[-60:])].count(3) >= 12


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_is_collected_again_however_the_rounds_end(collecting: bool) -> None:
    def fails() -> None:
        with contextlib.closing(timers.turns("ab")) as rounds:
            for _ in rounds:
                assert not gc.isenabled()
                raise KeyError("of the candidate")

    try:
        (gc.enable if collecting else gc.disable)()
        interleave({"a": lambda: None}, CPU, budget=0.0, least=2)
        assert gc.isenabled() == collecting
        with pytest.raises(KeyError):
            fails()
        assert gc.isenabled() == collecting
    finally:
        gc.enable()


def test_timings_survive_a_file() -> None:
    found = Timing(1.0, 3.0, None, 1.5, 0.01)
    assert Timing.from_dict(found.to_dict()) == found
    assert found.backward == 2.0


@pytest.mark.parametrize(
    "change", [{"forward": None}, {"training": -1.0}, {"training": "1"}, {"noise": True}, {"extra": 1.0}, None]
)
def test_what_is_no_timing_is_refused(change: dict | None) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # any reason will do
        Timing.from_dict(None if change is None else Timing(1.0, 2.0).to_dict() | change)  # type: ignore[arg-type]

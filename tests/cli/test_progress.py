"""The tracker: what is done, how long the rest takes, and what it prints; with a clock of its own."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lth_sparse.cli import progress
from lth_sparse.cli.progress import Tracker, duration
from lth_sparse.engine import LevelRecord

PLAN: list[tuple[int, str | None]] = [(0, None), (1, None), (1, "reinit")]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def tracker(clock: Clock, out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.setattr(progress, "crowding", lambda: None)
    return Tracker(Console(file=out, width=40), seeds=2, plan=PLAN, iterations=100, clock=clock)


def level(index: int, control: str | None = None, start: int = 0, steps: int = 0) -> Any:
    return SimpleNamespace(index=index, control=control, start_step=start, steps=steps)


def record(index: int, control: str | None = None, seconds: float = 10.0, resumed: bool = False) -> LevelRecord:
    return LevelRecord(index, 0.8**index, seconds, {"test_acc": 0.9}, None, [], {}, [], control, resumed)


def train(tracker: Tracker, clock: Clock, index: int, seconds: float, control: str | None = None) -> None:
    tracker.on_level_start(level(index, control))
    clock.now += seconds
    tracker.on_level_end(record(index, control, seconds))


def test_nothing_is_promised_before_anything_was_timed(tracker: Tracker) -> None:
    tracker.on_level_start(level(0))
    assert tracker.seconds_left() is None


def test_the_first_steps_are_no_basis_for_a_guess(tracker: Tracker, clock: Clock) -> None:
    tracker.on_level_start(level(0))
    clock.now = 10.0
    tracker.on_step(level(0, steps=3))
    assert tracker.seconds_left() is None


def test_pace_of_the_first_training_is_assumed_for_all(tracker: Tracker, clock: Clock) -> None:
    tracker.on_level_start(level(0))
    clock.now = 5.0
    tracker.on_step(level(0, steps=50))
    assert tracker.seconds_left() == pytest.approx(5.0 + 5 * 10.0)


def test_later_seeds_take_what_their_levels_took(tracker: Tracker, clock: Clock) -> None:
    train(tracker, clock, 0, 10.0)
    train(tracker, clock, 1, 4.0)
    train(tracker, clock, 1, 6.0, "reinit")
    tracker.begin_seed(1)
    assert tracker.seconds_left() == pytest.approx(20.0)


def test_steps_before_a_rewind_point_are_not_timed(tracker: Tracker, clock: Clock) -> None:
    tracker.on_level_start(level(1, start=50))
    clock.now = 5.0
    tracker.on_step(level(1, start=50, steps=75))
    assert tracker.seconds_left() == pytest.approx(5.0 + 5 * 20.0)


def test_fraction_counts_seeds_trainings_and_steps(tracker: Tracker, clock: Clock) -> None:
    train(tracker, clock, 0, 10.0)
    tracker.on_level_start(level(1))
    clock.now += 1.0
    tracker.on_step(level(1, steps=50))
    assert tracker.fraction == pytest.approx(1.5 / 6)


def test_trainings_found_finished_count_but_are_not_timed(tracker: Tracker) -> None:
    tracker.on_level_end(record(0, resumed=True))
    assert (tracker.done, tracker.seconds_left()) == (1, None)


def test_a_finished_training_is_one_line_however_narrow(tracker: Tracker, clock: Clock, out: io.StringIO) -> None:
    with tracker:
        train(tracker, clock, 0, 10.0)
        train(tracker, clock, 1, 4.0)
    line = "[2/6] seed 0, level 1: 80.0% left, test acc. 90.00%, 4.0 s (2.50x), about 22 s left"
    assert out.getvalue().splitlines()[1] == line


def test_lost_seconds_are_not_printed(tracker: Tracker, out: io.StringIO) -> None:
    tracker.on_level_end(record(0, seconds=math.nan, resumed=True))
    assert "nan" not in out.getvalue()
    assert "found finished" in out.getvalue()


def test_a_long_training_gives_a_sign_of_life(tracker: Tracker, clock: Clock, out: io.StringIO) -> None:
    tracker.on_level_start(level(0))
    clock.now = 61.0
    tracker.on_step(level(0, steps=50))
    assert out.getvalue() == "seed 0 (1 of 2), level 0: iteration 50 of 100, about 11 min left\n"


def test_a_terminal_gets_a_bar(clock: Clock, out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "crowding", lambda: None)
    console = Console(file=out, force_terminal=True, width=120)
    with Tracker(console, seeds=1, plan=PLAN, iterations=100, clock=clock) as tracker:
        tracker.on_level_start(level(0))
        clock.now = 10.0
        tracker.on_step(level(0, steps=50))
    assert "seed 0 (1 of 1), level 0, iteration 50/100" in out.getvalue()
    assert "about 50 s left" in out.getvalue()


def test_other_work_on_the_machine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(progress.os, "getloadavg", lambda: (2.2, 0.0, 0.0), raising=False)
    assert progress.crowding() is None
    monkeypatch.setattr(progress.os, "getloadavg", lambda: (8.0, 0.0, 0.0), raising=False)
    assert "load average 8.0 on 2 processors" in str(progress.crowding())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (89.0, "89 s"), (150.0, "2 min"), (5_000.0, "83 min"), (9_000.0, "2 h 30 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text

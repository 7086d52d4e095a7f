"""How far a search is: one bar over seeds x trainings x steps with the time left, or plain lines where no terminal is.

The engine calls `on_level_start`, `on_step` and `on_level_end` of a `Tracker` from inside the training loop, so a step
costs one clock reading, and nothing is drawn more than twice a second or from another thread.

Sparse levels are faster than dense ones, so the time left is summed per training: what the same level took for an
earlier seed, else what the last training took.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lth_sparse.engine import Level, LevelRecord
from lth_sparse.report.summary import control_name

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Tracker", "crowding", "duration"]

#: A training: level and control, as the engine runs them.
Key = tuple[int, str | None]

DRAW_EVERY, LINE_EVERY = 0.5, 60.0
WARM_STEPS, WARM_SECONDS = 20, 2.0


class Tracker:
    """Callbacks for the engine, and what they add up to.

    Args:
        console: where to draw; a bar when it is a terminal, else lines.
        seeds: number of seeds.
        plan: the trainings of one seed in their order.
        iterations: steps of one training.
        clock: seconds, monotonic.

    Attributes:
        crowded: why the seconds are unreliable, such as other work on the machine; None while nothing is known.
    """

    def __init__(
        self,
        console: Console,
        seeds: int,
        plan: Sequence[Key],
        iterations: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self.seeds, self.plan, self.iterations, self.clock = (
            console,
            seeds,
            tuple(plan),
            iterations,
            clock,
        )
        self.seed = 0
        self.finished: dict[int, set[Key]] = {}
        self.took: dict[Key, float] = {}
        self.last_took: float | None = None
        self.current: Key | None = None
        self.step = self.start_step = 0
        self.started = self.drawn = self.printed = clock()
        self.dense_seconds: float | None = None
        self.crowded: str | None = None
        self._bar: Any = None

    @property
    def total(self) -> int:
        """Trainings of the whole search."""
        return self.seeds * len(self.plan)

    @property
    def done(self) -> int:
        """Trainings finished."""
        return sum(len(keys) for keys in self.finished.values())

    @property
    def fraction(self) -> float:
        """Share of all steps that are behind us."""
        return min((self.done + (self.step / self.iterations if self.current else 0.0)) / max(self.total, 1), 1.0)

    def begin_seed(self, seed: int) -> None:
        """What follows belongs to `seed`."""
        self.seed, self.current, self.step, self.dense_seconds = seed, None, 0, None

    def extend(self, more: Sequence[Key]) -> None:
        """Add trainings to every seed's plan."""
        self.plan += tuple(key for key in more if key not in self.plan)

    def on_level_start(self, level: Level) -> None:
        """Called by the engine before a training."""
        self.current = (level.index, level.control)
        self.step = self.start_step = level.start_step
        self.started = self.printed = self.clock()
        self._draw()

    def on_step(self, level: Level) -> None:
        """Called by the engine after each optimiser step."""
        now = self.clock()
        if now - self.drawn < DRAW_EVERY:
            return
        self.step = level.steps
        self._draw()
        if self._bar is None and now - self.printed >= LINE_EVERY:
            self.printed = now
            self._print(f"{self._where()}: iteration {self.step:,} of {self.iterations:,}{self._left()}")

    def on_level_end(self, record: LevelRecord) -> None:
        """Called by the engine after each training, and for those found finished in the run directory."""
        key, known = (record.index, record.control), self.finished.setdefault(self.seed, set())
        again = key in known  # a second search of the same seed reads everything once more
        known.add(key)
        self.current, self.step = None, 0
        if record.index == 0:
            self.dense_seconds = record.seconds
        if not record.resumed:
            self.last_took = self.took[key] = self.clock() - self.started
            self.crowded = self.crowded or crowding()
        if self._bar is None and not again:
            self._print(self._line(record))
        self._draw()

    def seconds_left(self) -> float | None:
        """Estimate for everything that is left; None as long as nothing has been timed."""
        running, own_pace = 0.0, None
        steps, elapsed = self.step - self.start_step, self.clock() - self.started
        # The first steps warm caches and thread pools up; a guess from them alone would frighten people.
        if self.current is not None and steps >= WARM_STEPS and elapsed >= WARM_SECONDS:
            pace = elapsed / steps
            own_pace, running = pace * self.iterations, pace * (self.iterations - self.step)
        guess = own_pace if own_pace is not None else self.last_took
        if guess is None:
            return None
        left = running
        for seed in range(self.seeds):
            for key in self.plan:
                if key in self.finished.get(seed, ()) or (seed == self.seed and key == self.current and running):
                    continue
                left += self.took.get(key, guess)
        return left

    def __enter__(self) -> Tracker:
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[left]}"),
                console=self.console,
                auto_refresh=False,  # its thread would compete with the training that is being timed
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=1.0, left="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self) -> None:
        self.drawn = self.clock()
        if self._bar is None:
            return
        step = f", iteration {self.step:,}/{self.iterations:,}" if self.current is not None else ""
        self._bar.update(
            self._task, completed=self.fraction, description=self._where() + step, left=self._left().removeprefix(", ")
        )
        self._bar.refresh()

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _where(self) -> str:
        place = f"seed {self.seed} ({self.seed + 1} of {self.seeds})"
        if self.current is None:
            return place
        index, control = self.current
        return f"{place}, level {index}" + (f" {control_name(control)}" if control else "")

    def _left(self) -> str:
        seconds = self.seconds_left()
        return "" if seconds is None else f", about {duration(seconds)} left"

    def _line(self, record: LevelRecord) -> str:
        """One finished training in one line, for logs."""
        name = f"level {record.index}" + (f" {control_name(record.control)}" if record.control else "")
        count = f"[{self.done:>{len(str(self.total))}}/{self.total}]"
        parts = [f"{count} seed {self.seed}, {name}: {record.density:.1%} left"]
        accuracy = record.accuracy()
        if accuracy is not None:
            when = f" at iteration {record.early_stop.step:,}" if record.early_stop is not None else ""
            parts.append(f"test acc. {accuracy:.2%}{when}")
        if record.seconds == record.seconds:  # not NaN
            speedup = f" ({self.dense_seconds / record.seconds:.2f}x)" if self.dense_seconds and record.seconds else ""
            parts.append(f"{record.seconds:.1f} s{speedup}")
        if record.resumed:
            parts.append("found finished")
        return ", ".join(parts) + (self._left() if self.done < self.total else "")


def crowding() -> str | None:
    """A sentence when more processes wanted to run in the last minute than there are processors, else None."""
    try:
        load, processors = os.getloadavg()[0], os.cpu_count() or 1
    except (AttributeError, OSError):  # Windows has no load average
        return None
    if load <= 1.25 * processors + 1.0:  # this search itself keeps all its threads busy
        return None
    return f"other programs were using this machine (load average {load:.1f} on {processors} processors)"


def duration(seconds: float) -> str:
    """45 -> "45 s", 150 -> "3 min", 9000 -> "2 h 30 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"

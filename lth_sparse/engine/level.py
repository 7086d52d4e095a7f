"""One training: what ``train(model, level)`` is given, counts its steps with and records its metrics in."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lth_sparse.engine.distributed import warn
from lth_sparse.engine.rewinding import Moment
from lth_sparse.engine.snapshot import Snapshot, load_attached
from lth_sparse.engine.strict import Strict
from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError, expected

__all__ = ["EarlyStop", "Level", "checked_metrics", "early_stop_of", "emit"]


@dataclass(frozen=True)
class EarlyStop:
    """Where one would have stopped: the row of the history with the lowest validation loss.

    Attributes:
        step: its optimiser step.
        metrics: what was measured there.
    """

    step: int
    metrics: dict[str, float]


def early_stop_of(history: Iterable[Mapping[str, Any]]) -> EarlyStop | None:
    """Argmin of ``val_loss`` over the rows, the earliest of equals; None without any ``val_loss``.

    Found after the fact: training always runs its full length (Frankle & Carbin 2018, section 2).
    """
    rows = [row for row in history if "val_loss" in row]
    if not rows:
        return None
    best = min(rows, key=lambda row: (row["val_loss"], row["step"]))
    return EarlyStop(int(best["step"]), {name: value for name, value in best.items() if name != "step"})


class Level:
    """A network to train, and the record of its training.

    Attributes:
        model: the network: dense at level 0, sparse and rewound afterwards.
        index: 0 is dense; level k has been pruned k times.
        density: share of the weights that are kept.
        control: None, "reinit" or "shuffled".
        seed: what the random states of this training descend from: the search's seed, or the control's own.
        directory: the run directory, or None.
        start_step: the optimiser step to start from: 0, or k when rewound to step k.
        steps: the optimiser step reached; epochs: how often ``epoch()`` was called.
        finetunes: with rewind="finetune", at every level but 0.
        captured: copies of everything at the moments that were asked for.
        history: rows recorded with a step; metrics: those recorded without.
        seconds: wall time of the training once it is over, NaN before.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        index: int,
        density: float,
        seed: int,
        control: str | None = None,
        directory: Path | None = None,
        rewound_to: Snapshot | None = None,
        captures: Iterable[Moment] = (),
        finetunes: bool = False,
        restores: Callable[[Any], bool] | None = None,
        strict: Strict | None = None,
        callbacks: Iterable[Any] = (),
    ) -> None:
        self.model, self.index, self.density, self.seed, self.control = model, index, density, seed, control
        self.directory = directory
        self.start_step = 0 if rewound_to is None else rewound_to.step
        self.steps = self.start_step
        self.history: list[dict[str, Any]] = []
        self.metrics: dict[str, float] = {}
        self.seconds = math.nan
        self.epochs = 0
        self.finetunes = finetunes
        self.captured: dict[Moment, Snapshot] = {}
        self._rewound_to, self._captures, self._callbacks = rewound_to, frozenset(captures), tuple(callbacks)
        self._restores, self._strict = restores, strict
        self._attached: dict[str, Any] = {}
        self._over = False

    def step(self) -> int:
        """Count one optimiser step; call it after ``optimizer.step()``, and after ``scheduler.step()`` if there is one.

        Returns the number of steps, those before ``start_step`` included. With rewind="500it", step 500 of level 0 is
        where everything is copied.
        """
        if self._over:
            raise RunError(f"level {self.index} is over; step() belongs to its training")
        self.steps += 1
        if self._strict is not None:
            self._strict.step(self.model, self._attached, self.index, self.steps)
        self._capture(("step", self.steps))
        emit(self._callbacks, "on_step", self)
        return self.steps

    def epoch(self) -> int:
        """Count one epoch, after its last ``step()``; with rewind="3ep", the third of level 0 is copied.

        Returns the number of epochs counted in this training.
        """
        if self._over:
            raise RunError(f"level {self.index} is over; epoch() belongs to its training")
        self.epochs += 1
        self._capture(("epoch", self.epochs))
        return self.epochs

    def attach(self, **things: Any) -> None:
        """Name what holds training state: ``level.attach(optimizer=optimizer, scheduler=scheduler)``.

        With rewind="500it" their state at step 500 of level 0 comes back at every level, an optimiser's through the
        level's mask. Otherwise they stay as fresh as they are. Call it before the first step.

        Args:
            things: anything with ``state_dict`` and ``load_state_dict``.

        Raises:
            ArgumentTypeError: something without those methods.
            ArgumentError: an optimiser over other parameters than at level 0.
        """
        for name, thing in things.items():
            if not all(callable(getattr(thing, method, None)) for method in ("state_dict", "load_state_dict")):
                what = "an object with state_dict and load_state_dict"
                raise ArgumentTypeError(expected(f"attach({name}=...)", what, type(thing).__name__))
            self._attached[name] = thing
            wanted = self._restores is None or self._restores(thing)
            if wanted and self._rewound_to is not None and name in self._rewound_to.attached:
                load_attached(name, thing, self._rewound_to.attached[name], self.model)

    def record(self, *, step: Any = None, **metrics: Any) -> None:
        """Note metrics: with ``step`` as a row of the history, without as final ones.

        The early stop reads ``val_loss`` in the history, the verdict ``test_acc``. All go into the ticket, so leave
        out what differs between equal runs, such as times.

        Raises:
            ArgumentTypeError, ArgumentError: naming ``train``: a metric that is no finite number, a step that is none.
        """
        checked = checked_metrics(metrics)
        if step is None:
            self.metrics.update(checked)
            return
        if isinstance(step, bool) or not isinstance(step, numbers.Integral):
            raise ArgumentTypeError(expected("train, step of level.record", "an int", step))
        row = {"step": int(step), **checked}
        self.history.append(row)
        emit(self._callbacks, "on_record", self, row)

    @property
    def early_stop(self) -> EarlyStop | None:
        """See :func:`early_stop_of`."""
        return early_stop_of(self.history)

    def finish(self, seconds: float) -> None:
        """Close the level; called by the engine.

        Raises:
            ArgumentError: level 0 ended before the only moment that later levels may rewind to.
        """
        if self._strict is not None:
            self._strict.end(self.model, self.index)
        self._capture(("end", 0))
        self._over = True
        self.seconds = seconds
        if self._captures and not self.captured:
            kind, count = min(self._captures)
            if kind == "epoch":
                what = f"train to call level.epoch() after each of more than {count} epochs"
                raise ArgumentError(expected(f"rewind='{count}ep'", what, f"{self.epochs} epochs in level 0"))
            what = f"train to call level.step() after each of more than {count} optimiser steps"
            raise ArgumentError(expected(f"rewind='{count}it'", what, f"{self.steps} steps in level 0"))
        forgotten = sorted(set(self._rewound_to.attached if self._rewound_to else ()) - set(self._attached))
        if forgotten:
            message = f"train: attached {', '.join(forgotten)} at level 0 but not at level {self.index}"
            warn(f"{message}, where it started fresh")

    def _capture(self, moment: Moment) -> None:
        if moment in self._captures and moment not in self.captured:
            self.captured[moment] = Snapshot.take(self.model, self.steps, self._attached)

    def __repr__(self) -> str:
        control = f", control={self.control!r}" if self.control else ""
        return f"Level(index={self.index}, density={self.density:.4g}{control})"


def checked_metrics(metrics: object) -> dict[str, float]:
    """Metrics as floats.

    Raises:
        ArgumentTypeError, ArgumentError: naming ``train``, when they are no mapping of names to finite numbers.
    """
    if not isinstance(metrics, Mapping):
        raise ArgumentTypeError(expected("train", "a mapping {metric name: number} as its result", metrics))
    result: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise ArgumentTypeError(expected("train", "metric names as strings", name))
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not isinstance(value, (numbers.Real, bool)):
            raise ArgumentTypeError(expected(f"train, metric {name!r}", "a number", value))
        if not math.isfinite(value):
            what = "a finite number (training diverged?)"
            raise ArgumentError(expected(f"train, metric {name!r}", what, float(value)))
        result[name] = float(value)
    return result


def emit(callbacks: Iterable[Any], event: str, *args: Any) -> None:
    """Call the method ``event`` of every callback that has it."""
    for callback in callbacks:
        method = getattr(callback, event, None)
        if method is not None:
            method(*args)

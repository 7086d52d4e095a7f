"""From the records of several seeds to the numbers of the report: mean, minimum and maximum per level.

One `Training` is one network trained once: a seed, a level, and which control it is, if any. `summarise` groups them
into one `LevelSummary` per level and per control. Accuracy is the share of test images classified correctly, taken at
the early-stop iteration (the one with the lowest validation loss, found after the fact) and again at the end, as in
Frankle & Carbin 2018, section 2; their bars are minimum and maximum over the seeds, and so are ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lth_sparse.engine import LevelRecord
from lth_sparse.engine.controls import CONTROLS

__all__ = ["LevelSummary", "Statistic", "Summary", "Training", "control_name", "summarise", "trainings_of"]


@dataclass(frozen=True)
class Statistic:
    """Mean, minimum and maximum of `count` numbers, one per seed."""

    mean: float
    minimum: float
    maximum: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Statistic | None:
        """Over the finite values; None when there are none (a training that recorded no such metric)."""
        finite = [float(value) for value in values if value is not None and math.isfinite(value)]
        if not finite:
            return None
        return cls(math.fsum(finite) / len(finite), min(finite), max(finite), len(finite))


@dataclass(frozen=True)
class Training:
    """One training of one network.

    Attributes:
        seed, level: which run and which level of it; level 0 is the dense network.
        control: None for the ticket itself, else "reinit" or "shuffled".
        density: share of the prunable weights kept; percent left is 100 times this.
        early_stop: iteration of the lowest validation loss; None when no validation loss was recorded.
        early_loss, early_accuracy: validation loss and test accuracy there.
        accuracy: test accuracy after the last iteration.
        seconds: wall time of training, evaluations included.
        dense_seconds: the same for level 0 of this seed.
        layouts: how many layers ran in which layout, for example {"csr": 2, "dense": 1}.
    """

    seed: int
    level: int
    control: str | None
    density: float
    early_stop: int | None
    early_loss: float | None
    early_accuracy: float | None
    accuracy: float | None
    seconds: float | None
    dense_seconds: float | None
    layouts: Mapping[str, int]

    @property
    def speedup(self) -> float | None:
        """Seconds of the dense level of the same seed over this one's seconds."""
        if not self.seconds or self.dense_seconds is None:
            return None
        return self.dense_seconds / self.seconds


def control_name(kind: str) -> str:
    """What a person reads: "random reinitialisation" for "reinit"."""
    return CONTROLS.get(kind, kind)


@dataclass(frozen=True)
class LevelSummary:
    """One level, or one control at one level, over all seeds; fields as in `Training`."""

    level: int
    control: str | None
    density: float
    early_stop: Statistic | None
    early_loss: Statistic | None
    early_accuracy: Statistic | None
    accuracy: Statistic | None
    seconds: Statistic | None
    speedup: Statistic | None

    @property
    def percent(self) -> float:
        """Percentage of weights left, the paper's P_m."""
        return 100.0 * self.density

    @property
    def label(self) -> str:
        """What a table calls it: "dense", "ticket", or the control."""
        if self.control is not None:
            return control_name(self.control)
        return "dense" if self.level == 0 else "ticket"


@dataclass(frozen=True)
class Summary:
    """All levels in order, and the controls by level and kind.

    Attributes:
        seeds: the seeds that took part.
        floor: seconds a level would take with no weights left: the intercept of a straight line through seconds against
            density over the pruned levels. Data, loss, optimiser and evaluation; None with fewer than three levels
            or when the line says nothing (seconds that do not fall with density).
    """

    seeds: tuple[int, ...]
    levels: tuple[LevelSummary, ...]
    controls: tuple[LevelSummary, ...]
    trainings: tuple[Training, ...]
    floor: float | None

    @property
    def dense(self) -> LevelSummary | None:
        """Level 0, or None when no seed has finished it."""
        return self.levels[0] if self.levels and self.levels[0].level == 0 else None

    def controls_at(self, level: int) -> tuple[LevelSummary, ...]:
        """The controls trained at `level`."""
        return tuple(control for control in self.controls if control.level == level)


def trainings_of(
    seed: int, records: Iterable[LevelRecord], controls: Mapping[tuple[int, str], LevelRecord]
) -> list[Training]:
    """Plain numbers from the engine's records of one seed: `result.levels` and `result.controls`."""
    levels = list(records)
    dense = next((record.seconds for record in levels if record.index == 0), None)
    plain = [_training(seed, record, None, dense) for record in levels]
    return plain + [_training(seed, record, kind, dense) for (_, kind), record in sorted(controls.items())]


def summarise(trainings: Iterable[Training]) -> Summary:
    """Group trainings by level and control; statistics run over the seeds."""
    everything = tuple(trainings)
    groups: dict[tuple[int, str | None], list[Training]] = {}
    for training in everything:
        groups.setdefault((training.level, training.control), []).append(training)
    levels = tuple(_summary(*key, groups[key]) for key in sorted((k for k in groups if k[1] is None), key=_order))
    controls = tuple(_summary(*key, groups[key]) for key in sorted((k for k in groups if k[1]), key=_order))
    return Summary(tuple(sorted({t.seed for t in everything})), levels, controls, everything, _floor(levels))


def _order(key: tuple[int, str | None]) -> tuple[int, str]:
    return key[0], key[1] or ""


def _training(seed: int, record: LevelRecord, control: str | None, dense_seconds: float | None) -> Training:
    stop = record.early_stop
    at_stop: Mapping[str, Any] = {} if stop is None else stop.metrics
    return Training(
        seed=seed,
        level=int(record.index),
        control=control,
        density=float(record.density),
        early_stop=None if stop is None else int(stop.step),
        early_loss=_number(at_stop.get("val_loss")),
        early_accuracy=_number(at_stop.get("test_acc")),
        accuracy=_number(record.metrics.get("test_acc")),
        seconds=_number(record.seconds),
        dense_seconds=_number(dense_seconds),
        layouts=_layouts(record.layers),
    )


def _number(value: Any) -> float | None:
    """None for what was not measured, NaN included (the wall time of a level whose notes are lost)."""
    return None if value is None or not math.isfinite(value) else float(value)


def _layouts(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    return dict(Counter(str(row["layout"]) for row in rows if row.get("layout") is not None))


def _summary(level: int, control: str | None, members: list[Training]) -> LevelSummary:
    return LevelSummary(
        level=level,
        control=control,
        density=math.fsum(training.density for training in members) / len(members),
        early_stop=Statistic.of(training.early_stop for training in members),
        early_loss=Statistic.of(training.early_loss for training in members),
        early_accuracy=Statistic.of(training.early_accuracy for training in members),
        accuracy=Statistic.of(training.accuracy for training in members),
        seconds=Statistic.of(training.seconds for training in members),
        speedup=Statistic.of(training.speedup for training in members),
    )


def _floor(levels: tuple[LevelSummary, ...]) -> float | None:
    """Least-squares intercept at density 0 over the pruned levels; the dense level runs other kernels and stays out."""
    points = [(level.density, level.seconds.mean) for level in levels if level.level > 0 and level.seconds is not None]
    if len(points) < 3:
        return None
    centre = math.fsum(x for x, _ in points) / len(points)
    height = math.fsum(y for _, y in points) / len(points)
    spread = math.fsum((x - centre) ** 2 for x, _ in points)
    if spread == 0.0:
        return None
    slope = math.fsum((x - centre) * (y - height) for x, y in points) / spread
    intercept = height - slope * centre
    # A slope that is not positive, or an intercept above every measurement or below zero, is noise and no floor.
    return intercept if slope > 0.0 and 0.0 < intercept <= min(y for _, y in points) else None

"""Learning curves and early stops over several seeds: mean, minimum and maximum, as the paper draws them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lth_sparse.engine.level import EarlyStop, early_stop_of
from lth_sparse.errors import ArgumentError, expected

__all__ = ["Curve", "early_stops", "learning_curve"]

History = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Curve:
    """A metric against the step, over seeds.

    Attributes:
        metric: such as ``"test_acc"``.
        steps: ascending; those that every seed recorded.
        mean, minimum, maximum: one figure for each step.
        seeds: number of trainings.
    """

    metric: str
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    seeds: int


def learning_curve(histories: Iterable[History], metric: str = "test_acc") -> Curve:
    """The curve of ``metric`` over the histories of several seeds (``LevelRecord.history``, ``Ticket.history``).

    Steps that not every seed recorded are left out, so that the mean is always over the same networks. Of two rows of
    one step the later counts.

    Raises:
        ArgumentError: no history, or no step at which all of them have ``metric``.
    """
    seeds = [{int(row["step"]): float(row[metric]) for row in history if metric in row} for history in histories]
    if not seeds:
        raise ArgumentError(expected("histories", "at least one", "none"))
    steps = sorted(set.intersection(*(set(seed) for seed in seeds)))
    if not steps:
        raise ArgumentError(expected("metric", "one that every history recorded at common steps", repr(metric)))
    columns = [[seed[step] for seed in seeds] for step in steps]
    return Curve(
        metric,
        tuple(steps),
        tuple(statistics.fmean(column) for column in columns),
        tuple(map(min, columns)),
        tuple(map(max, columns)),
        len(seeds),
    )


def early_stops(histories: Iterable[History]) -> list[EarlyStop | None]:
    """The early stop of each history: its row with the lowest validation loss, the first of equals.

    Found after the fact, when the whole training is over; None for a history without ``val_loss``.
    """
    return [early_stop_of(list(history)) for history in histories]

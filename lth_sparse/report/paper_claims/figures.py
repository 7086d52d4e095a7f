"""What claims compare: figures of two networks of the same seed, out of the studies that were run.

A study is a search over all seeds; its networks are named by study, level and control (`Trained`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lth_sparse.engine import LevelRecord, TicketResult

__all__ = ["Differences", "Studies", "Trained", "accuracy", "level_at_least", "nearest_level", "sooner"]

#: Study name -> seed -> result: "iterative", and those that a network's claims compare it with.
Studies = Mapping[str, Mapping[int, TicketResult]]
Differences = Callable[[Studies], "list[float] | None"]


@dataclass(frozen=True)
class Trained:
    """One network of a study: its level 0 is the dense one; with a control, the control at that level."""

    study: str
    level: int
    control: str | None = None

    def record(self, studies: Studies, seed: int) -> LevelRecord | None:
        """What is known of its training with ``seed``; None where there was none."""
        result = studies.get(self.study, {}).get(seed)
        if result is None:
            return None
        if self.control is not None:
            return result.controls.get((self.level, self.control))
        return result.levels[self.level] if self.level < len(result.levels) else None


def accuracy(first: Trained, second: Trained, *, at_end: bool = False) -> Differences:
    """Test accuracy of the first less that of the second, at the early stop or after the last iteration.

    Over the seeds that have both.
    """

    def figure(record: LevelRecord | None) -> float | None:
        if record is None:
            return None
        return record.metrics.get("test_acc") if at_end else record.accuracy()

    def differences(studies: Studies) -> list[float] | None:
        found = []
        for seed in studies.get(first.study, {}):
            one, other = figure(first.record(studies, seed)), figure(second.record(studies, seed))
            if one is not None and other is not None:
                found.append(one - other)
        return found

    return differences


def sooner(first: Trained, second: Trained) -> Differences:
    """How much earlier the first's early stop comes, as a share of the second's iteration."""

    def differences(studies: Studies) -> list[float] | None:
        found = []
        for seed in studies.get(first.study, {}):
            one, other = first.record(studies, seed), second.record(studies, seed)
            if one is None or other is None or one.early_stop is None or other.early_stop is None:
                continue
            if other.early_stop.step:
                found.append(1.0 - one.early_stop.step / other.early_stop.step)
        return found

    return differences


def nearest_level(densities: Sequence[float], density: float) -> int:
    """The pruned level whose density is nearest on a logarithmic scale."""
    return min(range(1, len(densities)), key=lambda k: abs(math.log(densities[k] / density)))


def level_at_least(densities: Sequence[float], density: float) -> int:
    """The last level that keeps at least ``density``."""
    return max(k for k, left in enumerate(densities) if left >= density)

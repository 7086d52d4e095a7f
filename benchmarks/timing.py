"""Measuring candidates against each other, and handing the samples to pytest-benchmark.

Candidates are interleaved: every round runs each of them once, in a new order. What disturbs a machine for seconds
(other processes, clock frequency, temperature) then disturbs all of them alike, and the ratio of two of them within a
round is far steadier than either time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TypeVar

from lth_sparse.ops.timers import turns

WARM_UP_ROUNDS = 2
LEAST_ROUNDS = 7
MOST_ROUNDS = 2000

Key = TypeVar("Key", bound=Hashable)


def interleave(
    candidates: Mapping[Key, Callable[[], object]],
    seconds: float,
    least_rounds: int = LEAST_ROUNDS,
    warm_up_rounds: int = WARM_UP_ROUNDS,
    untimed: int = 0,
) -> dict[Key, list[float]]:
    """Seconds of each call, a list per candidate of one length; sample i of all candidates is from round i.

    Runs until `seconds` for each candidate have passed, but `least_rounds` at least. Before each timed call go so many
    `untimed` ones of the same candidate: with none, its data is in whatever cache the other candidates left it.
    """
    for _ in range(warm_up_rounds):
        for run in candidates.values():
            run()
    samples: dict[Key, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds * len(candidates)
    with closing(turns(candidates)) as rounds:
        for done, order in enumerate(itertools.islice(rounds, MOST_ROUNDS)):
            if done >= least_rounds and time.perf_counter() > end:
                break
            for name in order:
                for _ in range(untimed):
                    candidates[name]()
                start = time.perf_counter()
                candidates[name]()
                samples[name].append(time.perf_counter() - start)
    return samples


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, linearly interpolated; 0.5 is the median."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


class Replay:
    """A clock that shows recorded samples to pytest-benchmark.

    pytest-benchmark measures one candidate after the other; its tables, `--benchmark-save` and `--benchmark-compare`
    are still wanted for interleaved samples. So its timer is this clock, and the function that it "times" moves the
    clock by the next sample.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._samples: Iterator[float] = iter(())

    def clock(self) -> float:
        """The timer."""
        return self._now

    def load(self, samples: Sequence[float]) -> int:
        """Take the samples to show next; returns the number of rounds that shows all of them."""
        self._samples = iter(samples)
        return len(samples)

    def advance(self) -> None:
        """The function to time."""
        self._now += next(self._samples)

"""Interleaving and quantiles."""

from __future__ import annotations

import pytest

from lth_sparse.benchmarks.timing import Replay, interleave, quantile


def test_every_round_runs_every_candidate_once_in_changing_order() -> None:
    calls: list[str] = []
    candidates = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    samples = interleave(candidates, 0.0, least_rounds=8, warm_up_rounds=1)
    assert {name: len(times) for name, times in samples.items()} == dict.fromkeys("abc", 8)
    rounds = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1


def test_untimed_calls_come_before_each_timed_one() -> None:
    calls: list[str] = []
    candidates = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    samples = interleave(candidates, 0.0, least_rounds=3, warm_up_rounds=0, untimed=2)
    assert {name: len(times) for name, times in samples.items()} == {"a": 3, "b": 3}
    triples = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert len(triples) == 6
    assert all(len(set(one)) == 1 for one in triples)


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (0.2, 1.6)])
def test_quantiles_are_interpolated(share: float, value: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], share) == pytest.approx(value)


def test_replay_shows_the_samples_to_a_timer() -> None:
    replay = Replay()
    assert replay.load([1.0, 0.5]) == 2
    marks = [replay.clock()]
    for _ in range(2):
        replay.advance()
        marks.append(replay.clock())
    assert marks == [0.0, 1.0, 1.5]

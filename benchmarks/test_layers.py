"""Layers against dense torch: `pytest benchmarks` prints time and ratio for each case, layout and density.

Nothing is asserted on time: a machine that is busy must not fail a build. `benchmarks/conftest.py` prints the tables.
"""

from __future__ import annotations

import pytest

from .measure import Comparison, Key, Measurement, Run
from .timing import Replay

REPLAY = Replay()
MEASURED: dict[Comparison, dict[Key, Measurement]] = {}


def measured(comparison: Comparison, run: Run) -> dict[Key, Measurement]:
    """All candidates of a comparison in one interleaved run; the first of its tests pays for it, the others read it."""
    if comparison not in MEASURED:
        MEASURED.clear()
        found = comparison.measure()
        run.add(found)
        MEASURED[comparison] = {(one.provider.name, one.density): one for one in found}
    return MEASURED[comparison]


@pytest.mark.benchmark(timer=REPLAY.clock)
def test_layer(comparison: Comparison, key: Key, results: Run, request: pytest.FixtureRequest) -> None:
    samples = measured(comparison, results)[key].samples
    benchmark = request.getfixturevalue("benchmark")
    benchmark.group = f"{comparison.case} {comparison.mode}, {comparison.threads} threads"
    benchmark.pedantic(REPLAY.advance, rounds=REPLAY.load(samples))

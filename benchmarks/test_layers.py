"""Layers against dense torch: `pytest benchmarks` prints time and ratio for each case, mode and density.

Nothing is asserted on time: a machine that is busy must not fail a build. `benchmarks/conftest.py` prints the table.
"""

from __future__ import annotations

import functools

import pytest
import torch

from benchmarks.cases import Case
from benchmarks.providers import PROVIDERS
from benchmarks.results import Measurement, Results
from benchmarks.timing import Replay, Samples, interleave

REPLAY = Replay()


@functools.lru_cache(maxsize=1)
def measured(case: Case, mode: str, density: float, seconds: float) -> Samples:
    """All providers of a case in one interleaved run; the first of its tests pays for it, the others read theirs."""
    torch.manual_seed(0)
    mask = case.mask(density)
    candidates = {name: make(case, mask)[mode] for name, make in PROVIDERS[case.op].items()}
    return interleave(candidates, seconds)


@pytest.mark.benchmark(timer=REPLAY.clock)
def test_layer(
    case: Case, density: float, mode: str, provider: str, results: Results, request: pytest.FixtureRequest
) -> None:
    samples = measured(case, mode, density, results.seconds)[provider]
    results.add(Measurement(case, mode, density, provider, samples))
    benchmark = request.getfixturevalue("benchmark")
    benchmark.group = f"{case} {mode}, density {density:g}"
    benchmark.pedantic(REPLAY.advance, rounds=REPLAY.load(samples))

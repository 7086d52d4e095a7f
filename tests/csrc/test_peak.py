"""The multiply-add peak: a positive rate for every instruction set and number of threads, and no nonsense accepted."""

from __future__ import annotations

import pytest

from lth_sparse import _C


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", _C.isas())
def test_the_peak_is_a_rate(isa: str, threads: int) -> None:
    before = _C.isa()
    _C.set_isa(isa)
    try:
        assert 1e8 < _C.fma_peak(0.002, threads) < 1e13 * threads
    finally:
        _C.set_isa(before)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_seconds_must_be_positive(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds: expected a positive number"):
        _C.fma_peak(seconds, 1)


def test_threads_start_at_one() -> None:
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        _C.fma_peak(0.001, 0)

"""Statistics over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from lth_sparse.engine import LevelRecord
from lth_sparse.report import Statistic, Training, summarise, trainings_of

MakeRecord = Callable[..., LevelRecord]
MakeSearch = Callable[..., list[Training]]


def test_statistic_is_mean_minimum_and_maximum() -> None:
    assert Statistic.of([1.0, 2.0, 6.0]) == Statistic(3.0, 1.0, 6.0, 3)


def test_statistic_leaves_out_what_was_not_measured() -> None:
    assert Statistic.of([None, 4.0, math.nan, math.inf]) == Statistic(4.0, 4.0, 4.0, 1)


@pytest.mark.parametrize("values", [[], [None], [math.nan]])
def test_statistic_of_nothing_is_none(values: list[float | None]) -> None:
    assert Statistic.of(values) is None


def test_one_summary_per_level_in_order(search: MakeSearch) -> None:
    summary = summarise(reversed(search([0.9, 0.91, 0.92])))
    assert [(level.level, level.control) for level in summary.levels] == [(0, None), (1, None), (2, None)]


def test_controls_are_kept_apart_from_the_ticket(search: MakeSearch) -> None:
    summary = summarise(search([0.9, 0.91], {"reinit": 0.8, "shuffled": 0.7}))
    assert [(c.level, c.control) for c in summary.controls] == [(1, "reinit"), (1, "shuffled")]
    assert summary.controls_at(1) == summary.controls
    assert summary.controls_at(0) == ()


def test_accuracy_statistics_run_over_the_seeds(search: MakeSearch) -> None:
    accuracy = summarise(search([0.9, 0.91])).levels[1].early_accuracy
    assert accuracy is not None
    assert (accuracy.mean, accuracy.minimum, accuracy.maximum) == pytest.approx((0.91, 0.909, 0.911))
    assert accuracy.count == 3


def test_speedup_is_against_the_dense_level_of_the_same_seed(record: MakeRecord) -> None:
    first = trainings_of(0, [record(0, seconds=10.0), record(1, seconds=5.0)], {})
    second = trainings_of(1, [record(0, seconds=3.0), record(1, seconds=1.0)], {})
    assert summarise(first + second).levels[1].speedup == Statistic(2.5, 2.0, 3.0, 2)


def test_lost_seconds_give_no_speedup(record: MakeRecord) -> None:
    trainings = trainings_of(0, [record(0), record(1, seconds=math.nan)], {})
    assert trainings[1].seconds is None
    assert summarise(trainings).levels[1].speedup is None


def test_layouts_are_counted(record: MakeRecord) -> None:
    dense, sparse = trainings_of(0, [record(0), record(1)], {})
    assert dict(dense.layouts) == {}
    assert dict(sparse.layouts) == {"csr": 2, "dense": 1}


def test_without_validation_loss_there_is_no_early_stop(record: MakeRecord) -> None:
    (training,) = trainings_of(0, [record(0, step=None)], {})
    assert (training.early_stop, training.early_accuracy, training.accuracy) == (None, None, 0.9)


def test_floor_is_the_intercept_of_seconds_against_density(search: MakeSearch) -> None:
    seconds = [9.0, *(0.5 + 2.0 * 0.8**index for index in range(1, 6))]
    assert summarise(search([0.9] * 6, seconds=seconds)).floor == pytest.approx(0.5)


@pytest.mark.parametrize("seconds", [[5.0, 1.0, 2.0, 3.0, 4.0], [5.0, 1.0, 1.0, 1.0, 1.0], [5.0, 1.0, 0.5]])
def test_no_floor_where_seconds_do_not_fall_or_levels_are_few(search: MakeSearch, seconds: list[float]) -> None:
    assert summarise(search([0.9] * len(seconds), seconds=seconds)).floor is None


def test_nothing_trained_is_an_empty_summary() -> None:
    summary = summarise([])
    assert (summary.levels, summary.dense, summary.floor) == ((), None, None)

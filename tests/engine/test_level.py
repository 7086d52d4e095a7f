"""What train uses: steps, records, callbacks; and the generator for scripts that own their loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lth_sparse as ls
from lth_sparse.engine import EarlyStop, Level
from lth_sparse.engine.level import early_stop_of
from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError

Search = Callable[..., Any]


@pytest.fixture
def level() -> Level:
    return Level(nn.Sequential(nn.Linear(2, 2)), index=2, density=0.5, seed=0)


def test_early_stop_is_the_argmin_of_the_validation_loss() -> None:
    history = [{"step": s, "val_loss": v, "test_acc": s / 100} for s, v in ((10, 3.0), (20, 1.0), (30, 2.0))]
    assert early_stop_of(history) == EarlyStop(20, {"val_loss": 1.0, "test_acc": 0.2})


def test_early_stop_takes_the_earliest_of_equals() -> None:
    stop = early_stop_of([{"step": s, "val_loss": 1.0} for s in (30, 10, 20)])
    assert stop is not None
    assert stop.step == 10


def test_no_validation_loss_no_early_stop(level: Level) -> None:
    level.record(step=1, train_loss=0.5)
    assert level.early_stop is None


def test_steps_are_counted(level: Level) -> None:
    assert [level.step(), level.step()] == [1, 2]


def test_rows_and_final_metrics_are_kept_apart(level: Level) -> None:
    level.record(step=5, val_loss=1)
    level.record(test_acc=torch.tensor(0.5))
    assert level.history == [{"step": 5, "val_loss": 1.0}]
    assert level.metrics == {"test_acc": 0.5}


@pytest.mark.parametrize("step", ["5", 5.0, True])
def test_a_step_that_is_none_is_refused(level: Level, step: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"train, step of level.record: expected an int"):
        level.record(step=step, val_loss=1.0)


def test_a_nan_in_the_history_names_train(level: Level) -> None:
    with pytest.raises(ArgumentError, match="train, metric 'val_loss': expected a finite number"):
        level.record(step=1, val_loss=math.nan)


def test_a_level_that_is_over_counts_no_steps(search: Search) -> None:
    kept: list[Level] = []

    def train(model: nn.Module, level: Level) -> dict[str, float]:
        kept.append(level)
        return {"test_acc": 0.0}

    search(train=train)
    with pytest.raises(RunError, match="level 0 is over"):
        kept[0].step()


def test_wall_time_is_that_of_the_train_call(search: Search) -> None:
    result = search()
    assert all(record.seconds > 0 for record in result.levels)


def test_callbacks_hear_of_everything_in_order(search: Search) -> None:
    class Listener:
        def __init__(self) -> None:
            self.events: list[Any] = []

        def on_level_start(self, level: Level) -> None:
            torch.rand(3)
            self.events.append(("start", level.index, level.control))

        def on_step(self, level: Level) -> None:
            self.events.append(("step", level.steps))

        def on_record(self, level: Level, row: dict[str, Any]) -> None:
            self.events.append(("record", row["step"]))

        def on_level_end(self, record: Any) -> None:
            self.events.append(("end", record.index, record.control))

    class Partial:
        def on_level_end(self, record: Any) -> None:
            pass

    listener = Listener()
    result = search(levels=1, controls="reinit", callbacks=[listener, Partial()])
    training = (
        [("step", s) for s in (1, 2, 3, 4)] + [("record", 4)] + [("step", s) for s in (5, 6, 7, 8)] + [("record", 8)]
    )
    expected: list[Any] = []
    for index, control in ((0, None), (1, None), (1, "reinit")):
        expected += [("start", index, control), *training, ("end", index, control)]
    assert listener.events == expected
    assert result.ticket.hash == search(levels=1).ticket.hash


def test_a_script_that_owns_its_loop_gets_the_same_tickets(search: Search, net: nn.Module, make_train: Any) -> None:
    train = make_train()
    loop = ls.levels(net, levels=3, rate=0.3)
    for level in loop:
        level.record(**train(level.model, level))
    result, other = loop.result(), search()
    assert [ticket.hash for ticket in result.tickets] == [ticket.hash for ticket in other.tickets]


def test_levels_yields_controls_too(net: nn.Module) -> None:
    seen = [(level.index, level.control) for level in ls.levels(net, levels=1, controls=("reinit", "shuffled"))]
    assert seen == [(0, None), (1, None), (1, "reinit"), (1, "shuffled")]


def test_levels_checks_its_arguments_at_once(net: nn.Module) -> None:
    with pytest.raises(ArgumentError, match="rate: expected"):
        ls.levels(net, rate=3)


def test_a_loop_left_early_has_what_is_finished(net: nn.Module, make_train: Any) -> None:
    train, loop = make_train(), ls.levels(net, levels=3)
    for level in loop:
        if level.index == 2:
            break
        level.record(**train(level.model, level))
    loop.close()
    assert len(loop.result().tickets) == 2


def test_a_level_describes_itself(level: Level) -> None:
    assert repr(level) == "Level(index=2, density=0.5)"

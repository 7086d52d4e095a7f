"""Rewinding to an epoch, learning rate rewinding, fine-tuning, and the rewind point found by stability."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lth_sparse as ls
from lth_sparse.engine.analyses import Barrier
from lth_sparse.engine.stability import CANDIDATES, is_no_data_order, smallest_stable
from lth_sparse.errors import ArgumentError, ArgumentTypeError

Search = Callable[..., Any]


def epochs(data: Any, count: int = 4, watch: Callable[..., None] | None = None) -> Any:
    """A loop of ``count`` epochs of 3 batches, a schedule that halves the rate after each, and a scaler."""

    def train(model: nn.Module, level: Any) -> dict[str, float]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        level.attach(optimizer=optimizer, scheduler=scheduler, scaler=scaler)
        if watch is not None:
            watch(model, level, optimizer, scaler)
        x, y = data
        for _ in range(level.start_step // 3, count):
            order = torch.randperm(len(x))
            for batch in order.split(32):
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(model(x[batch]), y[batch])).backward()
                scaler.step(optimizer)
                scaler.update()
                level.step()
            scheduler.step()
            level.epoch()
        return {"test_acc": 0.5}

    return train


def test_rewinding_to_an_epoch_is_rewinding_to_its_last_step(search: Search, data: Any) -> None:
    """But for the scheduler, which steps between the two."""
    starts: list[Any] = []

    def watch(model: nn.Module, level: Any, optimizer: Any, scaler: Any) -> None:
        starts.append((level.start_step, optimizer.param_groups[0]["lr"], scaler.get_scale(), float(torch.rand(()))))

    epoch = search(levels=2, rewind="2ep", train=epochs(data, watch=watch))
    assert starts[0][:3] == (0, 0.1, 8.0)
    assert starts[1][:3] == (6, 0.025, 64.0)
    assert starts[1] == starts[2]
    step = search(levels=2, rewind="6it", train=epochs(data, watch=watch))
    assert starts[4][1] == 0.05
    assert torch.equal(epoch.tickets[1].initial["fc.bias"], step.tickets[1].initial["fc.bias"])


def test_level_0_of_fewer_epochs_is_an_error(search: Search, data: Any) -> None:
    with pytest.raises(ArgumentError, match=r"rewind='9ep': expected train to call level\.epoch\(\).*got 4 epochs"):
        search(rewind="9ep", train=epochs(data))


def test_learning_rate_rewinding_replays_the_schedule_on_trained_weights(search: Search, data: Any) -> None:
    rates: list[float] = []

    def watch(model: nn.Module, level: Any, optimizer: Any, scaler: Any) -> None:
        assert not level.finetunes
        rates.append(optimizer.param_groups[0]["lr"])

    result = search(levels=2, rewind="lr", train=epochs(data, watch=watch))
    assert rates == [0.1, 0.1, 0.1]
    for k in (1, 2):
        before, now = result.tickets[k - 1].state_dict("trained"), result.tickets[k]
        assert torch.equal(now.initial["fc.weight"], before["fc.weight"][now.masks["fc.weight"]])


def test_fine_tuning_goes_on_at_the_last_learning_rate_without_momentum(search: Search, data: Any) -> None:
    rates: list[float] = []

    def watch(model: nn.Module, level: Any, optimizer: Any, scaler: Any) -> None:
        assert level.finetunes == (level.index > 0 and level.control is None)
        assert level.start_step == 0
        assert not optimizer.state
        rates.append(optimizer.param_groups[0]["lr"])

    result = search(levels=2, rewind="finetune", controls=["shuffled"], train=epochs(data, watch=watch))
    assert rates[:3] == [0.1, 0.1 / 16, 0.1 / 16]
    assert rates[3] == 0.1  # a control is trained as a network of its own, from theta_0
    before, now = result.tickets[0].state_dict("trained"), result.tickets[1]
    assert torch.equal(now.initial["fc.weight"], before["fc.weight"][now.masks["fc.weight"]])


@pytest.mark.parametrize("first", range(6))
def test_bisection_finds_the_first_stable_step(first: int) -> None:
    looked_at: list[int] = []

    def barrier(step: int) -> Any:
        looked_at.append(step)
        yield step
        height = 0.0 if step >= 10 * first else 0.5
        return Barrier((0.0, 0.5, 1.0), (0.0, height, 0.0))

    def run() -> Any:
        found.append((yield from smallest_stable([0, 10, 20, 30, 40, 50], barrier)))

    found: list[int] = []
    trained = list(run())
    assert found == [10 * first]
    assert trained == looked_at
    assert len(looked_at) <= 4


def test_without_a_stable_step_the_last_is_taken_and_said_so() -> None:
    def barrier(step: int) -> Any:
        yield step
        return Barrier((0.0, 0.5, 1.0), (0.1, 0.4, 0.1))

    search = smallest_stable([0, 10], barrier)
    next(search)
    with pytest.warns(UserWarning, match=r"not stable at any candidate up to step 10, where the barrier is 30\.0"):
        next(search, None)


def auto(search: Search, data: Any, **options: Any) -> Any:
    """rewind="auto" on the epochs above, with the share of wrong answers on the training data."""
    x, y = data

    def wrong(model: nn.Module) -> float:
        return float((model(x).argmax(1) != y).float().mean())

    return search(levels=1, rewind="auto", rewind_error=wrong, rewind_steps=(0, 3, 6, 100), **options)


def test_the_rewind_point_is_found_and_used(search: Search, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which candidate is stable is a matter of luck with so small a network, so the bound decides it here."""
    seen: list[Any] = []

    def watch(model: nn.Module, level: Any, optimizer: Any, scaler: Any) -> None:
        seen.append((level.control, level.start_step, float(torch.rand(()))))

    monkeypatch.setattr(Barrier, "stable", lambda self, bound=0.02: True)
    result = auto(search, data, train=epochs(data, watch=watch))
    pairs = [one for one in seen if one[0] == "stability"]
    assert [start for _, start, _ in pairs] == [6, 6, 3, 3, 0, 0]  # step 100 was never reached
    assert len({draw for _, _, draw in pairs}) == 6
    assert sorted(result.stability) == [0, 3, 6]
    assert all(len(barrier.errors) == 30 for barrier in result.stability.values())
    assert seen[-1][:2] == (None, 0)
    monkeypatch.setattr(Barrier, "stable", lambda self, bound=0.02: self is not None and False)
    with pytest.warns(UserWarning, match="not stable at any candidate up to step 6"):
        assert auto(search, data, train=epochs(data)).tickets[1] != result.tickets[1]


def test_a_killed_search_for_the_rewind_point_goes_on(
    search: Search, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Barrier, "stable", lambda self, bound=0.02: True)
    whole = auto(search, data, train=epochs(data))
    calls = 0

    def watch(model: nn.Module, level: Any, optimizer: Any, scaler: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:  # level 0, the pair of step 6, one of step 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        auto(search, data, train=epochs(data, watch=watch), directory=tmp_path)
    assert (tmp_path / "candidate_3.safetensors").exists()
    assert json.loads((tmp_path / "stability_6.json").read_text())["positions"][-1] == 1.0
    calls = 10
    result = auto(search, data, train=epochs(data, watch=watch), directory=tmp_path)
    assert calls == 10 + 5  # two pairs and level 1
    assert result.tickets == whole.tickets
    assert result.stability == whole.stability
    assert not list(tmp_path.glob("candidate_*"))
    again = auto(search, data, train=epochs(data, watch=watch), directory=tmp_path)
    assert calls == 15
    assert again.stability == whole.stability


def test_auto_needs_to_know_what_an_error_is(search: Search) -> None:
    with pytest.raises(ArgumentTypeError, match="rewind_error: expected a callable"):
        search(rewind="auto")
    with pytest.raises(ArgumentError, match="rewind_steps: expected steps as int, none below 0, got -1"):
        search(rewind="auto", rewind_error=lambda model: 0.0, rewind_steps=[-1])
    assert CANDIDATES[:3] == (0, 16, 32)


def test_a_loader_starts_fresh_in_a_copy() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    assert is_no_data_order(optimizer)
    assert is_no_data_order(torch.optim.lr_scheduler.StepLR(optimizer, 1))
    assert not is_no_data_order(object())


def test_an_early_bird_is_found_when_the_mask_settles() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    early = ls.EarlyBird(rate=0.5, window=2)
    assert [early.update(model) for _ in range(2)] == [False, False]
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(16, 16))  # type: ignore[operator, union-attr]
    assert not early.update(model)
    assert early.distances[2] > 0.1
    assert [early.update(model) for _ in range(2)] == [False, True]
    assert early.found_at == 5
    assert early.mask is not None
    assert early.mask.nnz == (256 + 64) // 2


def test_early_birds_check_what_they_are_given() -> None:
    for keyword, value in (("window", 0), ("rate", 1.5), ("threshold", 0), ("scope", "network")):
        with pytest.raises(ArgumentError, match=f"{keyword}: expected"):
            ls.EarlyBird(**{keyword: value})
    early = ls.EarlyBird()
    early.update(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ArgumentError, match=r"model: expected 0.weight of shape \[4, 4\], got \[6, 4\]"):
        early.update(nn.Sequential(nn.Linear(4, 6)))
    with pytest.raises(ArgumentError, match="model: expected the layers of the update before, got others"):
        early.update(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))

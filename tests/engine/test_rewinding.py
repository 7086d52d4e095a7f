"""Rewinding to step k and "continue": equal to a run written by hand, optimiser, scheduler and random states too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lth_sparse as ls
from lth_sparse.engine.rewinding import Rewind
from lth_sparse.errors import ArgumentError, ArgumentTypeError

Search = Callable[..., Any]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("init", (("step", 0), False)),
        ("500it", (("step", 500), False)),
        ("0it", (("step", 0), False)),
        ("3ep", (("epoch", 3), False)),
        ("0ep", (("step", 0), False)),
        ("continue", (("step", 0), True)),
        ("lr", (("step", 0), True)),
        ("finetune", (("end", 0), True)),
        ("auto", (None, False)),
    ],
)
def test_parse(text: str, expected: tuple[Any, bool]) -> None:
    rewind = Rewind.parse(text)
    assert (rewind.moment, rewind.keeps_training) == expected


@pytest.mark.parametrize("text", ["", "500", "it", "-5it", "5epochs", "Init", "1.5it", "LR"])
def test_unknown_rewind_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="rewind: expected 'init', 'auto', 'continue', 'lr', 'finetune', a number"):
        Rewind.parse(text)


def test_rewind_must_be_a_string() -> None:
    with pytest.raises(ArgumentTypeError, match="rewind"):
        Rewind.parse(500)  # type: ignore[arg-type]


def _steps(model: nn.Module, optimizer: Any, scheduler: Any, data: Any, first: int, last: int) -> None:
    """The steps of conftest's training loop, by hand."""
    x, y = data[0].double(), data[1]
    for _ in range(first, last + 1):
        batch = torch.randperm(len(x))[:32]
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        scheduler.step()


def _optimiser(model: nn.Module, kind: str) -> tuple[Any, Any]:
    if kind == "sgd":
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 6], 0.5)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_rewinding_to_step_k_equals_a_run_by_hand(search: Search, net: nn.Module, data: Any, kind: str) -> None:
    net.double()

    def train(model: nn.Module, level: Any) -> dict[str, float]:
        optimizer, scheduler = _optimiser(model, kind)
        level.attach(optimizer=optimizer, scheduler=scheduler)
        model.train()
        x, y = data[0].double(), data[1]
        for _ in range(level.start_step + 1, 9):
            batch = torch.randperm(len(x))[:32]
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            scheduler.step()
            level.step()
        return {"test_acc": 0.0}

    result = search(levels=2, rewind="4it", train=train)

    dense = copy.deepcopy(net).train()
    torch.manual_seed(0)
    optimizer, scheduler = _optimiser(dense, kind)
    _steps(dense, optimizer, scheduler, data, 1, 4)
    rng = torch.get_rng_state()
    for ticket in result.tickets[1:]:
        model = copy.deepcopy(dense)
        again, schedule = _optimiser(model, kind)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        schedule.load_state_dict(copy.deepcopy(scheduler.state_dict()))
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, mask in ticket.masks.items():
                parameters[name].mul_(mask)
                parameters[name].register_hook(lambda grad, mask=mask: grad * mask)
                for value in again.state[parameters[name]].values():
                    if isinstance(value, torch.Tensor) and value.shape == mask.shape:
                        value.mul_(mask)
        torch.set_rng_state(rng)
        _steps(model, again, schedule, data, 5, 8)
        trained = ticket.state_dict("trained")
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, trained[name], rtol=1e-8, atol=1e-11)


def test_levels_start_at_step_k_with_its_weights_and_buffers(search: Search, make_train: Any) -> None:
    starts: list[tuple[int, int, float]] = []

    def watch(model: nn.Module, level: Any) -> None:
        starts.append((level.start_step, int(model.norm.num_batches_tracked), float(torch.rand(()))))  # type: ignore[union-attr, arg-type]

    result = search(levels=2, rewind="4it", train=make_train(watch=watch))
    assert [start[:2] for start in starts] == [(0, 0), (4, 4), (4, 4)]
    assert starts[1] == starts[2]
    assert starts[0][2] != starts[1][2]
    dense, first = result.tickets[0], result.tickets[1]
    assert not torch.equal(dense.initial["fc.bias"], first.initial["fc.bias"])
    assert torch.equal(first.initial["fc.bias"], result.tickets[2].initial["fc.bias"])


def test_history_of_a_rewound_level_goes_on_counting(search: Search, make_train: Any) -> None:
    result = search(levels=1, rewind="4it", train=make_train(steps=12))
    assert [row["step"] for row in result.levels[1].history] == [8, 12]


def test_rewinding_to_step_0_is_rewinding_to_init(search: Search) -> None:
    zero, init = search(rewind="0it"), search(rewind="init")
    assert torch.equal(zero.ticket.trained["fc.weight"], init.ticket.trained["fc.weight"])


def test_level_0_that_ends_before_step_k_is_an_error(search: Search, make_train: Any) -> None:
    with pytest.raises(ArgumentError, match=r"rewind='50it': expected train to call level\.step\(\).*got 8 steps"):
        search(rewind="50it", train=make_train(steps=8))


def test_forgetting_to_attach_at_a_later_level_warns(search: Search, make_train: Any, data: Any) -> None:
    full = make_train()

    def train(model: nn.Module, level: Any) -> dict[str, float]:
        return full(model, level) if level.index == 0 else {"test_acc": 0.0}

    with pytest.warns(UserWarning, match="train: attached optimizer, scheduler at level 0 but not at level 1"):
        search(levels=1, rewind="4it", train=train)


def test_continue_trains_the_trained_weights_on(search: Search, net: nn.Module, make_train: Any) -> None:
    starts: list[Any] = []
    train = make_train(watch=lambda model, level: starts.append(ls.dense_state_dict(model)["fc.weight"].clone()))
    result = search(levels=2, rewind="continue", train=train)
    for k in (1, 2):
        before = result.tickets[k - 1].state_dict("trained")["fc.weight"]
        assert torch.equal(starts[k], before * result.tickets[k].masks["fc.weight"])
    theta0 = net.fc.weight.detach()  # type: ignore[union-attr, operator]
    assert torch.equal(result.ticket.initial["fc.weight"], theta0[result.ticket.masks["fc.weight"]])


def test_an_optimiser_over_other_groups_is_refused(search: Search, make_train: Any) -> None:
    full = make_train()

    def train(model: nn.Module, level: Any) -> dict[str, float]:
        if level.index == 0:
            return full(model, level)
        level.attach(optimizer=torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1))
        return {"test_acc": 0.0}

    with pytest.raises(ArgumentError, match="optimizer: expected an optimizer over the same parameter groups"):
        search(levels=1, rewind="4it", train=train)


def test_what_cannot_be_attached_is_refused(search: Search) -> None:
    def train(model: nn.Module, level: Any) -> dict[str, float]:
        level.attach(optimizer=3)
        return {}

    with pytest.raises(ArgumentTypeError, match=r"attach\(optimizer=\.\.\.\): expected an object with state_dict"):
        search(train=train)

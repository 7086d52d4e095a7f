"""The loop itself: what each level starts from, what it keeps, and every mistake of well-known code proved absent."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lth_sparse as ls
from lth_sparse.engine.rng import capture_rng
from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError

Search = Callable[..., Any]


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in ls.dense_state_dict(model).items()}


def equal_states(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def starts(make_train: Callable[..., Any]) -> tuple[list[Any], Callable[..., Any]]:
    """(level index, control, dense state) at the start of each training, and the train function that notes them."""
    seen: list[Any] = []
    return seen, make_train(watch=lambda model, level: seen.append((level.index, level.control, state_of(model))))


# --- what a level starts from ---------------------------------------------------------------------------------------


def test_survivors_restart_at_theta_0_bit_for_bit(search: Search, starts: Any, net: nn.Module) -> None:
    theta0 = state_of(net)
    seen, train = starts
    result = search(train=train)
    for (index, _, state), ticket in zip(seen, result.tickets, strict=True):
        assert index == ticket.level
        for name, tensor in state.items():
            mask = ticket.masks.get(name)
            expected = theta0[name] if mask is None else torch.where(mask, theta0[name], torch.zeros(()))
            assert torch.equal(tensor, expected), name


def test_level_0_is_dense_and_untouched(search: Search, make_train: Any, net: nn.Module) -> None:
    theta0 = state_of(net)

    def watch(model: nn.Module, level: Any) -> None:
        if level.index == 0:
            assert not list(ls.nn.sparse_modules(model))
            assert equal_states(state_of(model), theta0)

    result = search(train=make_train(watch=watch))
    assert result.levels[0].density == 1.0


def test_later_levels_train_compact_parameters_only(search: Search, make_train: Any) -> None:
    sizes: list[int] = []
    search(train=make_train(watch=lambda model, level: sizes.append(sum(p.numel() for p in model.parameters()))))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.45 * sizes[0]


def test_the_users_model_is_never_modified(search: Search, net: nn.Module) -> None:
    before, kinds = state_of(net), [type(module) for module in net.modules()]
    search(controls=("reinit", "shuffled"))
    assert equal_states(before, state_of(net))
    assert kinds == [type(module) for module in net.modules()]
    assert all(parameter.grad is None for parameter in net.parameters())


def test_random_states_are_equal_at_the_start_of_every_level(search: Search, make_train: Any) -> None:
    draws: list[tuple[float, float, float]] = []
    search(train=make_train(watch=lambda *_: draws.append((float(torch.rand(())), np.random.rand(), random.random()))))
    assert len(draws) == 4
    assert len(set(draws)) == 1


def test_random_states_of_the_caller_come_back(search: Search) -> None:
    before = capture_rng()
    search(controls="reinit")
    after = capture_rng()
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"]
    assert np.array_equal(before["numpy"]["state"]["key"], after["numpy"]["state"]["key"])


def test_batchnorm_statistics_restart_at_every_level(search: Search, starts: Any) -> None:
    seen, train = starts
    result = search(train=train)
    for (_, _, state), ticket in zip(seen, result.tickets, strict=True):
        assert torch.equal(state["norm.running_mean"], torch.zeros(4))
        assert int(state["norm.num_batches_tracked"]) == 0
        assert not torch.equal(ticket.trained["norm.running_mean"], torch.zeros(4))


def test_buffers_outside_the_state_dict_restart_too(search: Search, make_train: Any) -> None:
    calls: list[float] = []
    search(train=make_train(watch=lambda model, level: calls.append(float(model.calls))))
    assert calls == [0.0] * 4


def test_the_optimiser_starts_fresh_when_rewound_to_init(search: Search, data: Any) -> None:
    x, y = data

    def train(model: nn.Module, level: Any) -> dict[str, float]:
        optimizer = torch.optim.Adam(model.parameters())
        level.attach(optimizer=optimizer)
        assert not optimizer.state
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        level.step()
        return {"test_acc": 1.0}

    search(train=train)


# --- what is kept -----------------------------------------------------------------------------------------------


def test_mask_is_the_largest_magnitudes_of_the_trained_survivors(search: Search) -> None:
    result = search(controls=())
    for before, after in zip(result.tickets, result.tickets[1:], strict=False):
        trained = before.state_dict("trained")
        for name, mask in after.masks.items():
            survivors = trained[name].abs()[before.masks[name]]
            kept = survivors.sort(descending=True).values[: int(mask.sum())]
            assert torch.equal(trained[name].abs()[mask].sort(descending=True).values, kept)


def test_negative_weights_are_pruned_by_magnitude_not_by_value(search: Search) -> None:
    ticket = search(levels=1).tickets[1]
    before = search(levels=0).ticket.state_dict("trained")["fc.weight"]
    kept = before[ticket.masks["fc.weight"]]
    assert bool((kept < 0).any())
    assert bool((kept > 0).any())


def test_masks_are_nested_and_counts_exact(search: Search) -> None:
    result = search(levels=4, rate=0.2)
    for before, after in zip(result.tickets, result.tickets[1:], strict=False):
        assert after.masks.is_subset(before.masks)
    for k, ticket in enumerate(result.tickets):
        counts = {stats.name: stats.nnz for stats in ticket.masks.stats()}
        for name, rate in (("conv.weight", 0.2), ("fc.weight", 0.2), ("out.weight", 0.1)):
            assert abs(counts[name] - ticket.masks[name].numel() * (1 - rate) ** k) <= 0.5


def test_fifteen_levels_are_fifteen_prunings_and_sixteen_trainings(search: Search) -> None:
    trainings: list[int] = []

    def train(model: nn.Module, level: Any) -> dict[str, float]:
        trainings.append(level.index)
        return {"test_acc": 0.0}

    result = search(train=train, levels=None, rate=0.2)
    assert trainings == list(range(16))
    assert len(result.tickets) == len(result.levels) == 16
    assert result.ticket.level == 15


def test_momentum_and_decay_never_revive_a_pruned_weight(search: Search) -> None:
    ticket = search(levels=3).ticket
    for name, mask in ticket.masks.items():
        trained = ticket.state_dict("trained")[name]
        assert bool((trained[~mask] == 0).all())
        assert bool((trained[mask] != 0).any())


def test_biases_and_normalisation_are_never_pruned(search: Search) -> None:
    assert list(search(levels=1).ticket.masks) == ["conv.weight", "fc.weight", "out.weight"]


def test_a_survivor_that_is_exactly_zero_stays_a_survivor(search: Search, net: nn.Module) -> None:
    with torch.no_grad():
        net.fc.weight.zero_()  # type: ignore[union-attr, operator]
    result = search(levels=2, train=lambda model, level: {"test_acc": 0.0})
    assert [int(ticket.masks["fc.weight"].sum()) for ticket in result.tickets] == [1728, 1210, 847]


def test_a_layer_held_at_the_floor_warns_once_and_says_so(search: Search) -> None:
    with pytest.warns(
        UserWarning, match=r"out\.weight: level 1 would prune it below min_kept=30; it keeps 30"
    ) as caught:
        result = search(levels=4, rate=0.1, output_rate=0.3, min_kept=30, freeze="conv")
    assert len(caught) == 1
    assert [int(ticket.masks["out.weight"].sum()) for ticket in result.tickets] == [36, 30, 30, 30, 30]


def test_a_level_model_can_be_copied_deeply(search: Search, make_train: Any, data: Any) -> None:
    def watch(model: nn.Module, level: Any) -> None:
        model.eval()
        assert torch.equal(copy.deepcopy(model)(data[0]), model(data[0]))

    search(train=make_train(watch=watch))


def test_frozen_layers_stay_dense_and_count_in_the_density(search: Search, make_train: Any) -> None:
    kinds: list[type] = []
    result = search(levels=1, freeze="fc", train=make_train(watch=lambda model, _: kinds.append(type(model.fc))))
    assert kinds == [nn.Linear, nn.Linear]
    total = 36 + 1728 + 36
    assert result.ticket.density == pytest.approx((1728 + 25 + 31) / total, abs=1e-3)


def test_one_shot_prunes_once_to_the_final_rate(search: Search) -> None:
    result = search(levels=None, one_shot=True, rate=0.9, output_rate=0.9)
    assert len(result.tickets) == 2
    assert result.ticket.density == pytest.approx(0.1, abs=0.01)


def test_global_scope_meets_the_total(search: Search) -> None:
    result = search(levels=2, scope="global", rate=0.2, output_rate=0.2)
    assert result.ticket.masks.nnz == round(1800 * 0.64)


def test_block_granularity_makes_masks_of_blocks(search: Search) -> None:
    mask = search(levels=2, granularity="block:4x4", rate=0.25).ticket.masks["fc.weight"]
    blocks = mask.reshape(3, 4, 36, 4).permute(0, 2, 1, 3).reshape(108, 16).sum(1)
    assert set(blocks.tolist()) == {0, 16}


def test_a_callable_criterion_decides(search: Search) -> None:
    result = search(levels=1, criterion=lambda name, weight: -weight.abs())
    trained = result.tickets[0].state_dict("trained")["fc.weight"].abs()
    mask = result.ticket.masks["fc.weight"]
    assert float(trained[mask].max()) <= float(trained[~mask].min())


def test_equal_seeds_give_equal_tickets_and_other_seeds_others(search: Search) -> None:
    first, second, third = search(seed=1), search(seed=1), search(seed=2)
    assert first.ticket.hash == second.ticket.hash
    assert first.ticket.hash != third.ticket.hash


def test_relus_are_fused_and_formats_kept_without_changing_the_search(make_train: Any, data: Any) -> None:
    torch.manual_seed(3)
    features = data[0].flatten(1).shape[1]
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, int(data[1].max()) + 1))
    seen: list[tuple[int, str | None, str]] = []

    def watch(sparse: Any, level: Any) -> None:
        seen.append((level.index, getattr(sparse[1], "activation", None), type(sparse[0]).__module__))

    options = {"levels": 1, "layout": "csr"}
    plain = ls.find_ticket(model, make_train(watch=watch), **options)
    kept = ls.find_ticket(model, make_train(watch=watch), feature_major=True, **options)
    ours = "lth_sparse.nn.feature_major"
    assert seen == [
        (0, None, "torch.nn.modules.flatten"),
        (1, "relu", "torch.nn.modules.flatten"),
        (0, None, "torch.nn.modules.flatten"),
        (1, "relu", ours),
    ]
    one, other = (result.tickets[-1].state_dict("trained") for result in (plain, kept))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)


def test_break_even_densities_decide_where_layers_are_sparse(search: Search, make_train: Any, net: nn.Module) -> None:
    names = [f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    for even, layout in ((1.0, "csr"), (0.0, "dense")):
        found: list[str] = []

        def watch(model: Any, level: Any, found: list[str] = found) -> None:
            if level.index:
                found.extend(m.layout.kind for m in model.modules() if isinstance(m, ls.nn.SparseLinear))

        search(levels=1, train=make_train(watch=watch), break_even=dict.fromkeys(names, even))
        assert set(found) == {layout}


def test_each_ticket_names_its_parent(search: Search) -> None:
    result = search()
    assert [ticket.parent for ticket in result.tickets] == [None, *(ticket.hash for ticket in result.tickets[:-1])]


def test_a_level_equals_a_hand_written_masked_training(search: Search, net: nn.Module, make_train: Any) -> None:
    net.double()
    result = search(levels=1)
    model = copy.deepcopy(net)
    _mask_by_hand(model, result.ticket.masks)
    torch.manual_seed(0)
    make_train()(model, ls.engine.Level(model, index=1, density=1.0, seed=0))
    trained = result.ticket.state_dict("trained")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, trained[name], rtol=1e-9, atol=1e-12)


# --- mistakes of the user -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, ArgumentTypeError, "train: expected a mapping"),
        (0.9, ArgumentTypeError, "train: expected a mapping"),
        ({"test_acc": "high"}, ArgumentTypeError, "train, metric 'test_acc': expected a number"),
        ({"test_acc": float("nan")}, ArgumentError, "train, metric 'test_acc': expected a finite number"),
        ({1: 0.5}, ArgumentTypeError, "train: expected metric names as strings"),
        ({"test_acc": torch.ones(2)}, ArgumentTypeError, "train, metric 'test_acc'"),
    ],
)
def test_a_bad_result_of_train_names_train(search: Search, returned: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        search(train=lambda model, level: returned)


@pytest.mark.parametrize("value", [1, True, np.float32(1), torch.tensor(1.0), torch.tensor([1.0])])
def test_numbers_of_every_kind_are_metrics(search: Search, value: Any) -> None:
    metrics = search(levels=0, train=lambda model, level: {"test_acc": value}).levels[0].metrics
    assert metrics == {"test_acc": 1.0}
    assert type(metrics["test_acc"]) is float


def test_a_metric_may_be_called_step(search: Search) -> None:
    assert search(levels=0, train=lambda model, level: {"step": 3}).levels[0].metrics == {"step": 3.0}


def test_weights_that_became_nan_are_an_error_not_a_mask(search: Search) -> None:
    def train(model: nn.Module, level: Any) -> dict[str, float]:
        with torch.no_grad():
            model.fc.weight[0, 0] = torch.nan  # type: ignore[union-attr, index]
        return {"test_acc": 0.0}

    with pytest.raises(RunError, match=r"fc\.weight: the trained weights hold NaN"):
        search(train=train)


def test_train_may_not_change_the_structure_of_the_model(search: Search) -> None:
    def train(model: nn.Module, level: Any) -> dict[str, float]:
        model.extra = nn.Linear(2, 2)
        return {"test_acc": 0.0}

    with pytest.raises(RunError, match=r"train: expected level.model to keep its parameters .*extra"):
        search(train=train)


def test_train_must_be_callable(net: nn.Module) -> None:
    with pytest.raises(ArgumentTypeError, match="train: expected a callable"):
        ls.find_ticket(net, "train")  # type: ignore[arg-type]


def test_an_error_inside_train_comes_through(search: Search) -> None:
    def train(model: nn.Module, level: Any) -> dict[str, float]:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        search(train=train)


def _mask_by_hand(model: nn.Module, masks: Any) -> None:
    """A dense model whose pruned weights are zero and get no gradient."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)
            parameters[name].register_hook(lambda grad, mask=mask: grad * mask)


def test_blocks_of_channels_last_weights_are_pruned_and_stored(search: Any, make_train: Any) -> None:
    layers = (nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, 3))
    model, seen = nn.Sequential(*layers), []

    def watch(model: nn.Module, level: Any) -> None:
        seen.append(model[2].layout.channels_last if level.index else None)

    options = {"granularity": "block:2x2:channels_last", "layout": "bsr", "model": copy.deepcopy(model)}
    ticket = search(levels=1, train=make_train(watch=watch), **options).ticket
    assert seen == [None, True]
    sparse = ticket.apply(model, layout="bsr", block=(2, 2), channels_last=True)  # refused were they no such blocks
    assert 0 < sparse[2].layout.nblocks < 3 * 9 * 2

"""Controls beyond the two required ones: what each keeps of the ticket, and which of them judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lth_sparse import find_ticket
from lth_sparse.engine.analyses import order_barrier
from lth_sparse.engine.controls import CONTROLS, JUDGES, REQUIRED, altered, control_masks, rescaled
from lth_sparse.engine.granularity import Granularity
from lth_sparse.engine.result import ticket_kind
from lth_sparse.errors import ArgumentError

Search = Callable[..., Any]


@pytest.fixture
def all_controls(search: Search) -> Any:
    return search(levels=2, controls=tuple(CONTROLS))


def dense(ticket: Any, name: str = "fc.weight") -> torch.Tensor:
    found: torch.Tensor = ticket.state_dict()[name]
    return found


def test_every_control_is_trained_and_stored(all_controls: Any) -> None:
    assert [kind for _, kind in all_controls.controls] == list(CONTROLS)
    hashes = {ticket.hash for ticket in all_controls.control_tickets.values()}
    assert len(hashes) == len(CONTROLS)


@pytest.mark.parametrize("kind", CONTROLS)
def test_controls_keep_as_many_weights(all_controls: Any, kind: str) -> None:
    ticket, control = all_controls.tickets[2], all_controls.control_tickets[2, kind]
    assert control.masks.nnz == ticket.masks.nnz
    same_counts = [int(control.masks[name].sum()) == int(mask.sum()) for name, mask in ticket.masks.items()]
    assert all(same_counts) or kind == "global_shuffled"
    same_places = control.masks.equals(ticket.masks)
    assert same_places == (kind not in ("shuffled", "random", "global_shuffled", "prune_at_0"))


def test_d_m_draws_from_the_survivors_of_the_same_layer(all_controls: Any) -> None:
    ticket, control = all_controls.tickets[2], all_controls.control_tickets[2, "dm_reinit"]
    for name in ticket.masks:
        assert set(control.initial[name].tolist()) <= set(ticket.initial[name].tolist())
        assert not torch.equal(control.initial[name], ticket.initial[name])
    assert torch.equal(control.initial["fc.bias"], ticket.initial["fc.bias"])


def test_pruning_at_0_keeps_the_largest_initial_weights(all_controls: Any, net: nn.Module) -> None:
    control = all_controls.control_tickets[2, "prune_at_0"]
    theta0, mask = net.fc.weight.detach(), control.masks["fc.weight"]  # type: ignore[union-attr, operator]
    assert float(theta0[mask].abs().min()) > float(theta0[~mask].abs().max())
    assert torch.equal(control.initial["fc.weight"], theta0[mask])


@pytest.mark.parametrize("rewind", ["init", "4it", "lr", "finetune", "continue"])
def test_reordered_is_the_network_itself_in_another_data_order(search: Search, rewind: str) -> None:
    found = search(levels=2, rewind=rewind, controls="reordered", control_levels=[0, 2], strict=True)
    assert list(found.controls) == [(0, "reordered"), (2, "reordered")]
    for level in (0, 2):
        ticket, reordered = found.tickets[level], found.control_tickets[level, "reordered"]
        assert reordered.masks.equals(ticket.masks)
        assert reordered.parent == ticket.hash
        begin = ticket.state_dict()
        if level and rewind == "continue":  # whose tickets hold theta_0, whatever they were trained from
            trained = found.tickets[level - 1].state_dict("trained")
            begin = {**trained, **{name: trained[name] * mask for name, mask in ticket.masks.items()}}
        if level or rewind != "4it":  # the dense network goes on from step 4
            torch.testing.assert_close(reordered.state_dict(), begin, rtol=0, atol=0)
        assert not torch.equal(reordered.trained["fc.weight"], ticket.trained["fc.weight"])


def test_a_reordered_network_takes_the_optimiser_along_but_not_the_place_in_the_data(net: nn.Module) -> None:
    class Place:
        def __init__(self) -> None:
            self.state = {"place": 0}

        def state_dict(self) -> dict[str, int]:
            return self.state

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.state = state

    moments, places = [], []

    def train(model: nn.Module, level: Any) -> dict[str, float]:
        optimizer, place = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), Place()
        level.attach(optimizer=optimizer, place=place)
        moments.append(bool(optimizer.state))
        places.append(place.state["place"])
        for _ in range(level.start_step, 3):
            optimizer.zero_grad()
            model(torch.rand(4, 1, 6, 6)).square().sum().backward()
            optimizer.step()
            place.state = {"place": place.state["place"] + 1}
            level.step()
        return {"test_acc": 0.5}

    find_ticket(net, train, levels=1, rewind="2it", controls=["reordered"], control_levels=[0, 1])
    assert moments == [False, True, True, True]  # level 0, level 1, and both in another order
    assert places == [0, 2, 0, 0]


def test_only_reordered_may_be_trained_at_level_0(search: Search) -> None:
    with pytest.raises(ArgumentError, match="control_levels: expected levels from 1 to 2, got 0"):
        search(levels=2, controls="reinit", control_levels=[0])
    found = search(levels=1, controls=["reinit", "reordered"], control_levels=[0, 1])
    assert list(found.controls) == [(0, "reordered"), (1, "reinit"), (1, "reordered")]


def test_the_barrier_between_two_orders(search: Search, net: nn.Module) -> None:
    found = search(levels=1, controls=["reinit", "reordered"])
    ticket, reordered = found.ticket, found.control_tickets[1, "reordered"]

    def error(model: nn.Module) -> float:
        return float(model.fc.weight.detach().double().square().sum())  # type: ignore[union-attr, operator]

    barrier = order_barrier(net, ticket, reordered, error)
    ends = [one.state_dict("trained")["fc.weight"].double().square().sum().item() for one in (ticket, reordered)]
    assert (barrier.errors[0], barrier.errors[-1]) == pytest.approx(tuple(ends), rel=1e-6)
    assert len(barrier.errors) == 30
    assert barrier.height < max(ends) - sum(ends) / 2 + 1e-6  # convex: nowhere above the ends
    for wrong in (ticket, found.control_tickets[1, "reinit"], found.tickets[0]):
        with pytest.raises(ArgumentError, match="reordered: expected the control 'reordered' of"):
            order_barrier(net, ticket, wrong, error)
    with pytest.raises(ArgumentError, match="reordered: expected"):
        order_barrier(net, found.tickets[0], reordered, error)


@pytest.mark.parametrize("size", [0.5, 1.0, 2.0, 3.0])
def test_noise_is_in_units_of_the_layers_deviation(all_controls: Any, net: nn.Module, size: float) -> None:
    ticket, control = all_controls.tickets[2], all_controls.control_tickets[2, f"noise_{size:g}"]
    theta0 = net.fc.weight.detach()  # type: ignore[union-attr, operator]
    noise = control.initial["fc.weight"] - ticket.initial["fc.weight"]
    assert float(noise.std() / theta0.std(correction=0)) == pytest.approx(size, rel=0.15)


def test_signed_constants_keep_the_signs(all_controls: Any) -> None:
    ticket, control = all_controls.tickets[2], all_controls.control_tickets[2, "signed_constant"]
    assert torch.equal(control.initial["fc.weight"].sign(), ticket.initial["fc.weight"].sign())
    assert len(control.initial["fc.weight"].abs().unique()) == 1


def test_rescaling_gives_each_unit_its_variance_back(all_controls: Any) -> None:
    ticket, control = all_controls.tickets[2], all_controls.control_tickets[2, "rescaled"]
    share = ticket.masks["fc.weight"].double().mean(1)
    ratio = (dense(control) / dense(ticket))[ticket.masks["fc.weight"]]
    wanted = share.rsqrt()[:, None].expand_as(dense(ticket))[ticket.masks["fc.weight"]]
    torch.testing.assert_close(ratio.double(), wanted, rtol=1e-5, atol=0)


def test_rescaling_leaves_dead_and_full_units() -> None:
    weight = torch.randn(3, 2, 3, 3)
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask[0] = False
    mask[1, 0] = False
    scaled = rescaled(weight, mask)
    assert torch.equal(scaled[0], weight[0])
    assert torch.equal(scaled[2], weight[2])
    torch.testing.assert_close(scaled[1], weight[1] * 2**0.5)


def test_random_is_fresh_in_both_respects(all_controls: Any, net: nn.Module) -> None:
    control = all_controls.control_tickets[2, "random"]
    theta0 = net.fc.weight.detach()  # type: ignore[union-attr, operator]
    assert not bool((control.initial["fc.weight"] == theta0[control.masks["fc.weight"]]).any())


@pytest.mark.parametrize("text", ["weight", "block:4x4", "row"])
def test_global_shuffling_and_largest_keep_tiles(text: str) -> None:
    tile, generator = Granularity.parse(text), torch.Generator().manual_seed(0)
    shapes = {"a": (12, 23), "b": (20, 9)}
    masks = {
        name: tile.expand(torch.rand(len(tile.sizes(shape)), generator=generator) < 0.4, shape)
        for name, shape in shapes.items()
    }
    theta = {name: torch.randn(shape) for name, shape in shapes.items()}
    for kind in ("global_shuffled", "prune_at_0"):
        found = control_masks(kind, masks, theta, tile, generator)
        assert found.nnz == sum(int(mask.sum()) for mask in masks.values())
        for mask in found.values():
            assert bool(((tile.pool(mask) == 0) | (tile.pool(mask) == tile.sizes(mask.shape))).all())


def test_layers_that_are_not_pruned_take_no_part_in_global_shuffling() -> None:
    masks = {"a": torch.ones(4, 4, dtype=torch.bool), "b": torch.eye(4, dtype=torch.bool)}
    found = control_masks("global_shuffled", masks, {}, Granularity.parse("weight"), torch.Generator())
    assert bool(found["a"].all())
    assert int(found["b"].sum()) == 4


def test_empty_layers_are_altered_to_themselves() -> None:
    tensors, masks = {"w": torch.zeros(0, 3)}, {"w": torch.zeros(0, 3, dtype=torch.bool)}
    for kind in CONTROLS:
        assert altered(kind, tensors, masks, torch.Generator())["w"].shape == (0, 3)
    gone = {"w": torch.zeros(2, 3, dtype=torch.bool)}
    assert torch.equal(altered("dm_reinit", {"w": torch.ones(2, 3)}, gone, torch.Generator())["w"], torch.ones(2, 3))


def test_only_judges_can_spoil_a_verdict() -> None:
    assert ticket_kind(True, True, REQUIRED, []) == "winning"
    assert ticket_kind(True, True, [*REQUIRED, "noise_0.5"], ["noise_0.5"]) == "winning"
    assert ticket_kind(True, True, ["reinit"], []) == "matching"
    for kind in JUDGES:
        assert ticket_kind(True, True, CONTROLS, [kind]) == "matching"

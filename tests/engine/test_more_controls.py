"""Controls beyond the two required ones: what each keeps of the ticket, and which of them judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lth_sparse.engine.controls import CONTROLS, JUDGES, REQUIRED, altered, control_masks, rescaled
from lth_sparse.engine.granularity import Granularity
from lth_sparse.engine.result import ticket_kind

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

"""Random reinitialisation and shuffled masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lth_sparse as ls
from lth_sparse.engine.controls import reinitialise_, shuffled
from lth_sparse.engine.granularity import Granularity
from lth_sparse.errors import ArgumentError

Search = Callable[..., Any]


@pytest.fixture
def both(search: Search) -> Any:
    return search(controls=("reinit", "shuffled"), control_levels=[1, 3])


def test_controls_run_at_the_chosen_levels(both: Any) -> None:
    assert set(both.controls) == {(1, "reinit"), (1, "shuffled"), (3, "reinit"), (3, "shuffled")}
    assert all(record.control == kind and record.index == k for (k, kind), record in both.controls.items())


def test_controls_run_at_the_last_level_by_default(search: Search) -> None:
    assert set(search(controls="reinit").controls) == {(3, "reinit")}


def test_reinit_has_the_tickets_mask_and_other_weights(both: Any) -> None:
    ticket, control = both.tickets[3], both.control_tickets[3, "reinit"]
    assert control.masks.equals(ticket.masks)
    for name in ticket.masks:
        assert not bool((control.initial[name] == ticket.initial[name]).any())


def test_reinit_differs_from_level_to_level(both: Any) -> None:
    one, three = both.control_tickets[1, "reinit"], both.control_tickets[3, "reinit"]
    assert not torch.equal(one.initial["fc.bias"], three.initial["fc.bias"])


def test_shuffled_has_the_tickets_counts_and_other_places(both: Any) -> None:
    ticket, control = both.tickets[3], both.control_tickets[3, "shuffled"]
    for name, mask in ticket.masks.items():
        assert int(mask.sum()) == int(control.masks[name].sum())
    assert not torch.equal(control.masks["fc.weight"], ticket.masks["fc.weight"])


def test_shuffled_starts_from_the_weights_of_theta_0(both: Any, net: nn.Module) -> None:
    control = both.control_tickets[3, "shuffled"]
    theta0 = net.fc.weight.detach()  # type: ignore[union-attr, operator]
    assert torch.equal(control.initial["fc.weight"], theta0[control.masks["fc.weight"]])


def test_controls_do_not_disturb_the_tickets(search: Search, both: Any) -> None:
    assert [ticket.hash for ticket in search().tickets] == [ticket.hash for ticket in both.tickets]


def test_a_control_names_its_ticket_as_parent(both: Any) -> None:
    assert both.control_tickets[3, "reinit"].parent == both.tickets[3].hash


def test_levels_of_controls_have_seeds_of_their_own(search: Search, make_train: Any) -> None:
    seeds: list[Any] = []
    train = make_train(watch=lambda model, level: seeds.append((level.control, level.seed, float(torch.rand(())))))
    search(levels=2, seed=5, controls=("reinit", "shuffled"), train=train)
    assert [seed for control, seed, _ in seeds if control is None] == [5, 5, 5]
    assert len({seed for _, seed, _ in seeds}) == 3
    assert len({draw for _, _, draw in seeds}) == 3


def test_with_rewinding_reinit_starts_at_step_0_and_shuffled_at_step_k(search: Search, make_train: Any) -> None:
    starts: dict[Any, int] = {}
    train = make_train(watch=lambda model, level: starts.update({level.control: level.start_step}))
    search(levels=1, rewind="4it", controls=("reinit", "shuffled"), train=train)
    assert starts == {None: 4, "reinit": 0, "shuffled": 4}


def test_a_callable_may_reset_the_parameters(search: Search) -> None:
    def reset(model: nn.Module) -> None:
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.25)

    control = search(levels=1, controls="reinit", reset_parameters=reset).control_tickets[1, "reinit"]
    assert set(control.initial["fc.weight"].tolist()) == {0.25}


def test_a_reset_that_changes_nothing_is_refused(search: Search) -> None:
    with pytest.raises(ArgumentError, match=r"reset_parameters: expected fresh values for conv\.weight"):
        search(levels=1, controls="reinit", reset_parameters=lambda model: None)


def test_a_module_that_cannot_reset_itself_is_named() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(()))

    model = nn.Sequential(nn.Linear(2, 2), Scale())
    with pytest.raises(ArgumentError, match=r"reset_parameters: expected a callable .*1\.factor"):
        reinitialise_(model, ["0.weight"])


def test_a_networks_own_initialisation_has_the_last_word() -> None:
    class Own(nn.Sequential):
        def reset_parameters(self) -> None:
            nn.init.normal_(self[0].weight)
            nn.init.constant_(self[0].bias, 0.5)

    model = Own(nn.Linear(3, 2))
    reinitialise_(model, ["0.weight"])
    assert model[0].bias.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("text", ["weight", "row", "block:4x4", "block:3x5"])
def test_shuffling_keeps_counts_and_tiles(text: str) -> None:
    tile = Granularity.parse(text)
    generator = torch.Generator().manual_seed(0)
    shape = (18, 23)
    mask = tile.expand(torch.rand(len(tile.sizes(shape)), generator=generator) < 0.4, shape)
    other = shuffled({"w": mask}, tile, generator)["w"]
    assert int(other.sum()) == int(mask.sum())
    assert not torch.equal(other, mask)
    assert bool(((tile.pool(other) == 0) | (tile.pool(other) == tile.sizes(shape))).all())


def test_shuffling_leaves_full_and_empty_layers_as_they_are() -> None:
    masks = {"full": torch.ones(3, 4, dtype=torch.bool), "empty": torch.zeros(3, 4, dtype=torch.bool)}
    assert shuffled(masks, Granularity.parse("weight"), torch.Generator()).equals(masks)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"controls": "reset"}, "controls: expected one of 'reinit', 'shuffled', .*'reordered', got 'reset'"),
        ({"controls": "reinit", "control_levels": [0]}, "control_levels: expected levels from 1 to 3, got 0"),
        ({"controls": "reinit", "control_levels": [4]}, "control_levels: expected levels from 1 to 3, got 4"),
    ],
)
def test_unknown_controls_and_levels_are_refused(search: Search, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        search(**keywords)


def test_masks_are_plain_masks(both: Any) -> None:
    assert isinstance(both.control_tickets[1, "shuffled"].masks, ls.Mask)

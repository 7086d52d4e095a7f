"""A ticket on another problem: layers named ``fresh`` keep the new model's weights, all others are the ticket's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lth_sparse as ls
from lth_sparse.engine.ticket import Ticket
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.paper import build_model, load_dataset

Search = Callable[..., Any]


@pytest.fixture
def ticket(search: Search) -> Ticket:
    return search(levels=2, rate=0.5).ticket


@pytest.fixture
def other(net: Any) -> Any:
    """The same architecture for five classes, with weights of its own."""
    torch.manual_seed(11)
    model = type(net)()
    model.out = nn.Linear(12, 5)
    return model


def test_a_fresh_layer_keeps_the_models_weights_and_the_rest_is_the_tickets(ticket: Ticket, other: Any) -> None:
    model: Any = ticket.apply(other, fresh="out")
    assert type(model.out) is nn.Linear
    assert torch.equal(model.out.weight, other.out.weight)
    assert torch.equal(model.out.bias, other.out.bias)
    right = ticket.state_dict("initial")
    found = ls.dense_state_dict(model)
    assert all(torch.equal(found[name], right[name]) for name in right if not name.startswith("out."))
    masks = ls.nn.masks_of(model)
    assert set(masks) == {"conv.weight", "fc.weight"}
    assert all(torch.equal(mask, ticket.masks[name]) for name, mask in masks.items())
    assert type(other.fc) is nn.Linear  # a copy was changed


def test_a_fresh_layer_of_the_tickets_shape_is_fresh_too(ticket: Ticket, net: Any) -> None:
    torch.manual_seed(11)
    other = type(net)()
    model: Any = ticket.apply(other, fresh="fc")
    assert torch.equal(model.fc.weight, other.fc.weight)
    assert set(ls.nn.masks_of(model)) == {"conv.weight", "out.weight"}


def test_a_density_prunes_the_smallest_of_the_fresh_weights(ticket: Ticket, other: Any) -> None:
    model: Any = ticket.apply(other, fresh={"out": 0.25}, inplace=False)
    mask, weight = model.out.mask, other.out.weight.detach()
    assert int(mask.sum()) == 15  # a quarter of 60
    assert float(weight[mask].abs().min()) >= float(weight[~mask].abs().max())
    assert torch.equal(model.out.weight, weight * mask)


def test_a_density_of_one_stays_dense(ticket: Ticket, other: Any) -> None:
    model: Any = ticket.apply(other, fresh={"out": 1.0})
    assert type(model.out) is nn.Linear


def test_an_input_layer_of_another_shape_is_fresh(ticket: Ticket, net: Any) -> None:
    other = type(net)()
    other.conv = nn.Conv2d(3, 4, 3, padding=1)
    model = ticket.apply(other, fresh=["conv"])
    assert model(torch.rand(2, 3, 6, 6)).shape == (2, 3)


def test_a_head_of_another_structure_is_fresh(ticket: Ticket, net: Any) -> None:
    other = type(net)()
    other.out = nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 5))
    model: Any = ticket.apply(other, fresh="out*")
    assert model(torch.rand(2, 1, 6, 6)).shape == (2, 5)
    assert torch.equal(model.out[2].weight, other.out[2].weight)


def test_layers_that_were_not_named_must_be_the_tickets(ticket: Ticket, other: Any) -> None:
    with pytest.raises(ArgumentError, match=r"out\.weight of shape \[5, 12\] instead of \[3, 12\] \(fresh="):
        ticket.apply(other, fresh="fc")
    other.more = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match=r"a model with 'more\.weight', which the ticket lacks"):
        ticket.apply(other, fresh="out")


def test_a_model_that_is_refused_is_unchanged(ticket: Ticket, other: Any) -> None:
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    for wrong in ("fc", "nothing", {"out": 0.0}):
        with pytest.raises(ArgumentError):
            ticket.apply(other, fresh=wrong, inplace=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    ("fresh", "message"),
    [
        ("output", r"fresh: expected names or globs among .*, got 'output'; did you mean 'out'\?"),
        (["conv", "fc", "out"], "fresh: expected a pruned layer left that is the ticket's, got all of them"),
        ({"out": 0.0}, r"fresh\['out'\]: expected a density in \(0, 1\], got 0\.0"),
        ({"out": 1.5}, r"fresh\['out'\]: expected a density in \(0, 1\], got 1\.5"),
        ({"out": True}, r"fresh\['out'\]: expected a density in \(0, 1\], got True"),
        ({"norm": 0.5}, r"fresh: expected names or globs among conv\.weight.*, got 'norm'"),
    ],
)
def test_other_names_and_densities_are_refused(ticket: Ticket, other: Any, fresh: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ticket.apply(other, fresh=fresh)


def test_names_that_are_no_strings_are_refused(ticket: Ticket, other: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="fresh: expected"):
        ticket.apply(other, fresh=[3])  # type: ignore[list-item]


def test_one_of_two_tied_weights_alone_is_refused() -> None:
    mask = {"a.weight": torch.tensor([[True, False], [True, True]])}
    weights = {"a.weight": torch.ones(2, 2), "c.weight": torch.ones(2, 2)}
    ticket = Ticket.of(mask, weights, weights, aliases={"b.weight": "a.weight"})
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "abc"})
    with pytest.raises(ArgumentError, match=r"fresh: expected 'a\.weight' beside 'b\.weight'"):
        ticket.apply(model, fresh="b")


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_any_optimiser_trains_a_transferred_ticket(ticket: Ticket, other: Any, data: Any, optimizer: Any) -> None:
    model: Any = ticket.apply(other, fresh={"out": 0.5}).train()
    steps = optimizer(model.parameters(), lr=0.01)
    layers = [model.conv, model.fc, model.out]
    before = [layer.values.detach().clone() for layer in layers]
    for _ in range(3):
        steps.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward()
        steps.step()
    assert all(not torch.equal(old, layer.values) for old, layer in zip(before, layers, strict=True))
    assert torch.equal(model.fc.mask, ticket.masks["fc.weight"])


def test_a_ticket_of_ten_digits_learns_to_tell_two_groups_of_five(seed: int) -> None:
    """Found on all digits in one short search; on digits 0 to 4 alone, with an output layer of their own, it learns."""
    digits = load_dataset("digits")
    x, y = digits.train.x, digits.train.y

    def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int, level: Any = None) -> float:
        optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3)
        for _ in range(steps):
            batch = torch.randint(len(images), (60,))
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            return float((model(images).argmax(1) == labels).float().mean())

    result = ls.find_ticket(
        build_model("lenet", (1, 28, 28), seed=seed),
        lambda model, level: {"test_acc": train(model, x, y, 60)},
        levels=1,
        rate=0.8,
    )
    few = y < 5
    other = build_model("lenet", (1, 28, 28), seed=seed + 1)
    other.output = nn.Linear(100, 5)
    model = result.ticket.apply(other, fresh="output")
    assert train(model, x[few], y[few], 80) > 0.9

"""Reordering before the methods with blocks: the network computes what it did, and blocks get fuller."""

from __future__ import annotations

import pytest
import torch
from conversion_cases import dense_ticket, network
from conversion_cases import model as model
from conversion_cases import ticket as ticket
from conversion_cases import x as x
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.engine import Ticket
from lth_sparse.engine.conversion import Method
from lth_sparse.engine.conversion.order import fold_order
from lth_sparse.nn import sparse_modules
from lth_sparse.nn.channels import channel_groups, permute_state, reorder_model


@pytest.mark.parametrize("method", ["cover:4x1", "cover:2x4", "cover:4x64", "cover:8x3"])
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_permuted_ticket_computes_the_same_function(
    ticket: Ticket, model: nn.Module, x: Tensor, method: str, target: str
) -> None:
    made = ls.convert(ticket, target, method=method, model=model, sample_input=x, only_gains=False)
    if method != "cover:4x64":  # so large a block is live in any order
        assert made.ticket.conversion["permuted"]
    assert made.ticket.masks.nnz == ticket.masks.nnz
    both = (ticket, made.ticket)
    before, after = (one.apply(model, "trained", layout="csr").double().eval()(x.double()) for one in both)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["cover:4x1", "cover:2x3", "cover:4x64"])
def test_reordering_never_stores_more_than_the_order_that_was_there(
    ticket: Ticket, model: nn.Module, x: Tensor, method: str
) -> None:
    common = {"model": model, "sample_input": x, "only_gains": False}
    ordered = ls.convert(ticket, method=method, **common)
    plain = ls.convert(ticket, method=f"{method}:unordered", **common)
    assert plain.ticket.conversion["permuted"] == []
    gain = sum(row.stored for row in plain.layers) - sum(row.stored for row in ordered.layers)
    assert gain > 0 or (gain == 0 and method == "cover:4x64")  # so large a block is live in any order
    for one, other in zip(ordered.layers, plain.layers, strict=True):
        assert one.stored_before == other.stored_before == other.stored
        assert one.before == other.before


def test_hidden_blocks_are_found_again(seed: int) -> None:
    model = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    rows, cols = torch.randperm(64), torch.randperm(64)
    blocks = (torch.rand(16, 16) < 0.3).repeat_interleave(4, 0).repeat_interleave(4, 1)
    masks = {
        "0.weight": torch.ones(64, 40, dtype=torch.bool),
        "2.weight": blocks[rows][:, cols],
        "4.weight": torch.ones(10, 64, dtype=torch.bool),
    }
    state = dict(model.state_dict())
    ticket = Ticket.of(masks, state, state)
    made = ls.convert(ticket, method="cover:4x4", model=model, sample_input=torch.randn(3, 40), only_gains=False)
    assert made.layers[0].block_density_before < 0.5
    assert made.layers[0].block_density > 0.9


def test_added_weights_start_at_their_own_theta_wherever_they_went(ticket: Ticket, model: nn.Module, x: Tensor) -> None:
    dense = dense_ticket(model)
    made = ls.convert(ticket, method="vectors:4x1", dense=dense, model=model, sample_input=x, only_gains=False)
    theta = dense.state_dict("initial")
    names = set(ticket.masks)
    method = Method.parse("vectors:4x1")
    ordered = fold_order(ticket, theta, method, names, model, x, channels_last=False, seed=0)
    groups = channel_groups(model, x)
    perms = reorder_model(ticket.masks, groups, (4, 1)).perms
    assert ordered.permuted == tuple(groups[index].name for index in sorted(perms))
    moved = permute_state(theta, groups, perms)
    for name, mask in made.ticket.masks.items():
        assert torch.equal(made.ticket.state_dict("initial")[name][mask], moved[name][mask])
    rest = permute_state(ticket.state_dict("initial"), groups, perms)
    for name in set(ticket.initial) - names:
        assert torch.equal(made.ticket.initial[name], rest[name])


def test_rows_that_cannot_move_say_why(ticket: Ticket, model: nn.Module, x: Tensor) -> None:
    made = ls.convert(ticket, method="cover:4x1", model=model, sample_input=x, only_gains=False)
    assert "output" in made.layers[-1].note
    assert made.layers[0].note == ""


@pytest.mark.parametrize("method", ["cover:4x4:edge", "drop:4x4:edge", "regroup:4x1:edge"])
def test_at_the_edge_each_layer_has_an_order_of_its_own(
    ticket: Ticket, model: nn.Module, x: Tensor, method: str
) -> None:
    made = ls.convert(ticket, method=method, dense=dense_ticket(model))
    assert made.ticket.conversion["permuted"] == []
    assert {row.layout for row in made.layers} <= {"reordered", "bsr"}
    assert any(row.layout == "reordered" for row in made.layers)
    sparse = made.ticket.apply(model, "trained")
    kinds = {f"{name}.weight": module.layout.kind for name, module in sparse_modules(sparse)}
    for row in made.layers:
        assert kinds[row.name] == row.layout
        assert row.stored == sparse.get_submodule(row.name.removesuffix(".weight")).values.numel()
    plain = network().double()
    plain.load_state_dict(made.ticket.state_dict("trained"))
    torch.testing.assert_close(sparse.double().eval()(x.double()), plain.eval()(x.double()), rtol=1e-10, atol=1e-12)
    if method.startswith("cover"):
        assert made.ticket.masks.equals(ticket.masks)


def test_dropping_in_an_order_of_its_own_keeps_more_of_the_magnitude(seed: int) -> None:
    rows, cols = torch.randperm(64), torch.randperm(64)
    blocks = (torch.rand(16, 16) < 0.2).repeat_interleave(4, 0).repeat_interleave(4, 1)
    masks = {"0.weight": blocks[rows][:, cols]}
    state = {"0.weight": torch.randn(64, 64), "0.bias": torch.zeros(64)}
    ticket = Ticket.of(masks, state, state)
    edge, plain = (ls.convert(ticket, method=f"drop:4x4:zeros:{word}").layers[0] for word in ("edge", "unordered"))
    assert edge.magnitude > 0.9 * edge.magnitude_before > plain.magnitude


def test_where_rows_cannot_move_an_index_at_the_edge_is_tried_and_timed(
    ticket: Ticket, model: nn.Module, x: Tensor
) -> None:
    made = ls.convert(ticket, method="cover:4x1", model=model, sample_input=x, budget=0.0)
    row = made.layers[-1]
    assert row.timings is not None
    assert row.layout == "reordered" or "own order" in row.note or "no faster" in row.note


class Branching(nn.Module):
    """Runs, but cannot be traced: it looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(y if float(y.sum()) > 0 else -y)


def test_a_network_that_cannot_be_traced_is_converted_in_its_own_order_and_that_is_said(seed: int) -> None:
    model, x = Branching(), torch.randn(3, 12)
    state = dict(model.state_dict())
    masks = {name: torch.rand(state[name].shape) < 0.3 for name in ("one.weight", "two.weight")}
    ticket = Ticket.of(masks, state, state)
    common = {"model": model, "sample_input": x, "only_gains": False}
    made = ls.convert(ticket, method="cover:4x1", **common)
    assert "not reordered" in made.notes[0]
    assert made.ticket.masks.equals(masks)
    assert all("own order" in row.note for row in made.layers)
    made = ls.convert(ticket, method="shrink", **common)
    assert made.notes[0].startswith("nothing was removed: ")
    assert made.ticket.masks.equals(masks)


def test_without_the_network_the_order_stays_and_that_is_said(ticket: Ticket) -> None:
    made = ls.convert(ticket, method="cover:4x1")
    assert "stay in their order" in made.notes[0]
    assert made.ticket.conversion["permuted"] == []


def test_reordering_is_deterministic(ticket: Ticket, model: nn.Module, x: Tensor) -> None:
    common = {"method": "cover:4x4", "model": model, "sample_input": x, "only_gains": False}
    assert ls.convert(ticket, **common).ticket.hash == ls.convert(ticket, **common).ticket.hash

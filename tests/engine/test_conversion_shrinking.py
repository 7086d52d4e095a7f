"""Physical removal: a smaller ticket of a smaller network that computes what the large one did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conversion_cases import dense_ticket, network
from conversion_cases import model as model
from conversion_cases import x as x
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.engine import Ticket
from lth_sparse.engine.conversion import Method, ledger
from lth_sparse.errors import ArgumentError


def with_dead(model: nn.Module, bias: float = 0.3) -> Ticket:
    """Channels 1 and 6 of the convolution read nothing; units 0 and 7 of the hidden layer read nothing, 3 is unread."""
    state = dict(model.state_dict())
    masks = {name: torch.rand(mask.shape) < 0.5 for name, mask in dense_ticket(model).masks.items()}
    masks["0.weight"][[1, 6]] = False
    masks["4.weight"][[0, 7]] = False
    masks["6.weight"][:, 3] = False
    trained = {name: t + bias * torch.randn(t.shape) if t.is_floating_point() else t for name, t in state.items()}
    trained["1.running_var"] = state["1.running_var"]
    return Ticket.of(masks, state, trained, level=2)


def test_dead_channels_go_and_the_function_stays(model: nn.Module, x: Tensor, tmp_path: Path) -> None:
    ticket = with_dead(model)
    made = ls.convert(ticket, method="shrink", model=model, sample_input=x)
    small = made.ticket
    assert small.masks["0.weight"].shape == (6, 3, 3, 3)
    assert small.masks["4.weight"].shape == (17, 6 * 16)
    assert small.masks["6.weight"].shape == (8, 17)
    assert small.conversion["shapes"]["4.weight"] == [20, 128]
    assert "removed" in made.notes[0]
    small.save(tmp_path / "small.safetensors")
    loaded = Ticket.load(tmp_path / "small.safetensors")
    for weights in ("initial", "trained"):
        before = ticket.apply(model, weights).double().eval()(x.double())
        after = loaded.apply(model, weights).double().eval()(x.double())
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_the_small_ticket_applies_to_either_architecture(model: nn.Module, x: Tensor) -> None:
    small = ls.convert(with_dead(model), method="shrink", model=model, sample_input=x).ticket
    once = small.architecture(model)
    assert once[4].weight.shape == (17, 96)
    assert model[4].weight.shape == (20, 128)
    first, second = (small.apply(one, "trained", layout="csr").eval()(x) for one in (model, once))
    assert torch.equal(first, second)
    with pytest.raises(ArgumentError, match="shape"):
        small.apply(nn.Sequential(*[*list(network())[:4], nn.Linear(128, 19), nn.ReLU(), nn.Linear(19, 8)]))


def test_a_fresh_layer_of_a_smaller_network_has_the_small_sizes(model: nn.Module, x: Tensor) -> None:
    small = ls.convert(with_dead(model), method="shrink", model=model, sample_input=x).ticket
    head = small.architecture(model)
    nn.init.ones_(head[6].weight)
    applied = small.apply(head, fresh="6")
    assert torch.equal(applied[6].weight, torch.ones(8, 17))
    with pytest.raises(
        ArgumentError, match=r"fresh: expected layers whose sizes the conversion did not change.*6\.weight"
    ):
        small.apply(model, fresh="6")


def test_rows_count_in_the_original_sizes(model: nn.Module, x: Tensor) -> None:
    ticket = with_dead(model)
    made = ls.convert(ticket, method="shrink", model=model, sample_input=x)
    for row in made.layers:
        before = int(ticket.masks[row.name].sum())
        assert (row.before, row.kept + row.dropped, row.added) == (before, before, 0)
        assert row.live == int(made.ticket.masks[row.name].sum())
        assert row.shape == tuple(ticket.masks[row.name].shape)
    hidden = made.layers[1]
    dead = ticket.masks["4.weight"][3].sum() + ticket.masks["4.weight"][:, [*range(16, 32), *range(96, 112)]].sum()
    twice = ticket.masks["4.weight"][3, [*range(16, 32), *range(96, 112)]].sum()
    assert hidden.dropped == int(dead - twice)


def test_what_refill_leaves_becomes_a_small_dense_network(model: nn.Module, x: Tensor) -> None:
    dense = dense_ticket(model)
    state = dense.state_dict("initial")
    masks = {name: torch.rand(mask.shape) < 0.3 for name, mask in dense.masks.items()}
    masks["6.weight"][:] = True  # all units are read
    ticket = Ticket.of(masks, state, state)
    made = ls.convert(ticket, method="refill:shrink", dense=dense, model=model, sample_input=x)
    k = int(masks["4.weight"].sum()) // 128
    assert made.ticket.masks["4.weight"].shape[0] == k
    assert bool(made.ticket.masks["4.weight"].all())
    assert made.layers[1].layout == "dense"
    plain = made.ticket.apply(model)
    assert isinstance(plain[4], nn.Linear)
    full = ls.convert(ticket, method="refill", dense=dense).ticket.apply(model)
    torch.testing.assert_close(plain.eval()(x), full.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_ticket_without_dead_channels_stays_as_it_is_and_that_is_said(model: nn.Module, x: Tensor) -> None:
    state = dict(model.state_dict())
    masks = {name: torch.ones_like(mask) for name, mask in dense_ticket(model).masks.items()}
    masks["6.weight"][0, 0] = False
    made = ls.convert(Ticket.of(masks, state, state), method="shrink", model=model, sample_input=x)
    assert made.notes == ("nothing was removed: no channel is dead",)
    assert "shapes" not in made.ticket.conversion
    assert made.ticket.masks.equals(masks)


def test_constants_in_front_of_padding_are_dropped_from_the_trained_weights_and_said(seed: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    nn.init.zeros_(model[0].bias)
    state = dict(model.state_dict())
    masks = {name: torch.ones_like(mask) for name, mask in dense_ticket(model).masks.items()}
    masks["0.weight"][2] = False
    trained = {**state, "0.bias": torch.full((6,), 0.5)}
    x = torch.randn(4, 2, 4, 4)
    made = ls.convert(Ticket.of(masks, state, trained), method="shrink", model=model, sample_input=x)
    assert made.ticket.masks["0.weight"].shape[0] == 5
    assert any("constants" in note for note in made.notes)


def test_the_ledger_measures_the_small_network(model: nn.Module, x: Tensor) -> None:
    ticket = with_dead(model)
    book = ledger(ticket, ["shrink"], model=model, sample=(x, torch.arange(5)), seconds=0.0, rounds=2)
    entry = book["shrink"]
    assert entry.time is not None
    assert entry.numel == ticket.masks.numel
    assert entry.kept is not None
    assert entry.live == entry.kept < ticket.masks.nnz
    assert entry.dropped == ticket.masks.nnz - entry.kept
    assert entry.work.flops < book["csr"].work.flops


def test_shrinking_needs_the_network_and_a_method_that_may(model: nn.Module, x: Tensor) -> None:
    with pytest.raises(ArgumentError, match="model"):
        ls.convert(with_dead(model), method="shrink")
    with pytest.raises(ArgumentError, match="shrink"):
        Method("cover", shrink=True)
    assert Method.parse("refill+:shrink").text == "refill+:shrink"

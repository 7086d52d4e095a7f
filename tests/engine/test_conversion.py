"""``ls.convert``: the converted ticket, its values, its layouts, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conversion_cases import dense_ticket, network, pruned_ticket
from conversion_cases import model as model
from conversion_cases import x as x
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.engine import Ticket
from lth_sparse.engine.conversion import METHODS, Method
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.nn import sparse_modules

ADDING = ["cover:4x1:theta", "drop:4x4", "vectors", "refill", "refill+", "regroup:4x1", "2:4:theta"]
EVERY = [*ADDING, "cover:4x4", "drop:4x4:zeros", "vectors:2x1:zeros", "2:4"]


@pytest.fixture
def dense(model: nn.Module) -> Ticket:
    """The ticket of level 0."""
    return dense_ticket(model)


@pytest.fixture
def ticket(model: nn.Module, dense: Ticket) -> Ticket:
    """30% of the weights at random places, trained to other values."""
    return pruned_ticket(model, parent=dense.hash, metrics={"test_acc": 0.5})


@pytest.mark.parametrize("method", EVERY)
def test_survivors_keep_their_values_and_added_weights_start_at_theta(
    ticket: Ticket, dense: Ticket, method: str
) -> None:
    made = ls.convert(ticket, method=method, dense=dense).ticket
    theta = dense.state_dict("initial")
    for name, mask in made.masks.items():
        for weights in ("initial", "trained"):
            before, after = ticket.state_dict(weights)[name], made.state_dict(weights)[name]
            kept, added = mask & ticket.masks[name], mask & ~ticket.masks[name]
            assert torch.equal(after[kept], before[kept])
            assert not after[~mask].any()
            assert torch.equal(
                after[added], theta[name][added] if weights == "initial" else torch.zeros_like(after[added])
            )
    for name in set(ticket.initial) - set(ticket.masks):
        assert torch.equal(made.trained[name], ticket.trained[name])


@pytest.mark.parametrize("method", EVERY)
def test_the_rows_count_what_the_masks_show(ticket: Ticket, dense: Ticket, method: str) -> None:
    made = ls.convert(ticket, method=method, dense=dense)
    trained = ticket.state_dict("trained")
    assert [row.name for row in made.layers] == list(ticket.masks)
    for row in made.layers:
        before, after = ticket.masks[row.name], made.ticket.masks[row.name]
        assert row.before == row.kept + row.dropped == int(before.sum())
        assert row.kept == int((before & after).sum())
        assert row.added == int((after & ~before).sum())
        assert row.live == int(after.sum())
        assert row.stored >= row.live
        assert row.block_density == pytest.approx(row.live / row.stored)
        assert row.magnitude == pytest.approx(float((trained[row.name].abs() * after).sum()), rel=1e-5)
        assert row.magnitude_before == pytest.approx(float(trained[row.name].abs().sum()), rel=1e-5)


@pytest.mark.parametrize("method", EVERY)
def test_a_converted_ticket_is_an_ordinary_one(
    ticket: Ticket, dense: Ticket, model: nn.Module, x: Tensor, tmp_path: Path, method: str
) -> None:
    made = ls.convert(ticket, method=method, dense=dense).ticket
    assert made.parent == ticket.hash
    assert (made.level, made.metrics) == (3, {})
    assert made.conversion["method"] == Method.parse(method).for_target("cpu").text
    made.save(tmp_path / "made.safetensors")
    assert Ticket.load(tmp_path / "made.safetensors") == made
    plain = network()
    plain.load_state_dict(made.state_dict("trained"))
    sparse = made.apply(model, "trained")
    torch.testing.assert_close(sparse.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
    assert made.masks.equals(ls.nn.masks_of(sparse)) or any(bool(mask.all()) for mask in made.masks.values())


def test_layers_are_stored_as_the_conversion_says_unless_the_caller_does(
    ticket: Ticket, dense: Ticket, model: nn.Module
) -> None:
    made = ls.convert(ticket, method="vectors:2x1", dense=dense).ticket
    assert {module.layout.kind for _, module in sparse_modules(made.apply(model))} == {"bsr"}
    assert {tuple(module.values.shape[1:]) for _, module in sparse_modules(made.apply(model))} == {(2, 1)}
    assert {module.layout.kind for _, module in sparse_modules(made.apply(model, layout="csr"))} == {"csr"}


def test_covering_leaves_the_function_and_the_mask_alone(ticket: Ticket, model: nn.Module, x: Tensor) -> None:
    made = ls.convert(ticket, method="cover:4x4").ticket
    assert made.masks.equals(ticket.masks)
    before, after = (one.apply(model, "trained").double().eval()(x.double()) for one in (ticket, made))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_filling_leaves_the_trained_function_alone_until_it_is_retrained(
    ticket: Ticket, dense: Ticket, model: nn.Module, x: Tensor
) -> None:
    made = ls.convert(ticket, method="cover:4x4:theta", dense=dense).ticket
    assert made.masks.nnz > ticket.masks.nnz
    before, after = (one.apply(model, "trained").double().eval()(x.double()) for one in (ticket, made))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_only_the_layers_named_are_converted(ticket: Ticket, dense: Ticket) -> None:
    made = ls.convert(ticket, method="refill", dense=dense, layers="4")
    assert [row.converted for row in made.layers] == [False, True, False]
    assert "not among" in made.layers[0].note
    for name in ("0.weight", "6.weight"):
        assert torch.equal(made.ticket.masks[name], ticket.masks[name])


def test_refill_leaves_the_output_layer_alone(ticket: Ticket, dense: Ticket) -> None:
    row = ls.convert(ticket, method="refill", dense=dense).layers[-1]
    assert (row.converted, row.dropped) == (False, 0)
    assert "output" in row.note


def test_two_of_four_leaves_a_layer_of_other_width_alone_and_says_so(ticket: Ticket) -> None:
    made = ls.convert(ticket, method="2:4")
    assert not made.layers[0].converted  # 27 columns
    assert "multiple of 4" in made.layers[0].note
    assert made.layers[1].converted


def test_a_method_that_would_empty_a_layer_leaves_it_alone(ticket: Ticket) -> None:
    made = ls.convert(ticket, method="drop:2x2:zeros", least=5)
    assert not any(row.converted for row in made.layers)
    assert all("without any weight" in row.note for row in made.layers)
    assert made.ticket.masks.equals(ticket.masks)


def test_layers_that_keep_everything_stay_as_they_are(dense: Ticket, ticket: Ticket, model: nn.Module) -> None:
    masks = {**ticket.masks, "6.weight": torch.ones(8, 20, dtype=torch.bool)}
    state = dense.state_dict("initial")
    whole = Ticket.of(masks, state, state)
    made = ls.convert(whole, method="vectors", dense=state)
    assert [row.name for row in made.layers] == ["0.weight", "4.weight"]
    assert bool(made.ticket.masks["6.weight"].all())


def test_timing_leaves_a_layer_without_a_gain_as_it_is_and_says_what_it_measured(
    ticket: Ticket, dense: Ticket, model: nn.Module, x: Tensor
) -> None:
    made = ls.convert(ticket, method="vectors", dense=dense, model=model, sample_input=x, budget=0.0)
    for row in made.layers:
        assert row.timings is not None
        assert set(row.timings) == {"torch", "csr", "dense", "converted"}
        rival = min(row.timings["csr"].training, row.timings["dense"].training)
        if row.timings["converted"].training >= rival:
            assert not row.converted
            assert "no faster" in row.note
        if not row.converted:  # its channels may have moved with others'
            assert int(made.ticket.masks[row.name].sum()) == int(ticket.masks[row.name].sum()) == row.live


def test_for_a_gpu_that_is_not_there_masks_are_made_and_nothing_is_timed(
    ticket: Ticket, dense: Ticket, model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = ls.convert(ticket, "cuda", method="drop:4x4", dense=dense, model=model, sample_input=x)
    assert all(row.timings is None and row.converted for row in made.layers)
    assert made.layers[0].channels_last
    assert made.ticket.apply(model)[0].layout.channels_last


def test_converting_twice_gives_the_same_ticket(ticket: Ticket, dense: Ticket) -> None:
    first, second = (ls.convert(ticket, method="drop:4x4", dense=dense).ticket for _ in range(2))
    assert first.hash == second.hash


def test_an_ordinary_tickets_hash_and_file_do_not_know_of_conversions(ticket: Ticket) -> None:
    assert "conversion" not in ticket._content()
    assert ticket.hash == dataclasses.replace(ticket, conversion={}).hash
    assert ticket.hash != dataclasses.replace(ticket, conversion={"method": "cover"}).hash


@pytest.mark.parametrize("method", ADDING)
def test_added_weights_without_their_theta_are_refused(ticket: Ticket, method: str) -> None:
    with pytest.raises(ArgumentError, match="dense: expected theta_k"):
        ls.convert(ticket, method=method)


def test_the_theta_of_another_network_is_refused(ticket: Ticket, dense: Ticket) -> None:
    state = dense.state_dict("initial")
    with pytest.raises(ArgumentError, match="starts from"):
        ls.convert(ticket, method="vectors", dense={**state, "4.weight": state["4.weight"] + 1})
    with pytest.raises(ArgumentError, match="pruned itself"):
        ls.convert(ticket, method="vectors", dense=ticket)
    with pytest.raises(ArgumentError, match=r"dense\['4.weight'\]"):
        ls.convert(ticket, method="vectors", dense={"0.weight": state["0.weight"]})
    with pytest.raises(ArgumentTypeError, match="dense"):
        ls.convert(ticket, method="vectors", dense=[1])  # type: ignore[arg-type]


def test_bad_input_names_its_argument(ticket: Ticket, dense: Ticket, x: Tensor) -> None:
    with pytest.raises(ArgumentTypeError, match="ticket"):
        ls.convert("ticket")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="ticket: expected a pruned one"):
        ls.convert(dense)
    with pytest.raises(ArgumentError, match="target"):
        ls.convert(ticket, "tpu")
    with pytest.raises(ArgumentTypeError, match="options among"):
        ls.convert(ticket, method="cover", sparsity=0.5)
    with pytest.raises(ArgumentError, match="model"):
        ls.convert(ticket, method="cover", sample_input=x)
    with pytest.raises(ArgumentTypeError, match="model"):
        ls.convert(ticket, method="cover", model=3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="layers"):
        ls.convert(ticket, method="cover", layers="fc9")


def test_every_method_is_tried_here() -> None:
    assert {Method.parse(text).name for text in EVERY} | {"shrink"} == set(METHODS)

"""Tickets with one set of weights: the file for inference, its size, its dtypes, and that nothing else is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lth_sparse as ls
from lth_sparse.engine import container
from lth_sparse.engine.ticket import Ticket
from lth_sparse.errors import ArgumentError, TicketError

Search = Callable[..., Any]


@pytest.fixture
def ticket(search: Search) -> Ticket:
    return search(levels=2).ticket


def random_ticket(model: nn.Module, density: float) -> Ticket:
    generator = torch.Generator().manual_seed(1)
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    masks = {name: torch.rand(p.shape, generator=generator) < density for name, p in weights.items()}
    return Ticket.of(masks, model.state_dict(), model.state_dict(), history=[{"step": 1, "val_loss": 0.5}] * 50)


@pytest.mark.parametrize("weights", ["trained", "initial"])
def test_a_reduced_file_gives_back_its_weights_and_masks_exactly(ticket: Ticket, tmp_path: Path, weights: str) -> None:
    ticket.save(tmp_path / "t", weights=weights)
    loaded = Ticket.load(tmp_path / "t")
    assert loaded.masks.equals(ticket.masks)
    right, found = ticket.state_dict(weights), loaded.state_dict(weights)
    assert list(right) == list(found)
    assert all(torch.equal(right[name], found[name]) and right[name].dtype == found[name].dtype for name in right)
    for name in ("level", "control", "parent", "aliases", "hyperparameters", "metrics", "versions"):
        assert getattr(loaded, name) == getattr(ticket, name)
    assert (loaded.source, loaded.history) == (ticket.hash, [])
    assert loaded == ticket.reduced(weights)


def test_saving_a_reduced_ticket_again_gives_the_same_bytes(ticket: Ticket, tmp_path: Path) -> None:
    ticket.save(tmp_path / "first", weights="trained", dtype=torch.bfloat16)
    Ticket.load(tmp_path / "first").save(tmp_path / "second")
    Ticket.load(tmp_path / "first").save(tmp_path / "third", weights="trained", dtype=torch.bfloat16)
    first = (tmp_path / "first").read_bytes()
    assert first == (tmp_path / "second").read_bytes() == (tmp_path / "third").read_bytes()


def test_reducing_leaves_the_ticket_as_it_was(ticket: Ticket) -> None:
    before = ticket.hash
    ticket.reduced("trained", torch.float16)
    assert ticket.hash == before
    assert ticket.trained["fc.weight"].dtype == torch.float32


def test_a_whole_ticket_is_stored_as_ever(ticket: Ticket, tmp_path: Path) -> None:
    """Its file and its hash know nothing of reduced ones, so that older versions read it and runs resume."""
    ticket.save(tmp_path / "t")
    tensors, content, digest = container.read(tmp_path / "t", "ticket")
    assert {name.partition("/")[0] for name in tensors} == {"mask", "initial", "trained"}
    assert not {"held", "source"} & set(content)
    assert digest == ticket.hash


def test_code_that_knows_whole_tickets_only_is_told_what_it_got(ticket: Ticket, tmp_path: Path) -> None:
    ticket.save(tmp_path / "t", weights="trained")
    with pytest.raises(TicketError, match="expected a ticket file, got a reduced ticket file"):
        container.read(tmp_path / "t", "ticket")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_are_rounded_and_all_else_is_exact(ticket: Ticket, tmp_path: Path, dtype: torch.dtype) -> None:
    ticket.save(tmp_path / "t", weights="trained", dtype=dtype)
    loaded = Ticket.load(tmp_path / "t")
    for name, tensor in ticket.trained.items():
        wide = name in ticket.masks
        assert loaded.trained[name].dtype == (dtype if wide else tensor.dtype)
        assert torch.equal(loaded.trained[name], tensor.to(dtype) if wide else tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_computes_in_its_own_dtype(
    ticket: Ticket, tmp_path: Path, net: nn.Module, data: Any, dtype: torch.dtype
) -> None:
    """Values of 16 bits compute in float32 in a model of float32, and as they are in one of their dtype."""
    ticket.save(tmp_path / "t", weights="trained", dtype=torch.bfloat16)
    model: Any = Ticket.load(tmp_path / "t").apply(net.to(dtype), weights="trained", layout="csr").eval()
    assert model.fc.values.dtype == dtype
    assert torch.equal(model.fc.values.double(), ticket.trained["fc.weight"].to(torch.bfloat16).double())
    right = ticket.apply(net.float(), weights="trained").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(data[0].to(dtype)).float(), right(data[0]), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.05])
def test_a_file_is_as_small_as_its_density(tmp_path: Path, density: float) -> None:
    """At most 1.15 x density x the dense bytes, and masks within 4% of what independent weights need."""
    ticket = random_ticket(nn.Sequential(nn.Linear(400, 300), nn.Linear(300, 60)), density)
    dense = sum(tensor.nbytes for tensor in ticket.state_dict("trained").values())
    ticket.save(tmp_path / "t", weights="trained")
    p = ticket.density
    masks = ticket.masks.numel / 8 * -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert (tmp_path / "t").stat().st_size <= 1.15 * p * dense + 1.04 * masks
    ticket.save(tmp_path / "half", weights="trained", dtype=torch.float16)
    assert (tmp_path / "half").stat().st_size <= 1.15 * p * dense / 2 + 1.04 * masks + 4096  # 4 KiB of names, biases


def test_a_value_that_the_dtype_cannot_hold_is_refused() -> None:
    weights = {"a.weight": torch.tensor([[1.0, 1e6]])}
    ticket = Ticket.of({"a.weight": torch.tensor([[False, True]])}, weights, weights)
    with pytest.raises(ArgumentError, match=r"dtype: expected one that holds all values of a\.weight, got"):
        ticket.reduced("trained", torch.float16)
    assert ticket.reduced("trained", torch.bfloat16).trained["a.weight"].dtype == torch.bfloat16


def test_other_weights_and_dtypes_are_refused(ticket: Ticket, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="weights: expected 'initial' or 'trained', got 'best'"):
        ticket.save(tmp_path / "t", weights="best")
    for dtype in (torch.int8, torch.float64, "float16"):
        with pytest.raises(ArgumentError, match="dtype: expected None or one of "):
            ticket.save(tmp_path / "t", weights="trained", dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="dtype: expected weights='trained' or 'initial' beside it"):
        ticket.save(tmp_path / "t", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_the_other_weights_of_a_reduced_ticket_are_refused(search: Search, net: nn.Module, tmp_path: Path) -> None:
    dense, pruned = search(levels=1).tickets
    reduced = dense.reduced("trained")
    for ask in (
        lambda: reduced.apply(net),
        lambda: reduced.save(tmp_path / "t", weights="initial"),
        lambda: ls.analyses.movement(reduced, pruned),
    ):
        with pytest.raises(ArgumentError, match="'trained', the only ones that this reduced ticket holds"):
            ask()


def test_a_flipped_byte_is_refused_wherever_it_is(ticket: Ticket, tmp_path: Path) -> None:
    path = tmp_path / "t"
    ticket.save(path, weights="trained", dtype=torch.float16)
    data = path.read_bytes()
    for place in (*range(0, len(data), 41), len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        with pytest.raises(TicketError):
            Ticket.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, content: tensors.update({"code/fc.weight": torch.zeros(3, dtype=torch.uint8)}),
        lambda tensors, content: tensors.update({"trained/fc.weight": torch.zeros(3)}),
        lambda tensors, content: tensors.pop("trained/fc.weight"),
        lambda tensors, content: tensors.pop("code/fc.weight"),
        lambda tensors, content: content.update(held="what"),
        lambda tensors, content: content.update(held="initial"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(ticket: Ticket, tmp_path: Path, change: Any) -> None:
    ticket.save(tmp_path / "t", weights="trained")
    tensors, content, _ = container.read(tmp_path / "t", "reduced ticket")
    change(tensors, content)
    container.write(tmp_path / "t", "reduced ticket", tensors, content)
    with pytest.raises(TicketError, match="its parts do not fit together"):
        Ticket.load(tmp_path / "t")


def test_repr_says_which_weights_it_holds(ticket: Ticket) -> None:
    assert "trained weights only" in repr(ticket.reduced("trained"))

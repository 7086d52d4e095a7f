"""`lth-sparse convert`: the files it writes, and its errors."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lth_sparse.cli.convert import csr_tensors, dense_tensors, semi_structured_tensors
from lth_sparse.engine import Ticket
from lth_sparse.errors import ArgumentError
from lth_sparse.nn import sparse_modules
from lth_sparse.paper import build_model

Run = Callable[..., Any]


def plain_model() -> nn.Module:
    return build_model("lenet", (1, 28, 28), seed=5)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("weights", ["trained", "initial"])
def test_dense_loads_strictly_into_the_plain_architecture(run: Run, ticket: Path, tmp_path: Path, weights: str) -> None:
    target = tmp_path / "dense.safetensors"
    outcome = run("convert", ticket, "-o", target, "--weights", weights)
    assert (outcome.code, outcome.err) == (0, "")
    state = load_file(target)
    plain_model().load_state_dict(state, strict=True)
    assert same(state, Ticket.load(ticket).state_dict(weights))


def test_csr_loads_into_the_sparse_model(run: Run, ticket: Path, tmp_path: Path) -> None:
    target = tmp_path / "csr.safetensors"
    assert run("convert", ticket, "-o", target, "--to", "csr").code == 0
    loaded = Ticket.load(ticket)
    model = loaded.apply(plain_model(), weights="initial", layout="csr")
    assert len(list(sparse_modules(model))) == 3
    model.load_state_dict(load_file(target), strict=True)
    expected = loaded.apply(plain_model(), weights="trained", layout="csr")
    assert same(dict(model.state_dict()), dict(expected.state_dict()))


def test_csr_has_no_zeros_and_names_the_shapes(run: Run, ticket: Path, tmp_path: Path) -> None:
    target = tmp_path / "csr.safetensors"
    run("convert", ticket, "-o", target, "--to", "csr")
    masks = Ticket.load(ticket).masks
    state = load_file(target)
    assert state["fc1.values"].shape == (int(masks["fc1.weight"].sum()),)
    with safe_open(target, framework="pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
    assert shapes == {name: list(mask.shape) for name, mask in masks.items()}


def test_ledger_says_what_was_kept_and_what_it_weighs(run: Run, ticket: Path, tmp_path: Path) -> None:
    target = tmp_path / "csr.safetensors"
    text = run("convert", ticket, "-o", target, "--to", "csr").out
    masks, after = Ticket.load(ticket).masks, sum(tensor.nbytes for tensor in load_file(target).values())
    assert f"{masks.nnz:,} of {masks.numel:,}" in text
    assert f"{4 * (266_200 + 410):,} of tensors" in text
    assert f"{after:,} of tensors" in text
    assert f"{target.stat().st_size:,} on disk" in text


def test_an_unpruned_weight_stays_dense_in_csr() -> None:
    whole, half = torch.ones(2, 3, dtype=torch.bool), torch.tensor([[True, False, True], [False, False, False]])
    weights = {"a.weight": torch.randn(2, 3), "b.weight": torch.randn(2, 3), "b.bias": torch.randn(2)}
    made = Ticket.of({"a.weight": whole, "b.weight": half}, weights, weights)
    tensors = csr_tensors(made, "trained")
    assert set(tensors) == {"a.weight", "b.values", "b.crow_indices", "b.col_indices", "b.bias"}
    assert tensors["b.crow_indices"].tolist() == [0, 2, 2]
    assert tensors["b.col_indices"].tolist() == [0, 2]
    assert torch.equal(tensors["b.values"], weights["b.weight"][half])


def test_two_of_four_writes_what_the_sparse_model_loads_and_refuses_other_masks() -> None:
    mask = torch.tensor([[True, False, True, False], [False, False, False, True]])
    weights = {"b.weight": torch.randn(2, 4), "b.bias": torch.randn(2)}
    made = Ticket.of({"b.weight": mask}, weights, weights)
    tensors = semi_structured_tensors(made, "trained")
    model = nn.ModuleDict({"b": nn.Linear(4, 2)})
    assert same(tensors, dict(made.apply(model, weights="trained", layout="2:4").state_dict()))
    many = Ticket.of({"b.weight": torch.tensor([[True, True, True, False]]).repeat(2, 1)}, weights, weights)
    with pytest.raises(ArgumentError, match=r"b\.weight: mask: expected at most 2"):
        semi_structured_tensors(many, "trained")


def test_tied_weights_are_written_under_both_names() -> None:
    mask = torch.tensor([[True, False]])
    weights = {"a.weight": torch.randn(1, 2)}
    made = Ticket.of({"a.weight": mask}, weights, weights, aliases={"b.weight": "a.weight"})
    dense, csr = dense_tensors(made, "trained"), csr_tensors(made, "trained")
    assert torch.equal(dense["a.weight"], dense["b.weight"])
    assert dense["a.weight"].data_ptr() != dense["b.weight"].data_ptr()
    assert torch.equal(csr["a.values"], csr["b.values"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "coo"], "--to: expected one of dense, csr, 2:4"),
        (["--weights", "best"], "--weights: expected one of trained, initial"),
    ],
)
def test_unknown_names_list_the_known(run: Run, ticket: Path, tmp_path: Path, words: list[str], said: str) -> None:
    outcome = run("convert", ticket, "-o", tmp_path / "x.safetensors", *words)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert said in outcome.err
    assert list(tmp_path.iterdir()) == []


def damaged(ticket: Path, tmp_path: Path, how: str) -> Path:
    path = tmp_path / "bad.safetensors"
    data = bytearray(ticket.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    elif how == "flipped":
        data[-5] ^= 1
    elif how == "empty":
        data = bytearray()
    elif how == "foreign":
        data = bytearray(b"not a ticket at all")
    if how != "missing":
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "foreign", "missing"])
def test_a_damaged_ticket_is_one_line_naming_it(run: Run, ticket: Path, tmp_path: Path, how: str) -> None:
    bad = damaged(ticket, tmp_path, how)
    outcome = run("convert", bad, "-o", tmp_path / "out.safetensors")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert str(bad) in outcome.err
    assert not (tmp_path / "out.safetensors").exists()


def test_its_own_output_is_no_ticket(run: Run, ticket: Path, tmp_path: Path) -> None:
    run("convert", ticket, "-o", tmp_path / "dense.safetensors")
    outcome = run("convert", tmp_path / "dense.safetensors", "-o", tmp_path / "again.safetensors")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)


@pytest.mark.parametrize("name", ["out.pt", "out", "missing/out.safetensors"])
def test_an_output_that_cannot_be_is_one_line(run: Run, ticket: Path, tmp_path: Path, name: str) -> None:
    outcome = run("convert", ticket, "-o", tmp_path / name)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_ticket_itself_is_not_overwritten(run: Run, ticket: Path) -> None:
    before = ticket.read_bytes()
    outcome = run("convert", ticket, "-o", ticket)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert ticket.read_bytes() == before


def test_a_full_disk_is_one_line_and_leaves_the_old_file(
    run: Run, ticket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lth_sparse._files.os.fsync", full)
    outcome = run("convert", ticket, "-o", target)
    assert outcome == (1, "", f"lth-sparse: error: cannot write {target}: No space left on device\n")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]

"""The ticket file: round trip, every kind of damage, and the way back onto the plain architecture."""

from __future__ import annotations

import copy
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from torch import nn

import lth_sparse as ls
from lth_sparse.engine import container
from lth_sparse.engine.ticket import Ticket
from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError, TicketError

Search = Callable[..., Any]


@pytest.fixture
def ticket(search: Search) -> Ticket:
    return search(levels=2).ticket


@pytest.fixture
def path(ticket: Ticket, tmp_path: Path) -> Path:
    ticket.save(tmp_path / "ticket.safetensors")
    return tmp_path / "ticket.safetensors"


def test_round_trip_keeps_everything(ticket: Ticket, path: Path) -> None:
    loaded = Ticket.load(path)
    assert loaded.masks.equals(ticket.masks)
    assert list(loaded.masks) == list(ticket.masks)
    for name in ("initial", "trained"):
        ours, theirs = getattr(ticket, name), getattr(loaded, name)
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    for name in ("level", "control", "parent", "aliases", "hyperparameters", "metrics", "history", "versions", "hash"):
        assert getattr(loaded, name) == getattr(ticket, name)
    assert loaded == ticket


def test_saving_twice_gives_the_same_bytes(ticket: Ticket, path: Path) -> None:
    ticket.save(path.with_name("again"))
    Ticket.load(path).save(path.with_name("reloaded"))
    assert path.read_bytes() == path.with_name("again").read_bytes() == path.with_name("reloaded").read_bytes()


def test_a_ticket_with_a_note_added_is_saved_whole(ticket: Ticket, tmp_path: Path) -> None:
    before = ticket.hash
    ticket.metrics["robustness"] = 0.5
    ticket.save(tmp_path / "t")
    assert Ticket.load(tmp_path / "t").metrics["robustness"] == 0.5
    assert Ticket.load(tmp_path / "t").hash == ticket.hash != before


def test_the_file_is_plain_safetensors_and_holds_the_mask(ticket: Ticket, path: Path) -> None:
    tensors = load(path.read_bytes())
    assert tensors["mask/fc.weight"].dtype == torch.uint8
    assert tensors["mask/fc.weight"].numel() == 1728 // 8
    assert tensors["initial/fc.weight"].numel() == int(ticket.masks["fc.weight"].sum())
    assert tensors["trained/norm.running_mean"].shape == (4,)


def test_the_file_shrinks_with_the_density(search: Search, tmp_path: Path) -> None:
    result = search(levels=2, rate=0.6)
    for ticket in result.tickets:
        ticket.save(tmp_path / str(ticket.level))
    sizes = [(tmp_path / str(k)).stat().st_size for k in range(3)]
    assert sizes[2] < sizes[1] < sizes[0]


def test_metadata_tells_where_it_came_from(ticket: Ticket) -> None:
    assert ticket.hyperparameters["rate"] == 0.3
    assert ticket.hyperparameters["seed"] == 0
    assert ticket.versions["torch"] == torch.__version__
    assert ticket.history[0]["step"] == 4
    assert set(ticket.metrics) == {"test_acc"}


def test_apply_gives_a_sparse_model_at_theta_0(ticket: Ticket, path: Path, net: nn.Module) -> None:
    theta0 = copy.deepcopy(net.state_dict())
    plain = type(net)()
    model = Ticket.load(path).apply(plain)
    assert {name for name, _ in ls.nn.sparse_modules(model)} == {"conv", "fc", "out"}
    for name, tensor in ls.dense_state_dict(model).items():
        mask = ticket.masks.get(name, torch.ones(()))
        assert torch.equal(tensor, theta0[name] * mask)
    assert not list(ls.nn.sparse_modules(plain))


def test_apply_trained_predicts_as_the_trained_network_did(search: Search, net: nn.Module, data: Any) -> None:
    outputs: list[torch.Tensor] = []

    def train(model: nn.Module, level: Any) -> dict[str, float]:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
            model.eval()
            outputs.append(model(data[0]))
        return {"test_acc": 0.0}

    model = search(levels=2, train=train).ticket.apply(net, weights="trained").eval()
    torch.testing.assert_close(model(data[0]), outputs[-1])


def test_apply_in_place_changes_the_model_itself(ticket: Ticket, net: nn.Module) -> None:
    assert ticket.apply(net, inplace=True) is net
    assert isinstance(net.fc, ls.nn.SparseLinear)


def test_apply_of_a_dense_ticket_is_the_dense_model(search: Search, net: nn.Module) -> None:
    model = search(levels=0).ticket.apply(net)
    assert not list(ls.nn.sparse_modules(model))


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_apply_takes_a_layout(ticket: Ticket, net: nn.Module, layout: str) -> None:
    model = ticket.apply(net, layout=layout)
    assert {module.layout.kind for _, module in ls.nn.sparse_modules(model)} == {layout}


def test_an_applied_ticket_trains(ticket: Ticket, net: nn.Module, data: Any) -> None:
    model = ticket.apply(net).train()
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    assert model.fc.values.grad is not None  # type: ignore[union-attr]


def test_state_dict_loads_strictly_into_the_original(ticket: Ticket, net: nn.Module) -> None:
    net.load_state_dict(ticket.state_dict("trained"), strict=True)
    assert list(ticket.state_dict()) == list(net.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.add_module("more", nn.Linear(2, 2)), r"model: expected the architecture .*'more\.weight'"),
        (lambda net: delattr(net, "norm"), r"a model without 'norm\.weight' \(4 more names differ\)"),
        (lambda net: setattr(net, "out", nn.Linear(12, 4)), r"out\.weight of shape \[4, 12\] instead of \[3, 12\]"),
    ],
)
def test_another_architecture_is_refused(ticket: Ticket, net: nn.Module, change: Any, message: str) -> None:
    change(net)
    with pytest.raises(ArgumentError, match=message):
        ticket.apply(net)


def test_unknown_weights_are_refused(ticket: Ticket, net: nn.Module) -> None:
    with pytest.raises(ArgumentError, match="weights: expected 'initial' or 'trained', got 'final'"):
        ticket.apply(net, weights="final")


def test_apply_needs_a_module(ticket: Ticket) -> None:
    with pytest.raises(ArgumentTypeError, match=r"model: expected a torch\.nn\.Module"):
        ticket.apply(ticket.state_dict())  # type: ignore[arg-type]


def test_tied_weights_come_back_tied(data: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)
            self.b = nn.Linear(8, 8)
            self.b.weight = self.a.weight
            self.out = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.b(self.a(x)))

    model = Tied()
    ticket = ls.find_ticket(model, lambda model, level: {"test_acc": 0.0}, levels=1, rate=0.5).ticket
    assert list(ticket.masks) == ["a.weight", "out.weight"]
    assert ticket.aliases == {"b.weight": "a.weight"}
    applied: Any = ticket.apply(Tied())
    assert applied.a.values is applied.b.values
    assert torch.equal(applied.b.weight, model.a.weight.detach() * ticket.masks["a.weight"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_survive(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)).to(dtype)
    ticket = ls.find_ticket(model, lambda model, level: {"test_acc": 0.0}, levels=1, rate=0.5).ticket
    ticket.save(tmp_path / "t")
    loaded = Ticket.load(tmp_path / "t")
    assert loaded.initial["0.weight"].dtype == dtype
    assert torch.equal(loaded.initial["0.weight"], ticket.initial["0.weight"])


# --- damage -----------------------------------------------------------------------------------------------------


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(TicketError, match=r"cannot read .*nothing: No such file"):
        Ticket.load(tmp_path / "nothing")


def test_a_directory_is_no_ticket(tmp_path: Path) -> None:
    with pytest.raises(TicketError, match="cannot read"):
        Ticket.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.0005, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: min(len(data) - 1, -int(-len(data) * share // 1))])
    with pytest.raises(TicketError, match="damaged or truncated"):
        Ticket.load(path)


def test_bytes_after_the_end_are_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 8)
    with pytest.raises(TicketError):
        Ticket.load(path)


def test_a_flipped_byte_is_refused_wherever_it_is(path: Path) -> None:
    data = path.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    places = [*range(8), *range(8, header, 37), *range(header, len(data), 101), len(data) - 1]
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        with pytest.raises(TicketError):
            Ticket.load(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 64, pickle.dumps({"a": 1}), b"PK\x03\x04" + b"\0" * 60])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(TicketError, match="not a safetensors file, or damaged"):
        Ticket.load(tmp_path / "t")


def test_a_safetensors_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "t")
    with pytest.raises(TicketError, match="not written by lth_sparse"):
        Ticket.load(tmp_path / "t")


def test_a_snapshot_is_no_ticket(tmp_path: Path) -> None:
    container.write(tmp_path / "t", "snapshot", {"w": torch.ones(2)}, {})
    with pytest.raises(TicketError, match="expected a ticket file, got a snapshot file"):
        Ticket.load(tmp_path / "t")


@pytest.mark.parametrize(
    ("version", "advice"), [(99, "update lth_sparse"), (0, "make it again"), ("x", "make it again")]
)
def test_another_format_version_says_what_to_do(tmp_path: Path, version: Any, advice: str) -> None:
    header = {"format": version, "kind": "ticket", "content": {}, "hash": ""}
    save_file({"w": torch.ones(2)}, tmp_path / "t", {"lth_sparse": json.dumps(header)})
    with pytest.raises(TicketError, match=rf"expected file format 1, got {version!r}; {advice}"):
        Ticket.load(tmp_path / "t")


@pytest.mark.parametrize("header", ["[]", "{", "{}", "3", '"x"'])
def test_a_damaged_header_is_refused(tmp_path: Path, header: str) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "t", {"lth_sparse": header})
    with pytest.raises(TicketError, match="its header is damaged"):
        Ticket.load(tmp_path / "t")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, content: tensors.update({"mask/fc.weight": torch.zeros(3, dtype=torch.uint8)}),
        lambda tensors, content: tensors.update({"initial/fc.weight": torch.zeros(3)}),
        lambda tensors, content: tensors.pop("trained/fc.weight"),
        lambda tensors, content: tensors.update({"what": torch.zeros(3)}),
        lambda tensors, content: content.pop("shapes"),
        lambda tensors, content: content.update(extra=1),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(ticket: Ticket, tmp_path: Path, change: Any) -> None:
    tensors, content = ticket._tensors(), ticket._content()
    change(tensors, content)
    container.write(tmp_path / "t", "ticket", tensors, content)
    with pytest.raises(TicketError, match="its parts do not fit together"):
        Ticket.load(tmp_path / "t")


def test_a_full_disk_is_one_clear_error_and_leaves_the_old_file(
    ticket: Ticket, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"cannot write .*ticket\.safetensors: No space left on device"):
        ticket.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_missing_directory_is_one_clear_error(ticket: Ticket, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        ticket.save(tmp_path / "no" / "ticket")


def test_metadata_without_a_json_form_is_refused(ticket: Ticket, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="metadata: expected plain numbers"):
        container.write(tmp_path / "t", "ticket", {}, {"x": object()})


def test_repr_says_level_density_and_hash(ticket: Ticket) -> None:
    assert repr(ticket) == f"Ticket(level=2, density={ticket.density:.4g}, hash={ticket.hash[:12]})"

"""Stored state without pickle, and an optimiser's state read back through a mask."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lth_sparse as ls
from lth_sparse.engine.rng import capture_rng, derived_seed, preserved_rng, restore_rng, seed_all
from lth_sparse.engine.snapshot import Snapshot, load_attached, load_tensors
from lth_sparse.engine.trees import decode, encode
from lth_sparse.errors import ArgumentTypeError, TicketError


def draw() -> tuple[float, float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), float(np.random.randn()), random.gauss(0, 1)


@pytest.mark.parametrize(
    "tree",
    [
        None,
        True,
        3,
        -0.5,
        float("inf"),
        float("-inf"),
        "text",
        [],
        (),
        {},
        [1, (2, [3.0, None])],
        {0: {"a": 1}, "b": (1, 2)},
        Counter({3: 1, 6: 2}),
        tuple(range(625)),
        list(range(40)),
        [True] * 40,
        2**80,
    ],
)
def test_trees_come_back_equal_and_of_the_same_type(tree: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    back = decode(encode(tree, "x", tensors), tensors)
    assert back == tree
    assert type(back) is type(tree)


def test_tensors_and_arrays_come_back_as_copies() -> None:
    tree = {"t": torch.rand(3), "u": np.arange(4, dtype=np.uint32), "f": np.array([0.5]), "s": np.float32(2)}
    tensors: dict[str, torch.Tensor] = {}
    back = decode(encode(tree, "x", tensors), tensors)
    assert torch.equal(back["t"], tree["t"])
    assert back["t"] is not tree["t"]
    assert back["u"].dtype == np.uint32
    assert back["u"].tolist() == [0, 1, 2, 3]
    assert (back["f"].tolist(), back["s"]) == ([0.5], 2.0)


def test_what_cannot_be_stored_is_named() -> None:
    with pytest.raises(ArgumentTypeError, match=r"optimizer\.hook: expected numbers, .* got a function"):
        encode({"hook": draw}, "optimizer", {})


def test_random_states_survive_the_file(tmp_path: Path, seed: int) -> None:
    draw()
    snapshot = Snapshot.take(nn.Sequential(nn.Linear(2, 2)), 3, {})
    snapshot.save(tmp_path / "s")
    expected = [draw() for _ in range(3)]
    restore_rng(Snapshot.load(tmp_path / "s").rng)
    assert [draw() for _ in range(3)] == expected


def test_seeding_covers_all_three(seed: int) -> None:
    seed_all(5)
    first = draw()
    seed_all(5)
    assert draw() == first
    seed_all(2**40 + 1)
    assert draw() != first


def test_preserved_states_survive_anything(seed: int) -> None:
    state = capture_rng()
    with preserved_rng():
        seed_all(9)
        draw()
    restored = draw()
    restore_rng(state)
    assert draw() == restored


def test_derived_seeds_differ_by_seed_level_and_purpose() -> None:
    seeds = {derived_seed(s, k, p) for s in range(3) for k in range(3) for p in ("reinit", "shuffled")}
    assert len(seeds) == 18
    assert derived_seed(0, 1, "reinit") == derived_seed(0, 1, "reinit") < 2**32


def test_a_snapshot_is_a_copy() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    snapshot = Snapshot.take(model, 0, {})
    before = snapshot.tensors["0.weight"].clone()
    with torch.no_grad():
        model[0].weight.fill_(9)
    assert torch.equal(snapshot.tensors["0.weight"], before)


def test_loading_restores_parameters_and_all_buffers(net: nn.Module) -> None:
    snapshot = Snapshot.take(net, 0, {})
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.fill_(7)
    load_tensors(net, snapshot.tensors)
    assert float(net.calls) == 0  # type: ignore[arg-type]
    assert all(torch.equal(tensor, snapshot.tensors[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    ],
)
def test_optimiser_state_is_gathered_by_the_mask(make: Any, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    optimizer = make(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.rand(4, 6)).square().sum().backward()
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.003
    Snapshot.take(model, 3, {"optimizer": optimizer}).save(tmp_path / "s")
    snapshot = Snapshot.load(tmp_path / "s")
    dense_state = {id(p): state for p, state in optimizer.state.items()}
    expected = {name: dense_state[id(p)] for name, p in model.named_parameters()}

    mask = torch.rand(5, 6) < 0.5
    ls.sparsify_(model, {"0.weight": mask}, layout="csr")
    again = make(model.parameters())
    load_attached("optimizer", again, snapshot.attached["optimizer"], model)
    assert again.param_groups[0]["lr"] == 0.003
    for key, value in again.state[model[0].values].items():
        whole = expected["0.weight"][key]
        assert torch.equal(value, whole[mask] if whole.shape == mask.shape else whole)
    for key, value in again.state[model[2].weight].items():
        assert torch.equal(value, expected["2.weight"][key])
    model(torch.rand(4, 6)).sum().backward()
    again.step()


def test_optimiser_state_is_gathered_into_blocks() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(4, 8)).sum().backward()
    optimizer.step()
    momentum = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    snapshot = Snapshot.take(model, 1, {"optimizer": optimizer})
    mask = (torch.eye(2) > 0).repeat_interleave(4, 0).repeat_interleave(4, 1)
    ls.sparsify_(model, {"0.weight": mask}, layout="bsr", block=(4, 4))
    again = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    load_attached("optimizer", again, snapshot.attached["optimizer"], model)
    layer: Any = model[0]
    assert torch.equal(layer.layout.scatter(again.state[layer.values]["momentum_buffer"]), momentum * mask)


def test_schedulers_and_scalers_come_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedulers: dict[str, Any] = {
        "steps": torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5]),
        "cosine": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9),
        "chain": torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)],
            [3],
        ),
        "scaler": torch.amp.GradScaler("cpu"),
    }
    Snapshot.take(model, 0, schedulers).save(tmp_path / "s")
    snapshot = Snapshot.load(tmp_path / "s")
    for name, scheduler in schedulers.items():
        before = scheduler.state_dict()
        load_attached(name, scheduler, snapshot.attached[name], model)
        assert scheduler.state_dict() == before


def test_a_damaged_snapshot_is_refused(tmp_path: Path) -> None:
    Snapshot.take(nn.Sequential(nn.Linear(2, 2)), 0, {}).save(tmp_path / "s")
    data = bytearray((tmp_path / "s").read_bytes())
    data[-3] ^= 1
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(TicketError, match="does not match its hash"):
        Snapshot.load(tmp_path / "s")

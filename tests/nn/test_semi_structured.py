"""Layers with the 2:4 layout: conversion, state, training, compilation, reports."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from semi_cases import semi_mask
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.errors import ArgumentError
from lth_sparse.nn import SparseConv2d, SparseLinear
from lth_sparse.ops import plan


def build() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 12), nn.ReLU(), nn.Linear(12, 5))


def masks_of_half() -> dict[str, Tensor]:
    """Two layers of which every four weights in a row keep at most two; fc1's rows, 54 long, have none."""
    return {"0.weight": semi_mask((6, 4, 3, 3), 0.8), "5.weight": semi_mask((5, 12), 1.0)}


@pytest.fixture
def pair(seed: int) -> tuple[nn.Sequential, nn.Sequential, dict[str, Tensor]]:
    """(sparse, masked dense, masks)"""
    sparse, masks = build(), masks_of_half()
    dense = copy.deepcopy(sparse)
    with torch.no_grad():
        for name, mask in masks.items():
            dense.get_parameter(name).mul_(mask)
    ls.sparsify_(sparse, masks, layout="2:4")
    return sparse, dense, masks


def inputs() -> Tensor:
    return torch.randn(7, 4, 5, 5, generator=torch.Generator().manual_seed(5))


def test_the_sparse_model_computes_what_the_masked_dense_one_did(pair: Any) -> None:
    sparse, dense, masks = pair
    assert isinstance(sparse[0], SparseConv2d)
    assert isinstance(sparse[5], SparseLinear)
    torch.testing.assert_close(sparse(inputs()), dense(inputs()))
    assert ls.Mask(masks).equals(ls.nn.masks_of(sparse))
    ls.densify_(sparse)
    assert all(torch.equal(sparse.get_parameter(name), right) for name, right in dense.named_parameters())


def test_from_dense_takes_the_layout(seed: int) -> None:
    linear, mask = nn.Linear(8, 6), semi_mask((6, 8), 1.0)
    layer = SparseLinear.from_dense(linear, mask, layout="2:4")
    assert layer.values.shape == (6, 4)
    assert repr(layer).endswith("density=0.5, layout=2:4)")
    assert torch.equal(layer.weight, linear.weight * mask)
    assert layer.density == 0.5


def test_a_mask_that_is_not_two_of_four_is_refused_by_name_and_changes_nothing(seed: int) -> None:
    model = build()
    before = list(model.parameters())
    masks = masks_of_half()
    masks["5.weight"][3, 4:8] = True
    with pytest.raises(ArgumentError, match=r"5.weight: mask: expected at most 2 .*, got 4 in group 1 of row 3"):
        ls.sparsify_(model, masks, layout="2:4")
    with pytest.raises(ArgumentError, match=r"3.weight: mask: expected .* a multiple of 4 for layout='2:4', got 54"):
        ls.sparsify_(model, {"3.weight": torch.zeros(12, 54, dtype=torch.bool)}, layout="2:4")
    with pytest.raises(ArgumentError, match="block: expected None with layout='2:4'"):
        ls.sparsify_(model, masks, layout="2:4", block=(2, 2))
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


def test_the_planner_is_never_offered_it_unasked(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[tuple[str, ...]] = []

    def choose(*_: Any, kinds: tuple[str, ...], **__: Any) -> plan.Choice:
        offered.append(kinds)
        return plan.Choice("dense", None, None, None, "")

    monkeypatch.setattr(plan, "choose_layout", choose)
    for options in ({}, {"sample_input": inputs()}, {"block": (2, 2), "cover": "zeros"}):
        ls.sparsify_(build(), masks_of_half(), **options)  # type: ignore[arg-type]
    assert len(offered) == 6
    assert not any("2:4" in kinds for kinds in offered)


def test_the_report_says_what_runs_and_what_it_weighs(seed: int) -> None:
    model, masks = build(), masks_of_half()
    report = ls.sparsify_(model, masks, layout="2:4", sample_input=inputs())
    assert [(row.name, row.layout, row.backend, row.block) for row in report] == [
        ("0", "2:4", "reference", None),
        ("5", "2:4", "reference", None),
    ]
    for row in report:
        module: Any = model.get_submodule(row.name)
        assert row.nnz == int(masks[f"{row.name}.weight"].sum())
        assert row.bytes_sparse == sum(tensor.nbytes for tensor in (module.values, *module.buffers()))
    assert "2:4" in str(report)


def test_states_round_trip_in_both_forms(pair: Any, tmp_path: Path) -> None:
    sparse, dense, masks = pair
    names = [name for name in sparse.state_dict() if name.startswith("5.")]
    assert names == ["5.values", "5.bias", "5.positions", "5.value_mask"]
    other = build()
    ls.sparsify_(other, masks, layout="2:4")
    save_file(sparse.state_dict(), tmp_path / "state.safetensors")
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    torch.testing.assert_close(other(inputs()), dense(inputs()))
    plain = build()
    plain.load_state_dict(ls.dense_state_dict(sparse), strict=True)
    torch.testing.assert_close(plain(inputs()), dense(inputs()))
    other.load_state_dict(build().state_dict())
    assert ls.Mask(masks).equals(ls.nn.masks_of(other))


def test_a_state_of_another_mask_is_refused(pair: Any) -> None:
    sparse, _, masks = pair
    other = build()
    ls.sparsify_(other, {name: mask.flip(0) for name, mask in masks.items()}, layout="2:4")
    with pytest.raises(RuntimeError, match=r"5\.positions: belongs to another mask or layout"):
        sparse.load_state_dict(other.state_dict())


def test_a_further_mask_takes_more_weights_away(pair: Any) -> None:
    sparse, dense, masks = pair
    further = {name: mask & (torch.rand(mask.shape) < 0.5) for name, mask in masks.items()}
    ls.sparsify_(sparse, further, layout="2:4")
    with torch.no_grad():
        for name, mask in further.items():
            dense.get_parameter(name).mul_(mask)
    torch.testing.assert_close(sparse(inputs()), dense(inputs()))


def test_training_equals_that_of_the_masked_dense_network(pair: Any) -> None:
    sparse, dense, masks = (pair[0].double(), pair[1].double(), pair[2])
    x, target = inputs().double(), torch.arange(7) % 5
    for model in (sparse, dense):
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        for _ in range(8):
            optimiser.zero_grad()
            F.cross_entropy(model(x), target).backward()
            if model is dense:
                for name, mask in masks.items():
                    model.get_parameter(name).grad.mul_(mask)
            optimiser.step()
            if model is dense:
                with torch.no_grad():
                    for name, mask in masks.items():
                        model.get_parameter(name).mul_(mask)
    state = ls.dense_state_dict(sparse)
    for name, right in dense.state_dict().items():
        torch.testing.assert_close(state[name], right, rtol=1e-7, atol=1e-9)
    conv: Any = sparse[0]
    assert bool((conv.values[~conv.value_mask] == 0).all())  # slots that are not live stay zero


# Dynamo itself instantiates every autograd.Function that it traces, and torch warns about that.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles_as_one_graph_and_exports(pair: Any) -> None:
    sparse, _, _ = pair
    right = sparse(inputs())
    try:
        y = torch.compile(sparse, fullgraph=True, backend="aot_eager")(inputs())
        y.sum().backward()
        torch.testing.assert_close(y, right)
        assert all(parameter.grad is not None for parameter in sparse.parameters())
    finally:
        torch._dynamo.reset()
    program = torch.export.export(sparse, (inputs(),))
    torch.testing.assert_close(program.module()(inputs()), right)


def test_casts_and_copies_keep_the_index(pair: Any) -> None:
    sparse, dense, _ = pair
    dtypes = [tensor.dtype for tensor in sparse[5].layout.index]
    twin = copy.deepcopy(sparse).to(torch.bfloat16)
    assert [tensor.dtype for tensor in twin[5].layout.index] == dtypes
    torch.testing.assert_close(twin(inputs().bfloat16()).float(), dense(inputs()), rtol=5e-2, atol=5e-2)

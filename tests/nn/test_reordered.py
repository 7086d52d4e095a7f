"""Layers whose blocks lie in another order compute, save, load and change as any other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.errors import ArgumentError
from lth_sparse.formats import Reordered, Reordering
from lth_sparse.nn import SparseConv2d, SparseLinear
from lth_sparse.ops import plan
from lth_sparse.ops.measure import Timing

OPTIONS: dict[str, Any] = {"layout": "reordered", "block": (4, 4), "cover": "zeros"}


def hidden(rows: int, cols: int, block: tuple[int, int] = (4, 4)) -> Tensor:
    """Whole blocks, their rows and columns shuffled."""
    generator = torch.Generator().manual_seed(rows + cols)
    kept = torch.rand(rows // block[0], cols // block[1], generator=generator) < 0.4
    mask = kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return mask[torch.randperm(rows, generator=generator)][:, torch.randperm(cols, generator=generator)]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 32), nn.ReLU(), nn.Linear(32, 4)
    ).double()


@pytest.fixture
def masks() -> dict[str, Tensor]:
    return {"0.weight": hidden(16, 8)[..., None, None].expand(-1, -1, 3, 3).contiguous(), "3.weight": hidden(32, 256)}


def test_blocks_are_few_and_the_function_is_that_of_the_masked_model(
    model: nn.Module, masks: dict[str, Tensor]
) -> None:
    dense = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            dense.get_parameter(name).mul_(mask)
    x = torch.randn(5, 8, 4, 4, dtype=torch.float64)
    report = ls.sparsify_(model, masks, **OPTIONS)
    torch.testing.assert_close(model(x), dense(x))
    assert [row.layout for row in report] == ["reordered", "reordered"]
    assert "reordered 4x4" in str(report)
    linear = model[3]
    assert isinstance(linear.layout, Reordered)
    assert linear.layout.nblocks * 16 == int(masks["3.weight"].sum())
    assert "layout=reordered 4x4" in repr(linear)
    assert torch.equal(linear.mask, masks["3.weight"])
    state = ls.dense_state_dict(model)
    assert all(torch.equal(state[name], tensor) for name, tensor in dense.state_dict().items())
    ls.densify_(model)
    torch.testing.assert_close(model(x), dense(x), rtol=0, atol=0)


def test_a_state_dict_keeps_the_order_and_is_refused_by_another(masks: dict[str, Tensor]) -> None:
    mask = masks["3.weight"]
    first, second = (SparseLinear.from_dense(nn.Linear(256, 32), mask, **OPTIONS) for _ in range(2))
    assert {"row_order", "col_order"} <= set(first.state_dict())
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.weight, first.weight)
    order = Reordering(torch.arange(32).flip(0), torch.arange(256), (4, 4), 0, 0)
    other = SparseLinear(nn.Linear(256, 32), Reordered.from_mask(mask, (4, 4), "zeros", order=order))
    with pytest.raises(RuntimeError, match="belongs to another mask or layout"):
        other.load_state_dict(first.state_dict())
    other.load_state_dict({"weight": first.weight, "bias": first.bias})
    assert torch.equal(other.weight, first.weight)


def test_a_mask_changes_and_the_order_stays() -> None:
    mask = hidden(32, 64)
    layer = SparseLinear.from_dense(nn.Linear(64, 32), mask, **OPTIONS)
    before, weight = layer.layout, layer.weight
    assert isinstance(before, Reordered)
    full = before.with_mask(torch.ones_like(mask))
    grown = full.gather(torch.ones(32, 64)).flatten(1).any(1)
    grown[:-1] = False  # the last block alone
    last = full.scatter(grown[:, None, None] * torch.ones(full.values_shape)) != 0
    ls.nn.update_mask_(layer, mask | last)
    after = layer.layout
    assert isinstance(after, Reordered)
    assert torch.equal(after.row_order, before.row_order)
    assert torch.equal(after.col_order, before.col_order)
    assert torch.equal(layer.mask, mask | last)
    assert torch.equal(layer.weight[mask & ~last], weight[mask & ~last])


def test_bias_gradients_come_back_in_their_place() -> None:
    dense = nn.Linear(64, 32).double()
    layer = SparseLinear.from_dense(copy.deepcopy(dense), hidden(32, 64), **OPTIONS)
    with torch.no_grad():
        dense.weight.mul_(layer.mask)
    x, grad = torch.randn(3, 64, dtype=torch.float64), torch.randn(3, 32, dtype=torch.float64)
    for module in (dense, layer):
        module(x).backward(grad)
    assert layer.bias is not None
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


def test_grouped_convolutions_and_stacks_are_refused() -> None:
    conv = nn.Conv2d(8, 16, 3, groups=2)
    with pytest.raises(ArgumentError, match="layout: expected one that keeps a grouped convolution's channels"):
        SparseConv2d.from_dense(conv, torch.rand(conv.weight.shape) < 0.5, **OPTIONS)
    layers = [SparseLinear.from_dense(nn.Linear(8, 8), torch.rand(8, 8) < 0.5, **OPTIONS) for _ in range(2)]
    with pytest.raises(ArgumentError, match="layers: expected ones that keep the order of their rows"):
        ls.nn.SparseLinearStack.from_layers(layers)


def test_auto_takes_reordered_blocks_where_they_are_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(weight: object, layouts: dict[str, object], *_: object, **__: object) -> dict[str, Timing]:
        return {name: Timing(0.1, 0.5 if name == "reordered 4x4" else 1.0) for name in ("torch", "masked", *layouts)}

    monkeypatch.setattr(plan, "measure", measure)
    monkeypatch.setenv("LTH_SPARSE_CACHE", "0")
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    x = torch.randn(4, 64)
    noise = torch.rand(8, 32, generator=torch.Generator().manual_seed(0)) < 0.1
    report = ls.sparsify_(model, {"0.weight": hidden(32, 64), "2.weight": noise}, sample_input=x)
    first, second = report
    assert (first.layout, first.block, first.note) == ("reordered", (4, 4), "measured, 2.00x dense")
    assert second.layout == "dense"
    assert "reordered 4x4" in str(report)

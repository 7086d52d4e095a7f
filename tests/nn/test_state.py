"""state_dict of sparse modules: its own, a dense one, and dense_state_dict for the original architecture."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.nn import SparseConv2d, SparseLinear

OPTIONS: dict[str, dict[str, Any]] = {
    "csr": {"layout": "csr"},
    "bsr": {"layout": "bsr", "block": (2, 2), "cover": "zeros"},
    "reordered": {"layout": "reordered", "block": (2, 2), "cover": "zeros"},
    "bsr_channels_last": {"layout": "bsr", "block": (2, 2), "cover": "zeros", "channels_last": True},
    "dense": {"layout": "dense"},
}


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS)
def options(request: Any) -> dict[str, Any]:
    return request.param


def test_own_state_holds_values_bias_and_what_identifies_the_mask(net: nn.Module, masks_for: Any) -> None:
    ls.sparsify_(net, masks_for(net), layout="csr")
    names = [name for name in net.state_dict() if name.startswith("fc")]
    assert names == [
        *(f"fc1.{name}" for name in ("values", "bias", "crow_indices", "col_indices")),
        *(f"fc2.{name}" for name in ("values", "crow_indices", "col_indices")),
    ]


def test_own_state_round_trips(net: nn.Module, masks_for: Any, images: Tensor, options: Any) -> None:
    masks = masks_for(net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    ls.sparsify_(net, masks, **options)
    ls.sparsify_(other, masks, **options)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(images), net.eval()(images))


def test_own_state_needs_no_pickle(net: nn.Module, masks_for: Any, options: Any, tmp_path: Path) -> None:
    ls.sparsify_(net, masks_for(net), **options)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    net.load_state_dict(torch.load(file, weights_only=True))
    save_file(net.state_dict(), tmp_path / "state.safetensors")
    net.load_state_dict(load_file(tmp_path / "state.safetensors"))


@pytest.mark.parametrize("assign", [False, True])
def test_a_dense_state_loads_with_the_mask_kept(
    net: nn.Module, masks_for: Any, apply_masks: Any, images: Tensor, options: Any, assign: bool
) -> None:
    masks = masks_for(net)
    trained = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.copy_(torch.randn_like(parameter))
    ls.sparsify_(net, masks, **options)
    state = trained.state_dict()
    assert str(net.load_state_dict(state, assign=assign)) == "<All keys matched successfully>"
    assert all(torch.equal(mask, masks[name]) for name, mask in ls.nn.masks_of(net).items())
    torch.testing.assert_close(net.eval()(images), apply_masks(trained, masks).eval()(images))


def test_loading_a_dense_state_by_assignment_takes_its_dtype_and_copies_its_weights(
    net: nn.Module, masks_for: Any
) -> None:
    trained = copy.deepcopy(net).double()
    ls.sparsify_(net, masks_for(net), layout="dense")
    net.load_state_dict(trained.state_dict(), assign=True)
    values = net.get_parameter("fc1.values")
    assert values.dtype == torch.float64
    assert isinstance(values, nn.Parameter)
    with torch.no_grad():
        values.zero_()
    assert bool((trained.get_parameter("fc1.weight") != 0).all())


def test_loading_keeps_the_parameter_objects_that_an_optimiser_holds(net: nn.Module, masks_for: Any) -> None:
    dense = net.state_dict()
    ls.sparsify_(net, masks_for(net), layout="csr")
    before = list(net.parameters())
    net.load_state_dict(dense)
    net.load_state_dict(net.state_dict())
    assert all(a is b for a, b in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_of_another_mask_is_refused_and_changes_nothing(
    net: nn.Module, masks_for: Any, options: Any, strict: bool
) -> None:
    other = copy.deepcopy(net)
    masks = masks_for(net)
    ls.sparsify_(net, masks, **options)
    ls.sparsify_(other, {name: mask.flip(0) for name, mask in masks.items()}, **options)  # the same number is kept
    before = net.get_parameter("fc1.values").detach().clone()
    with pytest.raises(RuntimeError, match=r"fc1\.\w+: belongs to another mask or layout.*dense_state_dict"):
        net.load_state_dict(other.state_dict(), strict=strict)
    assert torch.equal(net.get_parameter("fc1.values"), before)


def test_a_dense_weight_of_the_wrong_shape_is_refused_by_name(net: nn.Module, masks_for: Any) -> None:
    state = net.state_dict()
    state["fc1.weight"] = torch.zeros(11, 3)
    ls.sparsify_(net, masks_for(net), layout="csr")
    with pytest.raises(RuntimeError, match=r"fc1.weight: expected shape \[11, 245\], got \[11, 3\]"):
        net.load_state_dict(state)


@pytest.mark.parametrize("missing", ["fc1.values", "fc1.col_indices", "fc1.bias"])
def test_a_missing_entry_is_reported_by_name(net: nn.Module, masks_for: Any, missing: str) -> None:
    ls.sparsify_(net, masks_for(net), layout="csr")
    state = net.state_dict()
    del state[missing]
    with pytest.raises(RuntimeError, match=rf"Missing key\(s\) in state_dict: .*{missing}"):
        net.load_state_dict(state)


def test_an_unknown_entry_is_reported_by_name(net: nn.Module, masks_for: Any) -> None:
    ls.sparsify_(net, masks_for(net), layout="csr")
    state = {**net.state_dict(), "fc1.weight": torch.zeros(11, 245)}
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*fc1.weight"):
        net.load_state_dict(state)


def test_a_lone_layer_loads_both_kinds_of_state(seed: int) -> None:
    dense, mask = nn.Linear(4, 3), torch.rand(3, 4) < 0.5
    layer = SparseLinear.from_dense(nn.Linear(4, 3), mask)
    layer.load_state_dict(dense.state_dict())
    assert torch.equal(layer.weight, dense.weight * mask)
    layer.load_state_dict(layer.state_dict())
    assert torch.equal(layer.weight, dense.weight * mask)


def test_an_index_in_another_integer_dtype_is_the_same_mask(seed: int) -> None:
    layer = SparseLinear.from_dense(nn.Linear(4, 3), torch.rand(3, 4) < 0.5)
    state = {key: tensor.to(torch.int64) if "indices" in key else tensor for key, tensor in layer.state_dict().items()}
    dtypes = [tensor.dtype for tensor in layer.layout.index]
    layer.load_state_dict(state, assign=True)
    assert [tensor.dtype for tensor in layer.layout.index] == dtypes


def test_dense_state_has_the_names_the_order_and_the_metadata_of_the_original(
    net: nn.Module, masks_for: Any, options: Any
) -> None:
    original = net.state_dict()
    ls.sparsify_(net, masks_for(net), **options)
    state = ls.dense_state_dict(net)
    assert list(state) == list(original)
    assert state._metadata == original._metadata  # type: ignore[attr-defined]


def test_dense_state_loads_strictly_into_the_original_architecture(
    net: nn.Module, masks_for: Any, apply_masks: Any, images: Tensor, options: Any
) -> None:
    masks = masks_for(net)
    original = copy.deepcopy(net)
    apply_masks(net, masks)
    right = net.eval()(images)
    ls.sparsify_(net, masks, **options)
    original.load_state_dict(ls.dense_state_dict(net), strict=True)
    torch.testing.assert_close(original.eval()(images), right)


def test_the_usual_state_comes_back_after_a_dense_one(net: nn.Module, masks_for: Any) -> None:
    ls.sparsify_(net, masks_for(net), layout="csr")
    names = list(net.state_dict())
    ls.dense_state_dict(net)
    assert list(net.state_dict()) == names


def test_dense_state_weights_are_detached_copies(net: nn.Module, masks_for: Any) -> None:
    ls.sparsify_(net, dict.fromkeys(["fc2.weight"], torch.ones(4, 11, dtype=torch.bool)), layout="dense")
    state = ls.dense_state_dict(net)
    assert not state["fc2.weight"].requires_grad
    state["fc2.weight"].zero_()
    assert bool((net.get_parameter("fc2.values") != 0).all())


def test_a_state_of_shared_and_tied_layers_round_trips_both_ways(seed: int) -> None:
    def build() -> nn.Sequential:
        shared = nn.Linear(4, 4)
        tied = nn.Linear(4, 4)
        model = nn.Sequential(shared, nn.ReLU(), shared, tied, nn.Linear(4, 4))
        model[4].weight = tied.weight
        return model

    original, model = build(), build()
    mask = torch.rand(4, 4) < 0.5
    ls.sparsify_(model, {"0.weight": mask, "3.weight": mask}, layout="csr")
    state = ls.dense_state_dict(model)
    assert list(state) == list(original.state_dict())
    assert state["0.weight"] is state["2.weight"]
    assert state["3.weight"] is state["4.weight"]
    original.load_state_dict(state)
    x = torch.randn(2, 4)
    torch.testing.assert_close(original(x), model(x))
    model.load_state_dict(original.state_dict())
    model.load_state_dict(model.state_dict())
    torch.testing.assert_close(original(x), model(x))


def test_a_model_cast_to_bfloat16_keeps_its_dtype_in_every_state(
    net: nn.Module, masks_for: Any, images: Tensor, options: Any
) -> None:
    ls.sparsify_(net, masks_for(net), **options)
    single = net.eval()(images)
    net.to(torch.bfloat16)
    with torch.no_grad():
        y = net(images.bfloat16())
    torch.testing.assert_close(y.float(), single, rtol=5e-2, atol=5e-2)
    other = copy.deepcopy(net)
    other.load_state_dict(net.state_dict())
    assert {tensor.dtype for tensor in other.parameters()} == {torch.bfloat16}
    dense = [tensor for tensor in ls.dense_state_dict(other).values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in dense} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(other(images.bfloat16()), y)


def test_the_order_of_blocks_is_part_of_the_state() -> None:
    """The same blocks in the other order are other weights; with all blocks kept, nothing else tells them apart."""
    mask = torch.ones(4, 6, 3, 3, dtype=torch.bool)
    conv = nn.Conv2d(6, 4, 3)
    layers = {order: SparseConv2d.from_dense(conv, mask, "bsr", (2, 3), channels_last=order) for order in (False, True)}
    states = {order: layer.state_dict() for order, layer in layers.items()}
    assert states[False].keys() ^ states[True].keys() == {"channels_last"}
    assert torch.equal(states[False]["col_indices"], states[True]["col_indices"])
    for order, layer in layers.items():
        before = layer.values.detach().clone()
        layer.load_state_dict(states[order])
        with pytest.raises(RuntimeError, match="belongs to another mask or layout than this module's"):
            layer.load_state_dict(states[not order])
        assert torch.equal(layer.values, before)
        assert torch.equal(layer.weight, conv.weight)
        assert torch.equal(ls.dense_state_dict(nn.Sequential(layer))["0.weight"], conv.weight)
    assert layers[True].layout.channels_last
    assert copy.deepcopy(layers[True]).to(torch.float64).layout.channels_last

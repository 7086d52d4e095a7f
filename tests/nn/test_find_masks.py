"""Masks found in a model: torch.nn.utils.prune, torch.ao.pruning (a parametrization with a mask), exact zeros."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import lth_sparse as ls
from lth_sparse.errors import ArgumentError
from lth_sparse.nn import SparseLinear


class MaskTimes(nn.Module):
    """What torch.ao.pruning registers: a parametrization that multiplies by its mask."""

    def __init__(self, mask: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.mask * x * self.scale


def test_prune_masks_are_found_and_the_function_stays(net: nn.Module, images: Tensor) -> None:
    for name in ("conv", "fc1"):
        prune.l1_unstructured(net.get_submodule(name), "weight", amount=0.7)
    right = net.eval()(images)
    found = ls.nn.find_masks(net)
    ls.sparsify_(net)
    assert list(found) == ["conv.weight", "fc1.weight"]
    assert found.equals(ls.nn.masks_of(net))
    torch.testing.assert_close(net(images), right)


def test_nothing_of_prune_is_left_behind(net: nn.Module) -> None:
    names = [name for name, _ in net.named_parameters()]
    prune.random_unstructured(net.get_submodule("fc1"), "weight", amount=0.7)
    ls.sparsify_(net)
    ls.densify_(net)
    assert [name for name, _ in net.named_parameters()] == names
    assert not net.get_submodule("fc1")._forward_pre_hooks
    assert not list(net.get_submodule("fc1").buffers())


def test_a_model_pruned_by_torch_can_be_copied_once_it_is_sparse(net: nn.Module, images: Tensor) -> None:
    prune.random_unstructured(net.get_submodule("fc1"), "weight", amount=0.7)
    net(images)  # from here on torch's own pruned module refuses deepcopy
    ls.sparsify_(net)
    assert torch.equal(copy.deepcopy(net).eval()(images), net.eval()(images))


def test_iterated_pruning_is_one_mask(net: nn.Module, images: Tensor) -> None:
    prune.l1_unstructured(net.get_submodule("fc1"), "weight", amount=0.5)
    prune.ln_structured(net.get_submodule("fc1"), "weight", amount=0.3, n=2, dim=0)
    mask = net.get_submodule("fc1").weight_mask != 0
    right = net.eval()(images)
    ls.sparsify_(net)
    assert torch.equal(ls.nn.masks_of(net)["fc1.weight"], mask)
    torch.testing.assert_close(net(images), right)


def test_the_trained_original_counts_and_not_the_weight_that_prune_cached(net: nn.Module) -> None:
    fc1: Any = net.get_submodule("fc1")
    prune.l1_unstructured(fc1, "weight", amount=0.5)
    with torch.no_grad():
        fc1.weight_orig.add_(1)  # as an optimiser does; fc1.weight is renewed at the next forward only
    ls.sparsify_(net)
    assert torch.equal(net.get_submodule("fc1").weight, fc1.weight_orig * fc1.weight_mask)


def test_a_given_mask_must_stay_inside_that_of_prune(net: nn.Module) -> None:
    fc1: Any = net.get_submodule("fc1")
    prune.random_unstructured(fc1, "weight", amount=0.5)
    mask = fc1.weight_mask != 0
    with pytest.raises(ArgumentError, match=r"masks\['fc1.weight'\]: expected a subset of the weights kept so far"):
        ls.sparsify_(net, {"fc1.weight": torch.ones_like(mask)})
    mask[:3] = False
    ls.sparsify_(net, {"fc1.weight": mask})
    assert torch.equal(ls.nn.masks_of(net)["fc1.weight"], mask)


def test_a_pruned_bias_is_refused_by_name(net: nn.Module) -> None:
    prune.random_unstructured(net.get_submodule("fc1"), "bias", amount=0.5)
    assert "fc1.bias" in ls.nn.find_masks(net)
    with pytest.raises(ArgumentError, match=r"masks\['fc1.bias'\]: .*a bias, which is never pruned"):
        ls.sparsify_(net)


def test_a_pruned_layer_with_other_hooks_is_refused(net: nn.Module) -> None:
    prune.random_unstructured(net.get_submodule("fc1"), "weight", amount=0.5)
    net.get_submodule("fc1").register_forward_hook(lambda *_: None)
    with pytest.raises(ArgumentError, match=r"masks\['fc1.weight'\]: .*forward hooks"):
        ls.sparsify_(net)


def test_pruned_tied_weights_with_one_mask_stay_tied(seed: int) -> None:
    model: Any = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model.b.weight = model.a.weight
    mask = torch.rand(4, 4) < 0.5
    for layer in (model.a, model.b):
        prune.custom_from_mask(layer, "weight", mask)
    ls.sparsify_(model)
    assert model.a.values is model.b.values


def test_tied_weights_pruned_in_one_place_only_are_refused(seed: int) -> None:
    model: Any = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model.b.weight = model.a.weight
    prune.custom_from_mask(model.a, "weight", torch.rand(4, 4) < 0.5)
    with pytest.raises(ArgumentError, match=r"tied to b.weight, and there the mask is another one"):
        ls.sparsify_(model)


def test_from_dense_honours_the_mask_of_prune(seed: int) -> None:
    layer: Any = prune.random_unstructured(nn.Linear(4, 3), "weight", amount=0.5)
    mask = layer.weight_mask != 0
    sparse = SparseLinear.from_dense(layer, mask)
    assert torch.equal(sparse.weight, (layer.weight_orig * layer.weight_mask).detach())
    with pytest.raises(ArgumentError, match="mask: expected a subset"):
        SparseLinear.from_dense(layer, torch.ones(3, 4, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_masks_of_a_parametrization_are_found(dtype: torch.dtype, net: nn.Module, images: Tensor) -> None:
    mask = torch.rand(11, 245) < 0.3
    parametrize.register_parametrization(net.get_submodule("fc1"), "weight", MaskTimes(mask.to(dtype)))
    right = net.eval()(images)
    ls.sparsify_(net)
    assert type(net.get_submodule("fc1")) is SparseLinear
    assert torch.equal(ls.nn.masks_of(net)["fc1.weight"], mask)
    torch.testing.assert_close(net(images), right)


def test_a_parametrization_that_does_more_than_mask_is_refused(net: nn.Module) -> None:
    mask = torch.rand(11, 245) < 0.3
    parametrize.register_parametrization(net.get_submodule("fc1"), "weight", MaskTimes(mask, scale=2.0))
    with pytest.raises(ArgumentError, match=r"masks\['fc1.weight'\]: .*more than a mask"):
        ls.sparsify_(net, {"fc1.weight": mask})


def test_masks_of_ao_pruning_are_found(net: nn.Module, images: Tensor) -> None:
    pruning = pytest.importorskip("torch.ao.pruning")
    sparsifier = pruning.WeightNormSparsifier(sparsity_level=0.7, sparse_block_shape=(1, 1), zeros_per_block=1)
    sparsifier.prepare(net, [{"tensor_fqn": "fc1.weight"}])
    sparsifier.step()
    right = net.eval()(images)
    ls.sparsify_(net)
    assert ls.nn.masks_of(net)["fc1.weight"].float().mean() == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(net(images), right)


def test_exact_zeros_are_found(net: nn.Module, masks_for: Any, apply_masks: Any, images: Tensor) -> None:
    masks = masks_for(net)
    apply_masks(net, masks)
    right = net.eval()(images)
    ls.sparsify_(net)
    assert ls.Mask(masks).equals(ls.nn.masks_of(net))
    torch.testing.assert_close(net(images), right)


def test_a_sparse_model_gives_its_masks_and_a_tied_one_once(seed: int) -> None:
    model: Any = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model.b.weight = model.a.weight
    masks = {"a.weight": torch.rand(4, 4) < 0.5}
    ls.sparsify_(model, masks)
    assert ls.Mask(masks).equals(ls.nn.find_masks(model))
    assert ls.Mask(masks).equals(ls.nn.masks_of(model))


def test_pruned_and_zeroed_layers_are_found_together(net: nn.Module, apply_masks: Any) -> None:
    prune.random_unstructured(net.get_submodule("fc1"), "weight", amount=0.5)
    apply_masks(net, {"fc2.weight": torch.rand(4, 11) < 0.5})
    assert list(ls.nn.find_masks(net)) == ["fc1.weight", "fc2.weight"]


def test_negative_weights_are_live_however_small(net: nn.Module) -> None:
    with torch.no_grad():
        net.get_parameter("fc2.weight").fill_(-1e-30)[0, 0] = 0
    assert int(ls.nn.find_masks(net)["fc2.weight"].sum()) == 43


def test_nothing_pruned_is_an_error(net: nn.Module) -> None:
    with pytest.raises(ArgumentError, match=r"model: expected masks of .*got none; prune it first, or give masks"):
        ls.sparsify_(net)


def test_a_layer_of_zeros_is_left_alone_and_reported(net: nn.Module, apply_masks: Any) -> None:
    apply_masks(net, {"fc1.weight": torch.rand(11, 245) < 0.5})
    nn.init.zeros_(net.get_parameter("fc2.weight"))
    report = ls.sparsify_(net)
    assert type(net.get_submodule("fc2")) is nn.Linear
    assert [(row.name, row.layout) for row in report][1] == ("fc2", "unchanged")
    assert "may be an initialisation" in report.layers[1].note
    ls.sparsify_(net, {"fc2.weight": torch.zeros(4, 11, dtype=torch.bool)})
    assert net.get_submodule("fc2").nnz == 0


def test_a_special_layer_with_zeros_is_left_alone_and_reported(net: nn.Module, apply_masks: Any) -> None:
    apply_masks(net, {"fc1.weight": torch.rand(11, 245) < 0.5, "fc2.weight": torch.rand(4, 11) < 0.5})
    net.get_submodule("fc2").register_forward_hook(lambda *_: None)
    report = ls.sparsify_(net)
    assert type(net.get_submodule("fc2")) is nn.Linear
    assert "forward hooks" in report.layers[1].note


def test_zeros_in_a_weight_tied_to_an_embedding_are_left_alone_and_reported(seed: int, apply_masks: Any) -> None:
    model: Any = nn.ModuleDict({"embed": nn.Embedding(7, 4), "head": nn.Linear(4, 7), "fc": nn.Linear(4, 4)})
    model.head.weight = model.embed.weight
    apply_masks(model, {"embed.weight": torch.rand(7, 4) < 0.5, "fc.weight": torch.rand(4, 4) < 0.5})
    report = ls.sparsify_(model)
    assert {row.name: row.layout for row in report}["head"] == "unchanged"
    assert model.head.weight is model.embed.weight


def test_zeros_found_only_where_nothing_can_be_done_say_so(net: nn.Module, apply_masks: Any) -> None:
    apply_masks(net, {"fc2.weight": torch.rand(4, 11) < 0.5})
    net.get_submodule("fc2").register_forward_hook(lambda *_: None)
    with pytest.raises(ArgumentError, match=r"fc2 has zeros, but it has forward hooks"):
        ls.sparsify_(net)


def test_a_lazy_layer_is_passed_over(net: nn.Module, apply_masks: Any) -> None:
    apply_masks(net, {"fc1.weight": torch.rand(11, 245) < 0.5})
    net.extra = nn.LazyLinear(3)
    assert list(ls.nn.find_masks(net)) == ["fc1.weight"]

"""sparsify_ and densify_: in place, without changing the function, shared and tied parts kept together."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.nn import SparseConv2d, SparseLinear, SparseModule
from lth_sparse.ops import plan
from lth_sparse.ops.measure import Timing

OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {},
    "csr": {"layout": "csr"},
    "bsr, zeros": {"layout": "bsr", "block": (2, 3), "cover": "zeros"},
    "reordered": {"layout": "reordered", "block": (2, 3), "cover": "zeros"},
    "auto with a block": {"block": (2, 3)},
    "dense": {"layout": "dense"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_sparse_model_computes_what_the_masked_dense_one_did(
    options: Any, net: nn.Module, masks_for: Any, apply_masks: Any, images: Tensor
) -> None:
    masks = masks_for(net)
    right = apply_masks(copy.deepcopy(net), masks).double().eval()(images.double())
    ls.sparsify_(net, masks, **options)
    assert isinstance(net.get_submodule("conv"), SparseConv2d)
    assert isinstance(net.get_submodule("fc1"), SparseLinear)
    torch.testing.assert_close(net.double().eval()(images.double()), right)


def test_cover_train_adds_whole_blocks_to_the_mask(net: nn.Module) -> None:
    mask = torch.zeros(4, 11, dtype=torch.bool)
    mask[0, 0] = True
    ls.sparsify_(net, {"fc2.weight": mask}, layout="bsr", block=(2, 4), cover="train")
    assert int(ls.nn.masks_of(net)["fc2.weight"].sum()) == 8


def test_a_mask_that_is_no_union_of_blocks_is_refused_unless_covered(net: nn.Module, masks_for: Any) -> None:
    with pytest.raises(ArgumentError, match=r"a union of 2x3 blocks.*cover='zeros'.*cover='train'"):
        ls.sparsify_(net, masks_for(net), layout="bsr", block=(2, 3))


def test_only_masked_layers_are_replaced(net: nn.Module) -> None:
    fc2 = net.get_submodule("fc2")
    ls.sparsify_(net, {"fc1.weight": torch.rand(11, 245) < 0.3})
    assert net.get_submodule("fc2") is fc2
    assert [name for name, _ in ls.nn.sparse_modules(net)] == ["fc1"]


def test_masks_may_be_a_mask_object_and_come_back_equal(net: nn.Module, masks_for: Any) -> None:
    masks = ls.Mask(masks_for(net))
    ls.sparsify_(net, masks)
    assert masks.equals(ls.nn.masks_of(net))


def test_masks_of_a_dense_model_are_empty(net: nn.Module) -> None:
    assert len(ls.nn.masks_of(net)) == 0


def test_densify_gives_the_plain_model_with_zeros(
    net: nn.Module, masks_for: Any, apply_masks: Any, images: Tensor
) -> None:
    masks = masks_for(net)
    right = apply_masks(copy.deepcopy(net), masks)
    names = [type(module) for module in net.modules()]
    ls.sparsify_(net, masks, layout="csr")
    assert ls.densify_(net) is net
    assert [type(module) for module in net.modules()] == names
    assert all(torch.equal(net.get_parameter(name), parameter) for name, parameter in right.named_parameters())


def test_densify_of_a_dense_model_changes_nothing(net: nn.Module) -> None:
    before = list(net.parameters())
    ls.densify_(net)
    assert all(a is b for a, b in zip(net.parameters(), before, strict=True))


def test_training_mode_and_biases_are_kept(net: nn.Module, masks_for: Any) -> None:
    net.get_submodule("fc1").eval()
    bias = net.get_parameter("fc1.bias")
    ls.sparsify_(net, masks_for(net))
    assert not net.get_submodule("fc1").training
    assert net.get_submodule("conv").training
    assert net.get_parameter("fc1.bias") is bias
    ls.densify_(net)
    assert not net.get_submodule("fc1").training
    assert net.get_parameter("fc1.bias") is bias


def test_deepcopy_of_a_sparse_model_is_independent(net: nn.Module, masks_for: Any, images: Tensor) -> None:
    ls.sparsify_(net, masks_for(net), layout="csr")
    net(images).sum().backward()
    twin = copy.deepcopy(net).eval()
    assert torch.equal(twin(images), net.eval()(images))
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in net.parameters()}


# Shared modules, tied weights


def test_a_module_used_twice_is_converted_once_and_stays_shared(seed: int) -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), shared)})
    mask = torch.rand(4, 4) < 0.5
    report = ls.sparsify_(model, {"b.1.weight": mask})
    assert len(report) == 1
    assert model["a"] is model["b"][1]
    assert list(ls.nn.masks_of(model)) == ["a.weight"]
    ls.densify_(model)
    assert model["a"] is model["b"][1]


def tied_pair() -> nn.ModuleDict:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    return model


@pytest.mark.parametrize("names", [["a.weight"], ["b.weight"], ["a.weight", "b.weight"]])
def test_tied_weights_are_converted_together_and_stay_tied(names: list[str]) -> None:
    model = tied_pair()
    report = ls.sparsify_(model, dict.fromkeys(names, torch.rand(4, 4) < 0.5), layout="csr")
    assert len(report) == 1
    assert "tied with" in report.layers[0].note
    assert model["a"].values is model["b"].values
    assert model["a"].bias is not model["b"].bias
    assert len(list(model.parameters())) == 3
    twin = copy.deepcopy(model).double()
    assert twin["a"].values is twin["b"].values
    ls.densify_(model)
    assert model["a"].weight is model["b"].weight


def test_tied_weights_train_as_the_tied_dense_ones() -> None:
    dense, model = tied_pair().double(), tied_pair().double()
    mask = torch.rand(4, 4) < 0.5
    with torch.no_grad():
        dense["a"].weight.mul_(mask)
    ls.sparsify_(model, {"a.weight": mask}, layout="csr")
    x = torch.randn(3, 4, dtype=torch.float64)
    for m in (dense, model):
        m["b"](torch.tanh(m["a"](x))).sum().backward()
    torch.testing.assert_close(model["a"].values.grad, dense["a"].weight.grad[mask])


def test_tied_weights_with_two_masks_are_refused() -> None:
    masks = {"a.weight": torch.ones(4, 4, dtype=torch.bool), "b.weight": torch.zeros(4, 4, dtype=torch.bool)}
    with pytest.raises(ArgumentError, match=r"masks\['b.weight'\]: expected the mask of a.weight, the same weight"):
        ls.sparsify_(tied_pair(), masks)


def test_a_weight_tied_to_an_embedding_is_refused(seed: int) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    model["head"].weight = model["embed"].weight
    with pytest.raises(ArgumentError, match=r"head.weight.*tied to embed.weight.*Embedding has no sparse form.*untie"):
        ls.sparsify_(model, {"head.weight": torch.ones(7, 4, dtype=torch.bool)})


def test_a_weight_that_is_a_view_of_another_is_refused(seed: int) -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(7, 4), "decoder": nn.Linear(4, 7)})
    model["decoder"].weight = nn.Parameter(model["encoder"].weight.detach().t())
    with pytest.raises(ArgumentError, match=r"decoder.weight is a view of the same memory"):
        ls.sparsify_(model, {"encoder.weight": torch.ones(4, 7, dtype=torch.bool)})


def test_weights_side_by_side_in_one_buffer_are_fine(seed: int) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    flat = torch.randn(24)
    model[0].weight = nn.Parameter(flat[:12].view(3, 4))
    model[1].weight = nn.Parameter(flat[12:].view(4, 3))
    ls.sparsify_(model, {"0.weight": torch.ones(3, 4, dtype=torch.bool)})
    assert isinstance(model[0], SparseLinear)


# Again on a sparse model


def test_a_further_mask_prunes_a_sparse_layer_more(net: nn.Module, masks_for: Any, images: Tensor) -> None:
    masks = masks_for(net)
    further = {name: mask & (torch.rand(mask.shape) < 0.5) for name, mask in masks.items()}
    twin = copy.deepcopy(net)
    ls.sparsify_(net, masks, layout="csr")
    ls.sparsify_(net, further, layout="csr")
    ls.sparsify_(twin, further, layout="csr")
    assert torch.equal(net.eval()(images), twin.eval()(images))
    assert sum(m.values.numel() for _, m in ls.nn.sparse_modules(net)) == ls.Mask(further).nnz


def test_a_mask_that_revives_pruned_weights_is_refused(net: nn.Module, masks_for: Any) -> None:
    masks = masks_for(net)
    ls.sparsify_(net, masks, layout="csr")
    revived = int((~masks["fc1.weight"]).sum())
    with pytest.raises(
        ArgumentError, match=rf"masks\['fc1.weight'\]: expected a subset .* got {revived} that are pruned"
    ):
        ls.sparsify_(net, {"fc1.weight": torch.ones(11, 245, dtype=torch.bool)})


def test_the_same_again_keeps_every_object(net: nn.Module, masks_for: Any) -> None:
    ls.sparsify_(net, masks_for(net), layout="csr")
    modules, parameters = list(net.modules()), list(net.parameters())
    report = ls.sparsify_(net, layout="csr")
    assert len(report) == 3
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))


def test_a_sparse_model_changes_its_layout_without_masks(net: nn.Module, masks_for: Any, images: Tensor) -> None:
    ls.sparsify_(net, masks_for(net), layout="csr")
    right = net.eval()(images)
    report = ls.sparsify_(net, layout="dense")
    assert {row.layout for row in report} == {"dense"}
    torch.testing.assert_close(net(images), right)


# What is refused


FULL = torch.ones(11, 245, dtype=torch.bool)
BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no mapping": ([FULL], {}, ArgumentTypeError, r"masks: expected a mapping"),
    "empty": ({}, {}, ArgumentError, r"masks: expected at least one mask"),
    "name of no string": ({3: FULL}, {}, ArgumentTypeError, r"masks: expected parameter names as keys, got 3"),
    "unknown": ({"fc3.weight": FULL}, {}, ArgumentError, r"masks\['fc3.weight'\]: .*did you mean 'fc\d.weight'"),
    "module": ({"fc1": FULL}, {}, ArgumentError, r"masks\['fc1'\]: expected the name of a weight"),
    "no such tensor": ({"fc1.wait": FULL}, {}, ArgumentError, r"masks\['fc1.wait'\]: .*did you mean 'fc1.weight'"),
    "bias": ({"fc1.bias": FULL[:, 0]}, {}, ArgumentError, r"masks\['fc1.bias'\]: .*a bias, which is never pruned"),
    "BatchNorm": (
        {"norm.weight": FULL[:5, 0]},
        {},
        ArgumentError,
        r"masks\['norm.weight'\]: .*BatchNorm2d has no sparse",
    ),
    "buffer": ({"norm.running_mean": FULL}, {}, ArgumentError, r"masks\['norm.running_mean'\]: .*no sparse form"),
    "absent bias": ({"fc2.bias": FULL}, {}, ArgumentError, r"masks\['fc2.bias'\]: expected the name of a weight"),
    "shape": ({"fc1.weight": FULL.t()}, {}, ArgumentError, r"masks\['fc1.weight'\]: .*\[11, 245\].*\[245, 11\]"),
    "dtype": ({"fc1.weight": FULL.int()}, {}, ArgumentError, r"masks\['fc1.weight'\]: expected dtype torch.bool"),
    "no tensor": ({"fc1.weight": None}, {}, ArgumentTypeError, r"masks\['fc1.weight'\]: expected a bool tensor"),
    "layout": ({"fc1.weight": FULL}, {"layout": "coo"}, ArgumentError, r"layout: expected one of 'auto', 'csr'"),
    "block": ({"fc1.weight": FULL}, {"layout": "bsr"}, ArgumentError, r"block: expected \(rows, cols\)"),
    "block size": ({"fc1.weight": FULL}, {"block": (0, 1)}, ArgumentError, r"block: expected"),
    "block for csr": ({"fc1.weight": FULL}, {"layout": "csr", "block": (2, 2)}, ArgumentError, r"block: expected None"),
    "break-even": ({"fc1.weight": FULL}, {"break_even": 0.5}, ArgumentTypeError, r"break_even: expected a dict"),
    "break-even density": (
        {"fc1.weight": FULL},
        {"break_even": {"fc1.weight": 2}},
        ArgumentError,
        r"break_even\['fc1.weight'\]: expected a density in \[0, 1\], got 2",
    ),
    "cover": ({"fc1.weight": FULL}, {"block": (2, 2), "cover": "all"}, ArgumentError, r"cover: expected None, 'zeros'"),
}


@pytest.mark.parametrize(("masks", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_and_the_model_stays_as_it_was(
    masks: Any, options: Any, error: type[Exception], message: str, net: nn.Module
) -> None:
    modules = list(net.modules())
    with pytest.raises(error, match=message):
        ls.sparsify_(net, masks, **options)
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))


def test_one_bad_mask_among_good_ones_changes_nothing(net: nn.Module, masks_for: Any) -> None:
    with pytest.raises(ArgumentError, match="fc9"):
        ls.sparsify_(net, {**masks_for(net), "fc9.weight": FULL})
    assert not list(ls.nn.sparse_modules(net))


@pytest.mark.parametrize("call", [ls.sparsify_, ls.densify_, ls.dense_state_dict, ls.nn.find_masks, ls.nn.masks_of])
def test_a_model_must_be_a_module(call: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"model: expected a torch.nn.Module, got dict"):
        call({})


def test_a_layer_cannot_replace_itself(seed: int) -> None:
    layer, mask = nn.Linear(4, 3), torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ArgumentError, match=r"model: .*a Linear, which cannot replace itself.*SparseLinear.from_dense"):
        ls.sparsify_(layer, {"weight": mask})
    sparse = SparseLinear.from_dense(layer, mask)
    with pytest.raises(ArgumentError, match=r"model: .*which cannot replace itself.*to_dense"):
        ls.densify_(sparse)
    with pytest.raises(ArgumentError, match=r"model: .*which cannot replace itself.*to_dense"):
        ls.sparsify_(sparse, {"weight": mask})


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def spectral(layer: nn.Module) -> None:
    nn.utils.parametrizations.spectral_norm(layer)


def replaced_forward(layer: Any) -> None:
    layer.forward = lambda x: x


SPECIAL: dict[str, tuple[Any, str]] = {
    "forward hook": (lambda layer: layer.register_forward_hook(lambda *_: None), "forward hooks"),
    "pre-hook": (lambda layer: layer.register_forward_pre_hook(lambda *_: None), "forward pre-hooks"),
    "backward hook": (lambda layer: layer.register_full_backward_hook(lambda *_: None), "backward hooks"),
    "state hook": (lambda layer: layer.register_state_dict_post_hook(lambda *_: None), "state_dict hooks"),
    "gradient hook": (lambda layer: layer.weight.register_hook(lambda g: g), "gradient hooks"),
    "spectral norm": (spectral, "a parametrization that is more than a mask"),
    "replaced forward": (replaced_forward, "its forward has been replaced"),
}


@pytest.mark.parametrize(("change", "message"), SPECIAL.values(), ids=SPECIAL)
def test_a_layer_that_is_more_than_plain_is_refused(change: Any, message: str, net: nn.Module) -> None:
    change(net.get_submodule("fc1"))
    with pytest.raises(ArgumentError, match=rf"masks\['fc1.weight'\]: .*{message}"):
        ls.sparsify_(net, {"fc1.weight": FULL})


def test_a_subclass_is_refused(net: nn.Module) -> None:
    net.fc1 = Scaled(245, 11)
    with pytest.raises(ArgumentError, match=r"masks\['fc1.weight'\]: .*Scaled is a subclass"):
        ls.sparsify_(net, {"fc1.weight": FULL})


def test_attention_keeps_its_special_projection_and_says_why(seed: int) -> None:
    attention = nn.MultiheadAttention(4, 2)
    with pytest.raises(ArgumentError, match="NonDynamicallyQuantizableLinear is a subclass"):
        ls.sparsify_(attention, {"out_proj.weight": torch.ones(4, 4, dtype=torch.bool)})


def test_densify_refuses_to_lose_hooks(net: nn.Module, masks_for: Any) -> None:
    ls.sparsify_(net, masks_for(net))
    net.get_submodule("fc1").register_forward_hook(lambda *_: None)
    with pytest.raises(ArgumentError, match=r"for fc1, it has forward hooks"):
        ls.densify_(net)
    assert isinstance(net.get_submodule("conv"), SparseModule)


def test_a_transformer_layer_computes_the_same_in_training_and_in_its_fast_path(seed: int) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    masks = {"linear1.weight": torch.rand(16, 8) < 0.5, "linear2.weight": torch.rand(8, 16) < 0.5}
    dense = copy.deepcopy(layer)
    with torch.no_grad():
        for name, mask in masks.items():
            dense.get_parameter(name).mul_(mask)
    ls.sparsify_(layer, masks)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(layer(x), dense(x))
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), dense.eval()(x))


def test_without_measuring_the_cost_model_decides_by_the_samples_shapes(
    net: nn.Module, images: Tensor, masks_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[int, ...], bool]] = []

    def predict(
        weight: Tensor,
        stored: dict[str, float],
        shape: tuple[int, ...],
        conv: object,
        block: object,
        gradient: bool,
        channels_last: bool,
    ) -> dict[str, Timing]:
        assert not channels_last
        asked.append((tuple(shape), gradient))
        return {kind: Timing(1.0, 0.5 if kind == "csr" else 1.0) for kind in ("torch", *stored)}

    monkeypatch.setattr(plan, "predict", predict)
    report = ls.sparsify_(net, masks_for(net), sample_input=images, measure=False)
    assert asked == [((6, 3, 7, 7), False), ((6, 245), True), ((6, 11), True)]  # the images need no gradient
    assert [row.layout for row in report] == ["csr"] * 3
    assert all(row.speedup_forward is None and row.note == "by the cost model, not measured" for row in report)

"""The report of sparsify_, and the sample input that its measurements need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.nn import LayerReport, SparsifyReport
from lth_sparse.nn.sample import layer_inputs


def row(**changes: Any) -> LayerReport:
    values: dict[str, Any] = {
        "name": "fc1",
        "kind": "Linear",
        "shape": (300, 784),
        "density": 0.1,
        "nnz": 23520,
        "layout": "csr",
        "block": None,
        "backend": "cpu-avx2",
        "bytes_dense": 940800,
        "bytes_sparse": 300000,
        "speedup_forward": 2.904,
        "speedup_backward": None,
        "note": "",
    }
    return LayerReport(**{**values, **changes})


TABLE = """\
layer  type    shape                kept  density  layout   backend   dense bytes        now  forward  backward  note
-----  ------  -------  ----------------  -------  -------  --------  -----------  ---------  -------  --------  ----
fc1    Linear  300x784  23,520 / 235,200    10.0%  csr      cpu-avx2    918.8 KiB  293.0 KiB    2.90x         -
head   Linear  10x300      3,000 / 3,000   100.0%  bsr 4x4  cpu-avx2     11.7 KiB      900 B        -     1.25x  tied
-----  ------  -------  ----------------  -------  -------  --------  -----------  ---------  -------  --------  ----
all                     26,520 / 238,200    11.1%                       930.5 KiB  293.8 KiB"""


def test_the_table_is_aligned_and_totals_all_layers() -> None:
    head = row(name="head", shape=(10, 300), nnz=3000, density=1.0, layout="bsr", block=(4, 4), note="tied")
    head = replace(head, bytes_dense=12000, bytes_sparse=900, speedup_forward=None, speedup_backward=1.25)
    assert str(SparsifyReport([row(), head])).split("\n") == TABLE.split("\n")


def test_rows_say_what_became_of_each_layer(net: nn.Module, masks_for: Any) -> None:
    masks = masks_for(net)
    report = ls.sparsify_(net, masks, layout="csr")
    assert [(r.name, r.kind, r.layout) for r in report] == [
        ("conv", "Conv2d", "csr"),
        ("fc1", "Linear", "csr"),
        ("fc2", "Linear", "csr"),
    ]
    for r in report:
        module: Any = net.get_submodule(r.name)
        assert r.nnz == int(masks[f"{r.name}.weight"].sum())
        assert r.density == pytest.approx(r.nnz / r.numel)
        assert r.bytes_dense == 4 * r.numel
        assert r.bytes_sparse == sum(t.nbytes for t in (module.values, *module.buffers()))
        assert r.speedup_forward is None
    assert report.density == pytest.approx(ls.Mask(masks).density)
    assert report.bytes_dense == 4 * ls.Mask(masks).numel


def test_every_layer_is_in_the_printed_table(net: nn.Module, masks_for: Any) -> None:
    text = str(ls.sparsify_(net, masks_for(net)))
    assert all(f"\n{name} " in text for name in ("conv", "fc1", "fc2", "all"))


def test_a_layer_that_loses_stays_dense_and_the_report_says_so(net: nn.Module) -> None:
    report = ls.sparsify_(net, {"fc1.weight": torch.ones(11, 245, dtype=torch.bool)})
    assert report.layers[0].layout == "dense"
    assert report.layers[0].note


def samples(images: Tensor) -> dict[str, Any]:
    return {"tensor": images, "tuple": (images,), "mapping": {"x": images}}


@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping"])
def test_layer_inputs_are_what_each_layer_receives(form: str, net: nn.Module, images: Tensor) -> None:
    modules = [net.get_submodule(name) for name in ("conv", "fc1", "fc2")]
    found = layer_inputs(net, modules, samples(images)[form])
    assert [tuple(found[id(module)].shape) for module in modules] == [(6, 3, 7, 7), (6, 245), (6, 11)]
    assert torch.equal(found[id(modules[0])], images)
    # The first layer's input needs no gradient in training; nothing hangs on a graph.
    assert [found[id(module)].requires_grad for module in modules] == [False, True, True]
    assert all(found[id(module)].is_leaf for module in modules)


def test_a_sample_leaves_no_trace_in_the_model_or_the_random_state(
    net: nn.Module, masks_for: Any, images: Tensor
) -> None:
    net.get_submodule("fc2").eval()
    flags = [module.training for module in net.modules()]
    statistics = [buffer.clone() for buffer in net.buffers()]
    before = torch.get_rng_state()
    ls.sparsify_(net, masks_for(net), layout="dense", sample_input=images)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in net.modules()] == flags
    kept = [buffer for name, buffer in net.named_buffers() if name.startswith("norm")]
    assert all(torch.equal(a, b) for a, b in zip(kept, statistics, strict=True))
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_sample_measures_speed_where_a_kernel_runs(net: nn.Module, masks_for: Any, images: Tensor) -> None:
    report = ls.sparsify_(net, masks_for(net), layout="csr", sample_input=images)
    for r in report:
        measured = r.speedup_forward is not None and r.speedup_forward > 0
        assert measured == (r.backend != "reference")


def test_auto_with_a_sample_keeps_the_function(
    net: nn.Module, masks_for: Any, apply_masks: Any, images: Tensor
) -> None:
    masks = masks_for(net)
    apply_masks(net, masks)
    right = net.eval()(images)
    ls.sparsify_(net, masks, sample_input=images)
    torch.testing.assert_close(net(images), right)


def test_a_layer_that_the_sample_does_not_reach_is_noted(net: nn.Module, images: Tensor) -> None:
    net.unused = nn.Linear(3, 3)
    report = ls.sparsify_(net, {"unused.weight": torch.eye(3, dtype=torch.bool)}, sample_input=images)
    assert "not reached by sample_input" in report.layers[0].note


def test_a_sample_of_another_type_is_refused(net: nn.Module, masks_for: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"sample_input: expected a tensor, a tuple .* got list"):
        ls.sparsify_(net, masks_for(net), sample_input=[1])


def test_a_sample_that_the_model_cannot_take_is_one_error_and_leaves_the_model_alone(
    net: nn.Module, masks_for: Any
) -> None:
    with pytest.raises(ArgumentError, match="sample_input: expected an input that the model takes, but it raised"):
        ls.sparsify_(net, masks_for(net), sample_input=torch.zeros(2, 5))
    assert net.training
    assert not list(ls.nn.sparse_modules(net))
    assert not any(module._forward_pre_hooks for module in net.modules())

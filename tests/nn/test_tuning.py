"""``tune``: which calls of a model are tuned, and its errors. What becomes of them is in tests/ops/test_tuning.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.errors import ArgumentError, ArgumentTypeError, BackendError
from lth_sparse.kernels.launch import PRODUCTS, Problem
from lth_sparse.nn import tuning as command
from lth_sparse.ops import tuning

PROBLEM = Problem("weight_gradient", "float16", (16, 16), 33, 64, 48, 0.5)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What reaches the tuner, as if there were a device: problems are made on the CPU."""
    found: dict[str, Any] = {}

    def tune_calls(calls: Any, clock: Any, **options: Any) -> str:
        found.update(names=[call.name for call in calls], grad=torch.is_grad_enabled(), **options)
        return "report"

    make = tuning.calls_of_problem
    monkeypatch.setattr(tuning, "gpu", lambda: None)
    monkeypatch.setattr(tuning, "tune_calls", tune_calls)
    monkeypatch.setattr(tuning, "calls_of_problem", lambda problem, device: make(problem, "cpu"))
    monkeypatch.setattr(command, "GraphClock", lambda device: None)
    return found


def sparse(net: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    ls.sparsify_(net, masks, layout="bsr", block=(2, 3), cover="zeros")
    return net


def test_every_layer_is_tuned_in_every_pass_that_training_has(
    net: nn.Module, images: Tensor, masks_for: Callable[..., Any], seen: dict[str, Any]
) -> None:
    model = sparse(net, masks_for(net)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert ls.tune(model, images, problems=[PROBLEM], limit=7) == "report"
    names = ["conv2d_bsr", "linear_bsr", "linear_bsr"]
    wanted = ["conv2d_bsr", "conv2d_bsr, gradient of weight"]  # the first layer's input needs no gradient
    wanted += [name + end for name in names[1:] for end in ("", ", gradient of input", ", gradient of weight")]
    assert seen["names"] == [*wanted, "linear_bsr, gradient of weight"]
    assert (seen["limit"], seen["again"], seen["grad"]) == (7, False, False)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    ls.tune(model, images, gradients=False, again=True)
    assert (seen["names"], seen["again"]) == (names, True)


def test_mistakes_are_named(net: nn.Module, images: Tensor, seen: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="model: expected a model with its sample_input, or problems, got neither"):
        ls.tune()
    with pytest.raises(ArgumentTypeError, match="model"):
        ls.tune(3, images)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="sample_input: expected a tensor, a tuple"):
        ls.tune(net)
    with pytest.raises(ArgumentTypeError, match="problems: expected Problem, got str"):
        ls.tune(problems=["forward"])  # type: ignore[list-item]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(net: nn.Module, images: Tensor) -> None:
    with pytest.raises(BackendError, match="tune: expected a CUDA device to time kernels on, but torch finds none"):
        ls.tune(net, images)


@pytest.mark.gpu
def test_a_model_is_tuned_on_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int) -> None:
    monkeypatch.setenv("LTH_SPARSE_CACHE", "1")
    monkeypatch.setenv("LTH_SPARSE_CACHE_DIR", str(tmp_path))
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)).to("cuda", torch.float16)
    masks = {
        name: (torch.rand(p.shape[0] // 32, p.shape[1] // 32) < 0.4).repeat_interleave(32, 0).repeat_interleave(32, 1)
        for name, p in model.named_parameters()
        if p.dim() > 1
    }
    ls.sparsify_(model, masks, layout="bsr", block=(32, 32))
    x = torch.randn(300, 256, device="cuda", dtype=torch.float16, requires_grad=True)
    right = model(x)
    report = ls.tune(model, x, limit=3, problems=[PROBLEM])
    assert {one.problem.product for one in report.tuned} == set(PRODUCTS)
    assert len(report.tuned) == 7
    assert [one.wrong for one in report.tuned] == [()] * 7
    assert all(0.0 < one.seconds <= one.heuristic_seconds < 1.0 for one in report.tuned)
    assert ls.tune(model, x, limit=3).stored == 6
    torch.testing.assert_close(model(x), right, rtol=1e-2, atol=1e-2)

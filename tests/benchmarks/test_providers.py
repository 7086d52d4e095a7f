"""Every candidate computes the layer: compared in all its modes with masked dense torch in float64."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.benchmarks.cases import Case, registry
from lth_sparse.benchmarks.providers import DENSE, LAYOUTS, PEERS, PROVIDERS, Problem, Provider, chosen
from lth_sparse.errors import ArgumentError
from lth_sparse.formats import make_layout

SHRUNK = [
    dataclasses.replace(registry()[name], batch=3, **({"image": image} if image else {}))
    for name, image in (
        ("lenet-fc1", None),
        ("linear-1024", None),
        ("conv-64", (7, 9)),
        ("conv-stride2", (6, 6)),
        ("resnet50-stem", (20, 20)),
        ("vit-patches", (32, 32)),
    )
]


def truth(problem: Problem, mask: Tensor) -> dict[str, Tensor]:
    """y and the gradients, in float64, of the layer with its pruned weights at zero."""
    x, weight, bias = (t.detach().double().requires_grad_() for t in (problem.x, problem.weight, problem.bias))
    case = problem.case
    if case.op == "linear":
        y = F.linear(x, weight * mask, bias)
    else:
        y = F.conv2d(x, weight * mask, bias, case.stride, case.pad, groups=case.groups)
    dx, dweight, dbias = torch.autograd.grad(y, (x, weight, bias), problem.gradient.double())
    return {"y": y.detach(), "dx": dx, "dweight": dweight, "dbias": dbias}


def close(found: Any, exact: Tensor) -> bool:
    found = torch.from_numpy(np.ascontiguousarray(found)) if isinstance(found, np.ndarray) else found
    assert found.shape == exact.shape
    return bool((found.double() - exact).norm() <= 2e-6 * exact.norm())


def compact(dweight: Tensor, mask: Tensor, provider: Provider, shape: torch.Size) -> Tensor:
    """The exact gradient in the form that a candidate gives its own in."""
    if shape == dweight.shape:
        return dweight
    return make_layout(provider.layout or "csr", mask, block=provider.block).gather(dweight)


@pytest.mark.parametrize("case", SHRUNK, ids=lambda case: case.name)
@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=lambda provider: provider.name)
def test_a_candidate_computes_the_masked_layer(provider: Provider, case: Case, seed: int) -> None:
    if case.op not in provider.ops:
        pytest.skip("another operator")
    if not provider.ours and (reason := provider.refusal(case)):
        pytest.skip(reason)
    problem = Problem.of(case)
    everything = not provider.sparse and provider.name != "masked dense"
    mask = torch.ones(case.weight, dtype=torch.bool) if everything else case.mask(0.3, provider.block)
    exact = truth(problem, mask)
    calls = provider.make(problem, mask)
    assert tuple(calls) == provider.modes
    assert close(calls["forward"](), exact["y"])
    if "forward+dx" in calls:
        (dx,) = calls["forward+dx"]()
        assert close(dx, exact["dx"])
    if "step" in calls:
        dx, dweight, dbias = calls["step"]()
        assert close(dx, exact["dx"])
        assert close(dbias, exact["dbias"])
        assert close(dweight, compact(exact["dweight"], mask, provider, dweight.shape))


def test_a_candidate_repeats_itself(seed: int) -> None:
    """A mode leaves nothing behind that changes the next one: gradients are wanted again after a frozen pass."""
    case = SHRUNK[0]
    calls = PROVIDERS["lth_sparse csr"].make(Problem.of(case), case.mask(0.3))
    first = calls["step"]()
    calls["forward+dx"]()
    calls["forward"]()
    assert all(torch.equal(a, b) for a, b in zip(first, calls["step"](), strict=True))


def test_a_layout_that_only_the_reference_serves_is_refused() -> None:
    from lth_sparse.ops import use_backend

    with use_backend("reference"):
        reason = PROVIDERS["lth_sparse csr"].refusal(SHRUNK[0])
    assert reason == "no CPU kernel for layout csr and linear: the reference would run"


def test_a_peer_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Callable[[str], None] = lambda name: None  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert PROVIDERS["onnxruntime dense"].refusal(SHRUNK[0]) == "onnxruntime is not installed"


def test_chosen_has_the_dense_layers_and_what_is_named() -> None:
    assert [one.name for one in chosen(["csr"], ["scipy CSR"])] == [*DENSE, "scipy CSR", "lth_sparse csr"]
    assert len(chosen(LAYOUTS, PEERS)) == len(PROVIDERS)


@pytest.mark.parametrize(
    ("layouts", "peers", "message"),
    [(["csc"], [], "layouts: expected some of csr, bsr-4x1, .* got csc"), ([], ["mkl"], "peers: expected some of")],
)
def test_unknown_names_are_refused(layouts: list[str], peers: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        chosen(layouts, peers)

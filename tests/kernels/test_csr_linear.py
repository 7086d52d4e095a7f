"""The cases of cases_csr_linear.py, interpreted everywhere and compiled where there is a GPU; and the layer on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from kernel_cases import run_cases

from lth_sparse.formats import CSR
from lth_sparse.ops import backend_of, functional, use_backend

CASES = Path(__file__).with_name("cases_csr_linear.py")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def test_every_case_interpreted() -> None:
    run_cases(CASES, interpreted=True)


@pytest.mark.gpu
def test_every_case_on_the_device() -> None:
    run_cases(CASES, interpreted=False)


@pytest.mark.gpu
@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "feature_major"), [(1000, False), (1000, True), (7, False), (1, False)])
def test_error_is_at_most_twice_that_of_dense_torch(m: int, feature_major: bool, dtype: torch.dtype) -> None:
    """A layer's output and gradients against float64, beside what torch's own dense product makes of the same dtype."""
    n, k = 520, 776
    mask = torch.rand(n, k) < 0.2
    layout = CSR.from_mask(mask).narrow().to("cuda")
    weight = (torch.randn(n, k) * mask).to("cuda", dtype)
    x, upstream, bias = (torch.randn(size, device="cuda").to(dtype) for size in ((m, k), (m, n), (n,)))
    if feature_major:
        x = functional.feature_major(x)
    assert backend_of("csr", "cuda", dtype) == "cuda-triton"

    def gradients(x: Tensor, values: Tensor, bias: Tensor, call: str, upstream: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in (x, values, bias)]
        with use_backend(call):
            y = functional.linear(leaves[0], leaves[1], layout, leaves[2])
            return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]

    values = layout.gather(weight)
    truth = gradients(x.double(), values.double(), bias.double(), "reference", upstream.double())
    dense = gradients(x, values, bias, "reference", upstream)
    ours = gradients(x, values, bias, "auto", upstream)
    for mine, torchs, right in zip(ours, dense, truth, strict=True):
        allowed = 2 * (torchs.double() - right).abs().max() + 1e-6 * right.abs().max()
        assert (mine.double() - right).abs().max() <= allowed


@pytest.mark.gpu
@pytest.mark.usefixtures("seed")
def test_a_step_is_captured_in_a_cuda_graph() -> None:
    layout = CSR.from_mask(torch.rand(64, 48) < 0.3).to("cuda")
    values = torch.randn(layout.values_shape, device="cuda", requires_grad=True)
    x = torch.randn(32, 48, device="cuda", requires_grad=True)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(functional.linear(x, values, layout).square().sum(), (x, values))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    for found, right in zip(captured, expected, strict=True):
        assert torch.equal(found, right)

"""The cases of cases_bsr_linear.py, interpreted everywhere and compiled where there is a GPU; and the layer on it.

A process interprets its Triton kernels or compiles them, so each way has a process of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from kernel_cases import run_cases

from lth_sparse.formats import BSR
from lth_sparse.ops import backend_of, functional, use_backend

CASES = Path(__file__).with_name("cases_bsr_linear.py")


def test_every_case_interpreted() -> None:
    run_cases(CASES, interpreted=True)


@pytest.mark.gpu
def test_every_case_on_the_device() -> None:
    run_cases(CASES, interpreted=False)


@pytest.mark.gpu
@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block", [(16, 16), (64, 64), (64, 16)])
def test_error_is_at_most_twice_that_of_dense_torch(block: tuple[int, int], dtype: torch.dtype) -> None:
    """A layer's output and gradients against float64, beside what torch's own dense product makes of the same dtype."""
    m, n, k = 1000, 520, 776
    blocks = torch.rand(-(-n // block[0]), -(-k // block[1])) < 0.3
    mask = blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:n, :k]
    layout = BSR.from_mask(mask, block).to("cuda")
    weight = (torch.randn(n, k) * mask).to("cuda", dtype)
    x, upstream, bias = (torch.randn(size, device="cuda").to(dtype) for size in ((m, k), (m, n), (n,)))
    assert backend_of("bsr", "cuda", dtype) == "cuda-triton"

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
def test_a_step_is_captured_in_a_cuda_graph() -> None:
    """One block row far over the mean, so that its parts are added up inside the graph, and a ReLU."""
    mask = torch.zeros(64, 16 * 80, dtype=torch.bool)
    mask[:16] = mask[:, :16] = True
    layout = BSR.from_mask(mask, (16, 16)).to("cuda")
    assert layout.row_splits.shape[0] == 1
    values = torch.randn(layout.values_shape, device="cuda", requires_grad=True)
    bias = torch.randn(64, device="cuda", requires_grad=True)
    x = torch.randn(32, 16 * 80, device="cuda", requires_grad=True)

    def step() -> tuple[Tensor, ...]:
        y = functional.linear(x, values, layout, bias, activation="relu")
        return torch.autograd.grad(y.square().sum(), (x, values, bias))

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

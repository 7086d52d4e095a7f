"""The cases of cases_bsr_conv.py, interpreted everywhere and compiled where there is a GPU; and the layer on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from kernel_cases import run_cases

from lth_sparse.formats import BSR
from lth_sparse.ops import backend_of, functional, use_backend

CASES = Path(__file__).with_name("cases_bsr_conv.py")


def test_every_case_interpreted() -> None:
    run_cases(CASES, interpreted=True)


@pytest.mark.gpu
def test_every_case_on_the_device() -> None:
    run_cases(CASES, interpreted=False)


@pytest.mark.gpu
@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(3, 1, 1), (3, 2, 2), (1, 1, 1), (1, 2, 1)])
def test_error_is_at_most_twice_that_of_dense_torch(
    kernel: int, stride: int, groups: int, memory: torch.memory_format, dtype: torch.dtype
) -> None:
    """A layer's output and gradients against float64, beside what torch's own dense product makes of the same dtype."""
    rows, columns, block, padding = 136, 96 // groups * kernel**2, (32, 32), kernel // 2
    blocks = torch.rand(-(-rows // block[0]), -(-columns // block[1])) < 0.3
    mask = blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :columns]
    layout = BSR.from_mask(mask.reshape(rows, -1, kernel, kernel), block).to("cuda")
    values = torch.randn(layout.values_shape, device="cuda").to(dtype)
    values = layout.gather(layout.scatter(values))
    x = torch.randn(4, 96, 29, 31, device="cuda").to(dtype).contiguous(memory_format=memory)
    bias = torch.randn(rows, device="cuda").to(dtype)
    assert backend_of("bsr", "cuda", dtype, dims=4) == "cuda-triton"

    def gradients(x: Tensor, values: Tensor, bias: Tensor, call: str) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in (x, values, bias)]
        with use_backend(call), torch.backends.cudnn.flags(allow_tf32=False):
            y = functional.conv2d(leaves[0], leaves[1], layout, leaves[2], stride, padding, groups=groups)
            upstream = torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device="cuda").cos().view(y.shape)
            return [y.detach(), *torch.autograd.grad(y, leaves, upstream.to(dtype).to(y.dtype))]

    truth = gradients(x.double(), values.double(), bias.double(), "reference")
    dense = gradients(x, values, bias, "reference")
    ours = gradients(x, values, bias, "auto")
    for mine, torchs, right in zip(ours, dense, truth, strict=True):
        allowed = 2 * (torchs.double() - right).abs().max() + 1e-6 * right.abs().max()
        assert (mine.double() - right).abs().max() <= allowed


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_step_is_captured_in_a_cuda_graph(kernel: int) -> None:
    layout = BSR.from_mask(torch.ones(64, 32, kernel, kernel, dtype=torch.bool), (16, 16)).to("cuda")
    values = torch.randn(layout.values_shape, device="cuda", requires_grad=True)
    x = torch.randn(2, 32, 9, 9, device="cuda", requires_grad=True)

    def step() -> tuple[Tensor, ...]:
        y = functional.conv2d(x, values, layout, padding=kernel // 2)
        return torch.autograd.grad(y.square().sum(), (x, values))

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

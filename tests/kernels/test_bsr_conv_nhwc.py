"""The cases of cases_bsr_conv_nhwc.py, interpreted everywhere and compiled where there is a GPU; the layer on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from kernel_cases import run_cases

from lth_sparse.formats import BSR
from lth_sparse.formats.layout import from_tap_matrix
from lth_sparse.ops import backend_of, functional, use_backend

CASES = Path(__file__).with_name("cases_bsr_conv_nhwc.py")


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
@pytest.mark.parametrize("block", [(32, 32), (64, 16)], ids=str)
def test_error_is_at_most_twice_that_of_dense_torch_and_the_format_is_kept(
    block: tuple[int, int], kernel: int, stride: int, groups: int, memory: torch.memory_format, dtype: torch.dtype
) -> None:
    """A layer's output and gradients against float64, beside what torch's own dense product makes of the same dtype."""
    rows, channels, padding = 136, 96 // groups, kernel // 2
    per_tap = -(-channels // block[1])
    blocks = torch.rand(-(-rows // block[0]), kernel**2 * per_tap) < 0.3
    matrix = blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows]
    mask = from_tap_matrix(matrix, (rows, channels, kernel, kernel), block[1])
    layout = BSR.from_mask(mask, block, channels_last=True).to("cuda")
    values = torch.randn(layout.values_shape, device="cuda").to(dtype)
    values = layout.gather(layout.scatter(values))
    x = torch.randn(4, 96, 29, 31, device="cuda").to(dtype).contiguous(memory_format=memory)
    bias = torch.randn(rows, device="cuda").to(dtype)
    assert backend_of("bsr", "cuda", dtype, dims=4, channels_last=True) == "cuda-triton"

    def gradients(x: Tensor, values: Tensor, bias: Tensor, call: str) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in (x, values, bias)]
        with use_backend(call), torch.backends.cudnn.flags(allow_tf32=False):
            y = functional.conv2d(leaves[0], leaves[1], layout, leaves[2], stride, padding, groups=groups)
            upstream = torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device="cuda").cos().view(y.shape)
            upstream = upstream.to(dtype).to(y.dtype).contiguous(memory_format=memory)
            return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]

    truth = gradients(x.double(), values.double(), bias.double(), "reference")
    dense = gradients(x, values, bias, "reference")
    ours = gradients(x, values, bias, "auto")
    for mine, torchs, right in zip(ours, dense, truth, strict=True):
        allowed = 2 * (torchs.double() - right).abs().max() + 1e-6 * right.abs().max()
        assert (mine.double() - right).abs().max() <= allowed
    assert all(image.is_contiguous(memory_format=memory) for image in ours[:2])


@pytest.mark.gpu
@pytest.mark.parametrize("stride", [1, 2])
def test_a_step_is_captured_in_a_cuda_graph(stride: int) -> None:
    mask = torch.ones(64, 32, 3, 3, dtype=torch.bool)
    layout = BSR.from_mask(mask, (16, 16), channels_last=True).to("cuda")
    values = torch.randn(layout.values_shape, device="cuda", requires_grad=True)
    bias = torch.zeros(64, device="cuda", requires_grad=True)
    x = torch.randn(2, 32, 9, 9, device="cuda").contiguous(memory_format=torch.channels_last).requires_grad_()

    def step() -> tuple[Tensor, ...]:
        y = functional.conv2d(x, values, layout, bias, stride=stride, padding=1, activation="relu")
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

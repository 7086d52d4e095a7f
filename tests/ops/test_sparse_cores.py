"""Which GPUs run 2:4 layers on sparse tensor cores; and how exactly, on one of them."""

from __future__ import annotations

import pytest
import torch
from semi_cases import semi_mask, step, transposable_mask
from torch import Tensor

from lth_sparse.formats import Layout, SemiStructured
from lth_sparse.ops import backend_of, functional, sparse_cores, use_backend
from lth_sparse.ops.strides import feature_major

CAPABILITIES = [
    ((8, 0), True, None, "linux", "cutlass"),
    ((8, 9), False, None, "linux", "cutlass"),
    ((8, 6), True, None, "win32", "cusparselt"),
    ((9, 0), True, None, "linux", "cusparselt"),
    ((9, 0), False, None, "linux", None),
    ((7, 5), True, None, "linux", None),
    ((12, 0), True, None, "linux", None),
    ((9, 4), True, "6.4", "linux", None),
]


@pytest.mark.parametrize(("capability", "cusparselt", "hip", "system", "expected"), CAPABILITIES)
def test_the_device_decides_on_the_product(
    capability: tuple[int, int],
    cusparselt: bool,
    hip: str | None,
    system: str,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: cusparselt)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(sparse_cores.sys, "platform", system)
    assert sparse_cores.product_of.__wrapped__(0) == expected


def test_backend_of_knows_dtype_shape_and_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_of("2:4", "cpu", torch.float16) == "reference"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(sparse_cores, "product_of", lambda _: "cutlass")
    for dtype in (torch.float16, torch.bfloat16):
        assert backend_of("2:4", "cuda", dtype) == "cuda-semi-structured"
        assert backend_of("2:4", "cuda:0", dtype, shape=(32, 128)) == "cuda-semi-structured"
        assert backend_of("2:4", "cuda", dtype, gradients=True) == "torch"
    assert backend_of("2:4", "cuda", torch.float16, shape=(33, 128)) == "reference"
    assert backend_of("2:4", "cuda", torch.float16, shape=(32, 32)) == "reference"
    assert backend_of("2:4", "cuda", torch.float16, dims=4) == "reference"
    assert backend_of("2:4", "cuda", torch.float32) == "reference"
    with use_backend("reference"):
        assert backend_of("2:4", "cuda", torch.float16) == "reference"
    monkeypatch.setattr(sparse_cores, "product_of", lambda _: None)
    assert backend_of("2:4", "cuda", torch.float16) == "reference"


def test_the_kernel_is_registered_for_cuda_whether_there_is_triton_or_not() -> None:
    for name in ("linear_semi_structured", "linear_semi_structured_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lth_sparse::{name}", "CUDA")
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("lth_sparse::conv2d_semi_structured", "CUDA")


# On a GPU


def cuda_case(shape: tuple[int, int], transposable: bool, dtype: torch.dtype) -> tuple[Layout, Tensor]:
    """Layout and weight on the device; skips where torch has no product for it."""
    if sparse_cores.product_of(torch.cuda.current_device()) is None:
        pytest.skip("torch has no product with a 2:4 operand for this device")
    mask = transposable_mask(shape, 1.0) if transposable else semi_mask(shape, 0.9)
    layout = SemiStructured.from_mask(mask).to("cuda")
    assert backend_of("2:4", "cuda", dtype, shape=shape) == "cuda-semi-structured"
    return layout, (torch.randn(shape) * mask).to("cuda", dtype)


@pytest.mark.gpu
@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("form", ["contiguous", "feature-major"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 1000, 1003])
@pytest.mark.parametrize("transposable", [False, True])
def test_error_is_at_most_twice_that_of_dense_torch(
    transposable: bool, batch: int, dtype: torch.dtype, form: str
) -> None:
    """A layer's output and gradients against float64, beside what torch's own dense product makes of the same dtype."""
    layout, weight = cuda_case((320, 512), transposable, dtype)
    x, upstream, bias = (torch.randn(size, device="cuda").to(dtype) for size in ((batch, 512), (batch, 320), (320,)))
    if form == "feature-major":
        x, upstream = feature_major(x), feature_major(upstream)
    values = layout.gather(weight)
    for given in (bias, None):
        with use_backend("reference"):
            exact = step(
                x.double(), values.double(), None if given is None else given.double(), layout, upstream.double()
            )
            dense = step(x, values, given, layout, upstream)
        ours = step(x, values, given, layout, upstream)  # a layout of cuSPARSELt's that is not understood would warn
        for mine, torchs, right in zip(ours, dense, exact, strict=True):
            allowed = 2 * (torchs.double() - right).abs().max() + 1e-6 * right.abs().max()
            assert (mine.double() - right).abs().max() <= allowed


@pytest.mark.gpu
@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("transposable", [False, True])
def test_a_step_is_captured_in_a_cuda_graph(transposable: bool) -> None:
    layout, weight = cuda_case((128, 256), transposable, torch.float16)
    values = layout.gather(weight).requires_grad_()
    x = torch.randn(64, 256, device="cuda").half().requires_grad_()

    def one_step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(functional.linear(x, values, layout).float().square().sum(), (x, values))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            one_step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = one_step()
    with torch.no_grad():
        values.mul_(0.5)  # as an optimiser would: the graph must read the values of now
    graph.replay()
    expected = one_step()
    for found, right in zip(captured, expected, strict=True):  # cuBLAS may choose another kernel under capture
        torch.testing.assert_close(found, right, rtol=1e-2, atol=1e-2 * float(right.abs().max()))

"""Autocast and GradScaler: the dtypes of torch's own layers, or those of the CPU kernels where they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import lth_sparse as ls
from lth_sparse.errors import ArgumentError
from lth_sparse.formats import Layout, make_layout
from lth_sparse.ops import functional, use_backend

pytestmark = pytest.mark.usefixtures("seed")

LAYOUTS = {"csr": {}, "bsr": {"block": (2, 2), "cover": "zeros"}, "dense": {}}
BF16 = torch.bfloat16


def case(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Layout, list[Tensor]]:
    """A layout of 6x5, and x, values and bias of a training step."""
    layout = make_layout(kind, torch.rand(6, 5) < 0.6, **LAYOUTS[kind])  # type: ignore[arg-type]
    tensors = (torch.randn(3, 5), layout.gather(torch.randn(6, 5)), torch.randn(6))
    return layout, [tensor.to(dtype).requires_grad_() for tensor in tensors]


def step(layout: Layout, leaves: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of all leaves."""
    y = functional.linear(leaves[0], leaves[1], layout, leaves[2])
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["csr", "bsr"])
def test_training_on_the_cpu_is_in_the_dtype_of_values(kind: str, backend: str) -> None:
    layout, leaves = case(kind)
    right = step(layout, leaves)
    with use_backend(backend), torch.autocast("cpu", BF16):
        found = step(layout, leaves)
        half = functional.linear(leaves[0].to(BF16), leaves[1], layout, leaves[2])
    for ours, truth in zip(found, right, strict=True):
        torch.testing.assert_close(ours, truth)  # the same dtype, and not rounded to bfloat16 on the way
    assert half.dtype == torch.float32


@pytest.mark.parametrize("kind", LAYOUTS)
def test_inference_on_the_cpu_is_in_bfloat16(kind: str) -> None:
    layout, (x, values, bias) = case(kind)
    with torch.no_grad(), torch.autocast("cpu", BF16):
        y = functional.linear(x, values, layout, bias)
        dense = F.linear(x, layout.scatter(values), bias)
        with torch.autocast("cpu", enabled=False):
            assert functional.linear(x, values, layout, bias).dtype == torch.float32
    assert y.dtype == dense.dtype == BF16
    torch.testing.assert_close(y, dense, rtol=2e-2, atol=2e-2)
    frozen = [tensor.detach() for tensor in (x, values, bias)]
    with torch.autocast("cpu", BF16):  # nothing wants a gradient
        assert functional.linear(frozen[0], frozen[1], layout, frozen[2]).dtype == BF16


@pytest.mark.parametrize("kind", ["csr", "bsr"])
def test_a_dtype_without_kernels_on_the_cpu_is_not_cast_to(kind: str) -> None:
    layout, (x, values, bias) = case(kind)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert functional.linear(x.half(), values, layout, bias).dtype == torch.float32


def test_the_dense_layout_is_torchs_own_product() -> None:
    layout, leaves = case("dense")
    weight = layout.scatter(leaves[1].detach()).requires_grad_()
    with torch.autocast("cpu", BF16):
        found = step(layout, leaves)
        y = F.linear(leaves[0], weight, leaves[2])
    right = [y.detach(), *torch.autograd.grad(y, [leaves[0], weight, leaves[2]], torch.ones_like(y))]
    right[2] = layout.gather(right[2])
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [tensor.dtype for tensor in found] == [BF16, *[torch.float32] * 3]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_float64_is_never_cast_and_integers_are_refused(kind: str) -> None:
    layout, leaves = case(kind, torch.float64)
    with torch.autocast("cpu", BF16):
        assert all(tensor.dtype == torch.float64 for tensor in step(layout, leaves))
        with pytest.raises(ArgumentError, match=r"x: expected dtype torch\.float64 of values, got torch\.int64"):
            functional.linear(torch.ones(3, 5, dtype=torch.int64), leaves[1], layout)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_convolutions_follow(kind: str) -> None:
    for shape, call in (((4, 3, 3, 3), functional.conv2d), ((4, 3, 3), functional.conv1d)):
        layout = make_layout(kind, torch.rand(shape) < 0.6, **LAYOUTS[kind])  # type: ignore[arg-type]
        x, values = torch.randn(2, 3, *(6,) * (len(shape) - 2)), layout.gather(torch.randn(shape)).requires_grad_()
        with torch.autocast("cpu", BF16):
            y = call(x, values, layout)
            with torch.no_grad():
                assert call(x, values, layout).dtype == BF16
        assert y.dtype == (BF16 if kind == "dense" else torch.float32)
        y.sum().backward()
        assert values.grad is not None
        assert values.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", LAYOUTS)
def test_second_derivatives_inside_autocast_are_not_rounded(kind: str) -> None:
    layout, leaves = case(kind, torch.float64)

    def second() -> tuple[Tensor, ...]:
        y = functional.linear(leaves[0], leaves[1], layout, leaves[2], activation="silu")
        (dx,) = torch.autograd.grad(y.square().sum(), leaves[:1], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), leaves)

    right = second()
    with torch.autocast("cpu", BF16):
        found = second()
    for ours, truth in zip(found, right, strict=True):
        torch.testing.assert_close(ours, truth)


@contextmanager
def cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """What torch.autocast("cuda", dtype) sets, on machines without a device too."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


@pytest.mark.parametrize("dtype", [torch.float16, BF16], ids=str)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_on_cuda_all_is_cast_to_the_dtype_of_autocast(kind: str, dtype: torch.dtype) -> None:
    """Shapes and dtypes alone, on tensors without data. Gradients of such would need a build of torch with CUDA."""
    layout, (x, values, bias) = case(kind)
    with FakeTensorMode():
        on_cuda = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
            for name, tensor in zip(layout.INDEX_NAMES, layout.index, strict=True)
        }
        index = replace(layout, **on_cuda)
        x, values, bias = (torch.empty(t.shape, device="cuda") for t in (x, values, bias))
        with cuda_autocast(dtype):
            y = functional.linear(x, values, index, bias)
            assert y.dtype == F.linear(x, torch.empty(6, 5, device="cuda"), bias).dtype == dtype
            assert functional.linear(x.to(dtype), values, index, bias).dtype == dtype
            assert functional.linear(x, values, index, bias, activation="silu").dtype == dtype
            assert functional.linear(x, values.double(), index, bias.double()).dtype == torch.float64
        assert functional.linear(x, values, index, bias).dtype == torch.float32


class Net(nn.Module):
    """Sparse, dense and sparse again, so that what autocast casts meets what it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x).relu()).relu())


@pytest.fixture(params=LAYOUTS)
def net(request: pytest.FixtureRequest, seed: int) -> nn.Module:
    model, options = Net(), LAYOUTS[request.param]
    masks = {f"{name}.weight": torch.rand(getattr(model, name).weight.shape) < 0.5 for name in ("first", "last")}
    ls.sparsify_(model, masks, layout=request.param, **options)  # type: ignore[arg-type]
    return model


def test_a_step_with_a_grad_scaler_is_the_step_without(net: nn.Module) -> None:
    x, before = torch.randn(5, 8), {name: p.detach().clone() for name, p in net.named_parameters()}
    results = []
    for scaler in (torch.amp.GradScaler("cpu", init_scale=1024.0), torch.amp.GradScaler("cpu", enabled=False)):
        net.load_state_dict(before, strict=False)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        with torch.autocast("cpu", BF16):
            loss = net(x).float().square().mean()
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimiser)
        scaler.update()
        results.append({name: p.detach().clone() for name, p in net.named_parameters()})
    for name, p in net.named_parameters():
        assert p.grad is not None
        assert p.grad.dtype == p.dtype == torch.float32
        assert not torch.equal(results[0][name], before[name])
        torch.testing.assert_close(results[0][name], results[1][name], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_grad_scaler_skips_the_step_of_an_overflow(bad: float, net: nn.Module) -> None:
    x, before = torch.randn(5, 8), [p.detach().clone() for p in net.parameters()]
    x[0, :] = bad
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    with torch.autocast("cpu", BF16):
        loss = net(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimiser)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    gradients = [p.grad for name, p in net.named_parameters() if name.endswith("values")]
    assert all(grad is not None and not grad.isfinite().all() for grad in gradients)


# Dynamo itself instantiates autograd.Function while tracing one
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("wrap", [torch.no_grad, torch.enable_grad])
def test_a_compiled_model_casts_like_an_eager_one(wrap: Callable[[], Iterator[None]], net: nn.Module) -> None:
    compiled, x = torch.compile(net, fullgraph=True, backend="aot_eager"), torch.randn(5, 8)
    for enabled in (True, False):
        with wrap(), torch.autocast("cpu", BF16, enabled=enabled):
            torch.testing.assert_close(compiled(x), net(x))
    torch._dynamo.reset()

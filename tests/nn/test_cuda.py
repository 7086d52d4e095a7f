"""Sparse models on a GPU behave like torch's own: moved, cast, compiled, exported, captured, without a wait in a step.

Numbers are right by tests/kernels; here it is what surrounds them. Everything needs a GPU.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import lth_sparse as ls
from lth_sparse.formats import Dense, make_layout
from lth_sparse.ops import functional, schemas
from lth_sparse.ops.reference import ACTIVATIONS
from lth_sparse.ops.schemas import OPS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("seed"),
    # Dynamo itself instantiates every autograd.Function that it traces
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    # steps before a capture run on a stream of their own
    pytest.mark.filterwarnings("ignore:.*AccumulateGrad.*:UserWarning"),
]

DEVICE = "cuda"
OPTIONS: dict[str, dict[str, Any]] = {
    "csr": {"layout": "csr"},
    "bsr": {"layout": "bsr", "block": (16, 16), "cover": "zeros"},
    "dense": {"layout": "dense"},
}
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
OPTIMISERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, capturable=True),
}
#: What two ways of running the same kernels may differ by: cuDNN may take another algorithm.
NEAR = {"rtol": 1e-3, "atol": 1e-4}
#: Half precision, and float32 convolutions of cuDNN, which round to TF32.
ROUGHLY = {"rtol": 3e-2, "atol": 3e-2}


def on_cpu(options: dict[str, Any]) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 24, 3, stride=2), nn.GELU(), nn.Flatten(),
        nn.Linear(24 * 9, 40), nn.SiLU(), nn.Linear(40, 5),
    )  # fmt: skip
    masks = {name: torch.rand(p.shape) < 0.3 for name, p in net.named_parameters() if p.dim() > 1}
    ls.sparsify_(net, masks, **options)
    return net


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS)
def net(request: Any, seed: int) -> nn.Sequential:
    return on_cpu(request.param).to(DEVICE)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 8, 8, device=DEVICE)


def targets(count: int = 6) -> Tensor:
    return torch.randint(5, (count,), device=DEVICE)


def step(model: nn.Module, optimiser: Optimizer, x: Tensor, target: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    F.cross_entropy(model(x), target).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


def assert_same_parameters(ours: nn.Module, right: nn.Module, **tolerance: float) -> None:
    for (name, mine), truth in zip(ours.named_parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(mine, truth, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def on_a_side_stream(run: Callable[[], None]) -> None:
    """As whatever comes before a capture must be."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_moved_model_computes_the_same_and_comes_back_as_it_was(options: dict[str, Any]) -> None:
    net, x = on_cpu(options).eval(), torch.randn(6, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        right = net(x)
        net.to(DEVICE)
        torch.testing.assert_close(net(x.to(DEVICE)).cpu(), right, **ROUGHLY)
    for _, layer in ls.nn.sparse_modules(net):
        assert all(tensor.is_cuda and tensor.dtype != torch.uint16 for tensor in layer.layout.index)
        assert layer.layout.to(DEVICE) is layer.layout
        assert layer.layout.to(f"{DEVICE}:{torch.cuda.current_device()}") is layer.layout
    net.cpu()
    for name, tensor in net.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor.double(), before[name].double())  # 16-bit unsigned tensors know no comparison


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_cast_to_half_precision_trains(dtype: torch.dtype, net: nn.Sequential) -> None:
    half, x = copy.deepcopy(net).to(dtype), images()
    y, right = half(x.to(dtype)), net(x)
    torch.testing.assert_close(y.float(), right, **ROUGHLY)
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in half.parameters())


def test_copies_and_pickles_are_independent_and_compute_the_same(net: nn.Sequential) -> None:
    x, file = images(), io.BytesIO()
    right = net(x)
    torch.save(net, file)
    file.seek(0)
    for twin in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        torch.testing.assert_close(twin(x), right, **NEAR)
        with torch.no_grad():
            twin[0].values.zero_()
        torch.testing.assert_close(net(x), right, **NEAR)


@pytest.mark.parametrize("kind", ["csr", "bsr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck_of_products(kind: str, dtype: torch.dtype) -> None:
    def check(operator: Any, *arguments: Any) -> None:
        torch.library.opcheck(operator.overload, arguments, test_utils=CHECKS)

    for shape, size, conv in (
        ((37, 45), (6, 45), ()),
        ((20, 4, 3, 3), (3, 4, 7, 8), ([2, 1], [1, 0], [1, 1], 1)),
    ):
        options = {"block": (16, 16), "cover": "zeros"} if kind == "bsr" else {}
        layout = make_layout(kind, torch.rand(shape) < 0.4, **options).to(DEVICE)  # type: ignore[arg-type]
        x, values, bias = (torch.randn(s).to(DEVICE, dtype) for s in (size, layout.values_shape, shape[:1]))
        tail = (list(layout.index), list(layout.shape), *conv)
        operators = OPS[kind]
        forward, backward = (
            (operators.conv2d, operators.conv2d_backward) if conv else (operators.linear, operators.linear_backward)
        )
        for activation in ACTIVATIONS:
            check(forward, x, values, bias, *tail, activation)
        check(forward, functional.feature_major(x), values, None, *tail)
        y = forward(x, values, bias, *tail, "relu")
        for wanted in ([True, True, True], [False, True, False]):
            check(backward, torch.randn_like(y), x, values, *tail, wanted)
            check(backward, torch.randn_like(y), x, values, *tail, wanted, y)


def test_opcheck_of_expand_and_compress() -> None:
    mask = torch.rand(301, 299, device=DEVICE) < 0.5
    index, dense = Dense.from_mask(mask).index, torch.randn(mask.shape, device=DEVICE) * mask
    values = dense[mask]
    assert torch.equal(schemas.expand(values, *index, mask.numel()), dense.flatten())
    assert torch.equal(schemas.compress(dense.flatten(), *index, values.numel()), values)
    torch.library.opcheck(schemas.expand.overload, (values, *index, mask.numel()), test_utils=CHECKS)
    torch.library.opcheck(schemas.compress.overload, (dense.flatten(), *index, values.numel()), test_utils=CHECKS)


def test_activations_with_and_without_gradients(net: nn.Sequential) -> None:
    x = images()
    with torch.no_grad():
        right = net(x)
        assert ls.nn.fuse_activations_(net) == 3
        torch.testing.assert_close(net(x), right, **NEAR)
    torch.testing.assert_close(net(x), right, **NEAR)


def test_a_model_compiles_as_one_graph_and_trains_like_eager(net: nn.Sequential) -> None:
    twin, x, target = copy.deepcopy(net), images(), targets()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for model, call in ((net, compiled), (twin, twin)):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            step(call, optimiser, x, target)
    assert_same_parameters(net, twin, **NEAR)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), twin(x), **NEAR)


@pytest.mark.filterwarnings("ignore")  # inductor's advice
@pytest.mark.parametrize("kind", ["csr", "bsr"])
def test_reduce_overhead_trains_like_eager(kind: str) -> None:
    net = on_cpu(OPTIONS[kind]).to(DEVICE)
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True, mode="reduce-overhead")
    ours, theirs = (torch.optim.SGD(model.parameters(), lr=0.1) for model in (net, twin))
    for _ in range(4):  # the first runs warm up, the next are captured and replayed
        x, target = images(), targets()
        torch.compiler.cudagraph_mark_step_begin()
        step(compiled, ours, x, target)
        step(twin, theirs, x, target)
    assert_same_parameters(net, twin, **ROUGHLY)


def test_an_exported_model_comes_back_from_a_file_and_takes_other_batches(net: nn.Sequential) -> None:
    net.eval()
    program = torch.export.export(net, (images(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    x = images(9)
    torch.testing.assert_close(torch.export.load(file).module()(x), net(x), **NEAR)


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_a_captured_training_step_is_replayed_with_other_batches(
    make: Callable[..., Optimizer], net: nn.Sequential
) -> None:
    ls.nn.fuse_activations_(net)
    twin, x, target = copy.deepcopy(net), images(), targets()
    ours, theirs = make(net.parameters()), make(twin.parameters())

    def three(model: nn.Module, optimiser: Optimizer) -> None:
        for _ in range(3):
            step(model, optimiser, x, target)

    on_a_side_stream(lambda: three(net, ours))
    three(twin, theirs)
    graph = torch.cuda.CUDAGraph()
    ours.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step(net, ours, x, target)
    for _ in range(3):
        x.copy_(images())
        target.copy_(targets())
        graph.replay()
        step(twin, theirs, x, target)
    assert_same_parameters(net, twin, **ROUGHLY)


def test_graphed_callables_train_like_eager(net: nn.Sequential) -> None:
    twin = copy.deepcopy(net)
    graphed = torch.cuda.make_graphed_callables(net, (images(),))
    ours, theirs = (torch.optim.SGD(model.parameters(), lr=0.1) for model in (net, twin))
    for _ in range(3):
        x, target = images(), targets()
        step(graphed, ours, x, target)
        step(twin, theirs, x, target)
    assert_same_parameters(net, twin, **ROUGHLY)


# the mode itself warns that it does not see everything
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_nothing_waits_for_the_device_in_a_step(
    make: Callable[..., Optimizer], dtype: torch.dtype | None, net: nn.Sequential
) -> None:
    ls.nn.fuse_activations_(net)
    optimiser, x, target = make(net.parameters()), images(), targets()

    def one() -> None:
        with torch.autocast(DEVICE, dtype or torch.float16, enabled=dtype is not None):
            step(net, optimiser, x, target)

    for _ in range(2):
        one()
    with torch.no_grad():
        net(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        one()
        with torch.no_grad():
            net(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", OPTIONS)
def test_autocast_casts_as_for_torchs_own_layers(kind: str, dtype: torch.dtype) -> None:
    options = {name: value for name, value in OPTIONS[kind].items() if name != "layout"}
    layout = make_layout(kind, torch.rand(37, 45) < 0.4, **options).to(DEVICE)
    x, weight, bias = (torch.randn(size, device=DEVICE, requires_grad=True) for size in ((6, 45), (37, 45), (37,)))
    values = layout.gather(weight.detach()).requires_grad_()
    masked = (weight * layout.mask()).detach().requires_grad_()
    with torch.autocast(DEVICE, dtype):
        y, right = functional.linear(x, values, layout, bias), F.linear(x, masked, bias)
        inside = torch.autograd.grad(y, (x, values, bias), torch.ones_like(y), retain_graph=True)
        with torch.autocast(DEVICE, enabled=False):
            assert functional.linear(x, values, layout, bias).dtype == torch.float32
    assert y.dtype == right.dtype == dtype
    torch.testing.assert_close(y, right, **ROUGHLY)
    found = torch.autograd.grad(y, (x, values, bias), torch.ones_like(y))
    truth = list(torch.autograd.grad(right, (x, masked, bias), torch.ones_like(right)))
    truth[1] = layout.gather(truth[1])
    for mine, again, theirs in zip(found, inside, truth, strict=True):
        assert mine.dtype == again.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, **ROUGHLY)
        torch.testing.assert_close(again, mine, **ROUGHLY)


@pytest.mark.parametrize("bad", [1.0, float("inf")])
def test_a_grad_scaler_takes_steps_and_skips_overflows(bad: float, net: nn.Sequential) -> None:
    optimiser, x = torch.optim.SGD(net.parameters(), lr=0.1), images()
    before = [p.detach().clone() for p in net.parameters()]
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0)
    with torch.autocast(DEVICE, torch.float16):
        loss = net(x).float().square().mean() * bad
    scaler.scale(loss).backward()
    scaler.step(optimiser)
    scaler.update()
    assert scaler.get_scale() == (1024.0 if bad == 1.0 else 512.0)
    same = [torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True)]
    assert not any(same) if bad == 1.0 else all(same)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


@pytest.mark.filterwarnings("ignore")  # of NCCL's start
def test_a_model_trains_under_distributed_data_parallel(net: nn.Sequential, tmp_path: Path) -> None:
    if not torch.distributed.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    twin, x, target = copy.deepcopy(net), images(), targets()
    where = {"init_method": f"file://{tmp_path}/store", "device_id": torch.device(DEVICE, torch.cuda.current_device())}
    torch.distributed.init_process_group("nccl", rank=0, world_size=1, **where)
    try:
        parallel = nn.parallel.DistributedDataParallel(net, device_ids=[torch.cuda.current_device()])
        for model, call in ((net, parallel), (twin, twin)):
            optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(2):
                step(call, optimiser, x, target)
        del parallel, call
    finally:
        torch.distributed.destroy_process_group()
    assert_same_parameters(net, twin, **NEAR)

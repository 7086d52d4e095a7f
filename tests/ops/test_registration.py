"""The operators as torch sees them: opcheck, compile, export, backends, and the state they must not touch."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse import _C
from lth_sparse.errors import ArgumentError
from lth_sparse.formats import BSR, CSR, Dense, Layout
from lth_sparse.ops import backend_of, functional, schemas, use_backend
from lth_sparse.ops.reference import ACTIVATIONS
from lth_sparse.ops.schemas import OPS

CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
KINDS = {"csr": CSR.from_mask, "bsr": lambda mask: BSR.from_mask(mask, (2, 2), "zeros")}


def linear_case(kind: str) -> tuple[Layout, Tensor, Tensor, Tensor]:
    layout = KINDS[kind](torch.rand(6, 5) < 0.5)
    return layout, torch.randn(3, 5), layout.gather(torch.randn(6, 5)), torch.randn(6)


def conv_case(kind: str) -> tuple[Layout, Tensor, Tensor, Tensor]:
    layout = KINDS[kind](torch.rand(6, 2, 3, 3) < 0.5)
    return layout, torch.randn(3, 2, 7, 8), layout.gather(torch.randn(6, 2, 3, 3)), torch.randn(6)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck_linear(kind: str) -> None:
    layout, x, values, bias = linear_case(kind)
    index, shape = list(layout.index), list(layout.shape)
    torch.library.opcheck(OPS[kind].linear.overload, (x, values, bias, index, shape), test_utils=CHECKS)
    torch.library.opcheck(OPS[kind].linear.overload, (x, values, None, index, shape), test_utils=CHECKS)
    y = OPS[kind].linear(x, values, bias, index, shape, "relu")
    for activation in ACTIVATIONS:
        arguments = (x, values, bias, index, shape, activation)
        torch.library.opcheck(OPS[kind].linear.overload, arguments, test_utils=CHECKS)
    torch.library.opcheck(
        OPS[kind].linear_backward.overload,
        (torch.randn(3, 6), x, values, index, shape, [True, True, True], y),
        test_utils=CHECKS,
    )
    for wanted in ([True, True, True], [False, True, False]):
        arguments = (torch.randn(3, 6), x, values, index, shape, wanted)
        torch.library.opcheck(OPS[kind].linear_backward.overload, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("kind", KINDS)
def test_operators_refuse_unknown_activations(kind: str) -> None:
    layout, x, values, bias = linear_case(kind)
    arguments = (x, values, bias, list(layout.index), list(layout.shape), "tanh")
    for backend in ("auto", "reference"):
        with use_backend(backend), pytest.raises(ArgumentError, match="activation: expected one of none, relu, gelu"):
            OPS[kind].linear(*arguments)
    with pytest.raises(RuntimeError, match="activation: expected one of none, relu, gelu"):
        OPS[kind].linear(*(t.to("meta") if isinstance(t, Tensor) else t for t in arguments))


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck_conv2d(kind: str) -> None:
    layout, x, values, bias = conv_case(kind)
    tail = (list(layout.index), list(layout.shape))
    geometry = ([2, 1], [1, 0], [1, 1], 1)
    y = OPS[kind].conv2d(x, values, bias, *tail, *geometry)
    for activation in ACTIVATIONS:
        arguments = (x, values, bias, *tail, *geometry, activation)
        torch.library.opcheck(OPS[kind].conv2d.overload, arguments, test_utils=CHECKS)
    for wanted in ([True, True, True], [False, True, False]):
        arguments = (torch.randn_like(y), x, values, *tail, *geometry, wanted)
        for activated in ((), (torch.randn_like(y),)):
            torch.library.opcheck(OPS[kind].conv2d_backward.overload, (*arguments, *activated), test_utils=CHECKS)


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_expand_and_compress_are_exact_and_pass_opcheck(density: float, dtype: torch.dtype) -> None:
    mask = torch.rand(301, 299) < density
    index = Dense.from_mask(mask).index
    dense = torch.randn(mask.shape).to(dtype) * mask
    values = dense[mask]
    for isa in _C.isas() if dtype == torch.float32 else [_C.isa()]:
        with instruction_set(isa):
            assert torch.equal(schemas.expand(values, *index, mask.numel()), dense.flatten())
            assert torch.equal(schemas.compress(dense, *index, values.numel()), values)
    torch.library.opcheck(schemas.expand.overload, (values, *index, mask.numel()), test_utils=CHECKS)
    torch.library.opcheck(schemas.compress.overload, (dense, *index, values.numel()), test_utils=CHECKS)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_opcheck_linear_from_the_bitmap(batch: int) -> None:
    layout = Dense.from_mask(torch.rand(6, 5) < 0.5)
    x, bias, weight = torch.randn(batch, 5), torch.randn(6), torch.randn(6, 5) * layout.mask()
    values, tail = layout.gather(weight), (list(layout.index), list(layout.shape))
    truth = nn.functional.linear(x, weight, bias)
    for given, name, right in ((x, "none", truth), (functional.feature_major(x), "relu", truth.relu())):
        y = schemas.linear_bitmap(given, values, bias, *tail, name)
        torch.testing.assert_close(y, right)
        assert y.stride() == schemas.linear_bitmap.overload(given, values, bias, *tail, name).stride()
        torch.library.opcheck(schemas.linear_bitmap.overload, (given, values, bias, *tail, name), test_utils=CHECKS)
    torch.library.opcheck(schemas.linear_bitmap.overload, (x, values, None, *tail), test_utils=CHECKS)


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    before = _C.isa()
    _C.set_isa(name)
    try:
        yield
    finally:
        _C.set_isa(before)


class Small(nn.Module):
    """One sparse convolution and one sparse linear layer with something between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 6 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten(1))


def sparse_small() -> nn.Module:
    model = Small()
    masks = {name: torch.rand_like(p) < 0.4 for name, p in model.named_parameters() if p.dim() > 1}
    ls.sparsify_(model, masks, layout="csr")
    return model


# Dynamo itself instantiates autograd.Function while tracing one
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("seed")
def test_compile_fullgraph_trains_like_eager() -> None:
    model, x = sparse_small(), torch.randn(3, 2, 6, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(x).square().sum().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    for mine, eager in zip(ours, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(mine, eager)


@pytest.mark.usefixtures("seed")
def test_export_gives_the_same_output_for_other_batch_sizes() -> None:
    model, x = sparse_small().eval(), torch.randn(3, 2, 6, 6)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    other = torch.randn(7, 2, 6, 6)
    torch.testing.assert_close(program.module()(other), model(other))


def test_backend_of_names_what_runs() -> None:
    assert backend_of("csr", "cpu", torch.float32) == f"cpu-{_C.isa()}"
    for kind in ("csr", "bsr"):
        assert backend_of(kind, "cpu", torch.bfloat16) == f"cpu-{_C.isa()}"
        assert backend_of(kind, "cpu", torch.bfloat16, gradients=True) == "reference"
        assert backend_of(kind, "cpu", torch.float16) == "reference"
    assert backend_of("csr", "cpu", torch.float64, gradients=True) == f"cpu-{_C.isa()}"
    assert backend_of("bsr", "cpu", torch.float64) == f"cpu-{_C.isa()}"
    assert backend_of("bsr", "cpu", torch.float32, dims=4) == f"cpu-{_C.isa()}"
    assert backend_of("dense", "cpu", torch.float32) == "torch"
    with use_backend("reference"):
        assert backend_of("csr", "cpu", torch.float32) == "reference"


def test_use_backend_refuses_unknown_names_and_restores_after_an_error() -> None:
    with pytest.raises(ArgumentError, match="name: expected 'auto' or 'reference', got 'gpu'"), use_backend("gpu"):
        pass
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert backend_of("csr", "cpu", torch.float32) != "reference"


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_the_environment_forces_the_reference_and_refuses_nonsense() -> None:
    code = "import torch, lth_sparse.ops as ops; print(ops.backend_of('csr', 'cpu', torch.float32))"
    assert run_python(code, LTH_SPARSE_BACKEND="reference").stdout.strip() == "reference"
    wrong = run_python(code, LTH_SPARSE_BACKEND="fast")
    assert "environment variable LTH_SPARSE_BACKEND: expected 'auto' or 'reference', got 'fast'" in wrong.stderr


def test_threads_other_than_one_give_the_same_result() -> None:
    layout = CSR.from_mask(torch.rand(65, 33) < 0.3)
    x, values = torch.randn(40, 33), layout.gather(torch.randn(65, 33))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(functional.linear(x, values, layout))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])

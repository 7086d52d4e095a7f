"""Layers of one shape in one launch: the same numbers as one by one, and every mistake named."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.formats import make_layout
from lth_sparse.nn import LinearStack, SparseLinear, SparseLinearStack
from lth_sparse.ops import use_backend

LAYOUTS: dict[str, dict[str, Any]] = {
    "csr": {"layout": "csr"},
    "bsr": {"layout": "bsr", "block": (2, 3), "cover": "zeros"},
    "dense": {"layout": "dense"},
}
#: (layers, out, in), the input's first dimensions: odd sizes, one layer, no batch, an empty one, one wide sample.
SIZES = [
    ((3, 6, 7), (5,)),
    ((1, 4, 3), (4,)),
    ((4, 2, 5), ()),
    ((2, 8, 3), (0,)),
    ((3, 4, 9), (2, 3)),
    ((5, 2, 1), (1,)),
    ((2, 6, 40), (37,)),
]
DENSITIES = [0.0, 0.4, 1.0]


def members(
    size: tuple[int, int, int],
    options: dict[str, Any],
    density: float = 0.4,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> list[SparseLinear]:
    """Layers with masks of their own, the first of which keeps nothing where any is pruned."""
    count, rows, cols = size
    found = []
    for index in range(count):
        mask = torch.rand(rows, cols) < (density if index or density == 1.0 else 0.0)
        found.append(SparseLinear.from_dense(nn.Linear(cols, rows, bias=bias, dtype=dtype), mask, **options))
    return found


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("size", "batch"), SIZES, ids=str)
def test_equals_the_layers_one_by_one(
    size: tuple[int, int, int], batch: tuple[int, ...], options: Any, density: float, backend: str
) -> None:
    layers = members(size, options, density, bias=size[0] != 4)
    stack = SparseLinearStack.from_layers(layers)
    x = torch.randn(*batch, size[0], size[2], dtype=torch.float64, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    with use_backend(backend):
        right = torch.stack([layer(part) for layer, part in zip(layers, x.unbind(-2), strict=True)], dim=-2)
        y = stack(z)
        grad = torch.randn_like(right)
        right.backward(grad)
        y.backward(grad)
    torch.testing.assert_close(y, right)
    assert y.is_contiguous()
    torch.testing.assert_close(z.grad, x.grad)
    weights = torch.cat([layer.layout.scatter(layer.values.grad) for layer in layers])
    torch.testing.assert_close(stack.layout.scatter(stack.values.grad), weights)
    if stack.bias is not None:
        torch.testing.assert_close(stack.bias.grad, torch.cat([layer.bias.grad for layer in layers]))


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_gradients_are_right_to_second_order(options: Any, activation: str | None) -> None:
    stack = SparseLinearStack.from_layers(members((2, 2, 3), options, density=0.7))
    x = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return ls.functional.linear_stack(x, values, stack.layout, bias, 2, activation=activation)

    assert torch.autograd.gradcheck(call, (x, stack.values, stack.bias))
    assert torch.autograd.gradgradcheck(call, (x, stack.values, stack.bias), fast_mode=True)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_any_strides_of_the_input(options: Any) -> None:
    stack = SparseLinearStack.from_layers(members((3, 4, 5), options))
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    right = stack(x)
    for view in (x.permute(1, 2, 0).contiguous().permute(2, 0, 1), x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert not view.is_contiguous()
        torch.testing.assert_close(stack(view), right)
    torch.testing.assert_close(stack(x[:1].expand(6, 3, 5)), right[:1].expand(6, 3, 4))


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_other_dtypes(options: Any, dtype: torch.dtype) -> None:
    layers = members((2, 4, 7), options, dtype=dtype)
    x = torch.randn(5, 2, 7, dtype=dtype)
    with torch.no_grad():
        y = SparseLinearStack.from_layers(layers)(x)
        right = torch.stack([layer(part) for layer, part in zip(layers, x.unbind(-2), strict=True)], dim=-2)
    assert y.dtype == dtype
    torch.testing.assert_close(y, right)


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def layers(request: Any, seed: int) -> list[SparseLinear]:
    return members((3, 6, 7), request.param)


def test_unstacked_layers_are_those_that_were_stacked(layers: list[SparseLinear]) -> None:
    stack = SparseLinearStack.from_layers(nn.ModuleList(layers).eval())  # type: ignore[arg-type]
    again = stack.unstack()
    assert len(again) == 3
    for one, other in zip(again, layers, strict=True):
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.bias, other.bias)
        assert one.layout.kind == other.layout.kind
        assert (one.training, one.in_features, one.out_features) == (False, 7, 6)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.zero_()
    assert all(bool(layer.bias.any()) for layer in (*layers, *again))


def test_what_is_frozen_stays_so(layers: list[SparseLinear]) -> None:
    for layer in layers:
        layer.values.requires_grad_(False)
    stack = SparseLinearStack.from_layers(layers)
    assert not stack.values.requires_grad
    assert stack.bias.requires_grad
    assert not stack.unstack()[1].values.requires_grad
    assert stack.unstack()[1].bias.requires_grad


def test_state_copies_and_conversions(layers: list[SparseLinear]) -> None:
    stack = SparseLinearStack.from_layers(layers)
    x = torch.randn(4, 3, 7, dtype=torch.float64)
    right = stack(x)
    other = SparseLinearStack.from_layers(layers)
    with torch.no_grad():
        other.values.zero_()
    file = io.BytesIO()
    torch.save(stack.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), right)
    assert torch.equal(copy.deepcopy(stack)(x), right)
    assert copy.deepcopy(stack).to(torch.float32)(x.float()).dtype == torch.float32
    dense = stack.to_dense()
    assert isinstance(dense, LinearStack)
    torch.testing.assert_close(dense(x), right)
    assert dense.bias is stack.bias
    back = SparseLinearStack.from_dense(dense, stack.mask, layout="csr")
    torch.testing.assert_close(back(x), right)
    model = nn.Sequential(stack)
    assert list(ls.dense_state_dict(model)) == ["0.weight", "0.bias"]
    torch.testing.assert_close(ls.densify_(model)(x), right)


def test_a_stack_is_pruned_further_like_any_sparse_layer(layers: list[SparseLinear]) -> None:
    model = nn.Sequential(SparseLinearStack.from_layers(layers))
    (mask,) = ls.nn.masks_of(model).values()
    mask = mask & (torch.rand(mask.shape) < 0.5)
    report = ls.sparsify_(model, {"0.weight": mask}, layout="csr")
    assert [row.kind for row in report] == ["LinearStack"]
    assert isinstance(model[0], SparseLinearStack)
    assert torch.equal(model[0].mask, mask)
    assert model[0](torch.randn(4, 3, 7, dtype=torch.float64)).shape == (4, 3, 6)


def test_it_describes_itself(layers: list[SparseLinear]) -> None:
    stack = SparseLinearStack.from_layers(layers)
    assert "in_features=7, out_features=6, layers=3, bias=True, density=" in repr(stack)
    assert repr(LinearStack(7, 6, 3, bias=False)) == "LinearStack(in_features=7, out_features=6, layers=3, bias=False)"
    assert stack.weight.shape == (18, 7)
    assert stack.nnz == sum(layer.nnz for layer in layers)


def test_it_computes_the_relu_behind_it(layers: list[SparseLinear]) -> None:
    x = torch.randn(4, 3, 7, dtype=torch.float64)
    model = nn.Sequential(SparseLinearStack.from_layers(layers), nn.ReLU())
    right = model(x)
    assert ls.nn.fuse_relu_(model) == 1
    assert torch.equal(model(x), right)
    assert model[0].unstack()[0].activation == "relu"


# Dynamo itself instantiates autograd.Function while tracing one
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles(layers: list[SparseLinear]) -> None:
    stack = SparseLinearStack.from_layers(layers)
    x = torch.randn(4, 3, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(torch.compile(stack, fullgraph=True, backend="aot_eager")(x), stack(x))
    torch._dynamo.reset()


def test_a_dense_stack_draws_each_layer_as_torch_draws_one(seed: int) -> None:
    stack = LinearStack(100, 50, 4)
    bound = nn.Linear(100, 50).weight.abs().max()
    for tensor in (stack.weight, stack.bias):
        assert 0.9 * bound < tensor.abs().max() <= 0.1
    x = torch.randn(2, 4, 100)
    right = torch.stack(
        [F.linear(x[:, b], stack.weight[50 * b : 50 * b + 50], stack.bias[50 * b : 50 * b + 50]) for b in range(4)], 1
    )
    torch.testing.assert_close(stack(x), right)
    with pytest.raises(ArgumentError, match="layers: expected a positive int, got 0"):
        LinearStack(3, 4, 0)


def changed(layer: SparseLinear, change: str) -> nn.Module:
    make = SparseLinear.from_dense
    mask = torch.ones(6, 7, dtype=torch.bool)
    if change == "requires_grad":
        layer.bias.requires_grad_(False)
    elif change == "hook":
        layer.register_forward_hook(lambda module, args, y: None)
    elif change == "activation":
        layer.activation = "relu"
    return {
        "shape": lambda: make(nn.Linear(6, 7, dtype=torch.float64), mask.t()),
        "dtype": lambda: make(nn.Linear(7, 6), mask),
        "layout": lambda: make(nn.Linear(7, 6, dtype=torch.float64), mask, layout="dense"),
        "bias": lambda: make(nn.Linear(7, 6, bias=False, dtype=torch.float64), mask),
        "class": lambda: nn.Linear(7, 6, dtype=torch.float64),
        "training": lambda: layer.eval(),
    }.get(change, lambda: layer)()


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ("shape", ArgumentError, r"expected shape \[6, 7\] of layers\[0\], got \[7, 6\]"),
        ("dtype", ArgumentError, r"expected dtype torch.float64 of layers\[0\], got torch.float32"),
        ("layout", ArgumentError, r"expected layout csr of layers\[0\], got dense"),
        ("bias", ArgumentError, r"expected bias a bias of layers\[0\], got no bias"),
        ("requires_grad", ArgumentError, r"expected requires_grad \(True, True\)"),
        ("training", ArgumentError, r"expected training True of layers\[0\], got False"),
        ("activation", ArgumentError, r"expected activation None of layers\[0\], got relu"),
        ("hook", ArgumentError, r"expected a layer without hooks, but it has forward hooks"),
        ("class", ArgumentTypeError, r"expected a SparseLinear, got Linear"),
    ],
)
def test_the_layer_that_differs_is_named(change: str, error: type[Exception], said: str) -> None:
    layers: list[Any] = members((3, 6, 7), LAYOUTS["csr"])
    layers[2] = changed(layers[2], change)
    with pytest.raises(error, match=rf"layers\[2\]: {said}"):
        SparseLinearStack.from_layers(layers)


@pytest.mark.usefixtures("seed")
def test_blocks_must_be_alike_and_within_a_layer() -> None:
    first, other = (
        members((1, 6, 6), {"layout": "bsr", "block": block, "cover": "zeros"})[0] for block in ((2, 3), (3, 3))
    )
    with pytest.raises(ArgumentError, match=r"layers\[1\]: expected block \(2, 3\) of layers\[0\], got \(3, 3\)"):
        SparseLinearStack.from_layers([first, other])
    wide = members((2, 6, 6), {"layout": "bsr", "block": (4, 3), "cover": "zeros"})
    what = r"layout: expected blocks whose rows divide the 6 rows of each of the 2 layers, got blocks of 4x3"
    with pytest.raises(ArgumentError, match=what):
        SparseLinearStack.from_layers(wide)
    assert SparseLinearStack.from_layers(wide[:1]).layers == 1  # nothing to mix


def test_other_mistakes_are_named(seed: int) -> None:
    with pytest.raises(ArgumentTypeError, match="layers: expected a sequence of SparseLinear, got int"):
        SparseLinearStack.from_layers(3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="layers: expected at least one SparseLinear, got none"):
        SparseLinearStack.from_layers([])
    layout = make_layout("csr", torch.ones(6, 4, dtype=torch.bool))
    values, x = torch.randn(24), torch.randn(5, 2, 4)
    stacked = ls.functional.linear_stack
    for groups in (0, 4, True, 1.0):
        with pytest.raises(ArgumentError, match="groups: expected a positive int that divides the 6 rows of W"):
            stacked(x, values, layout, groups=groups)  # type: ignore[arg-type]
    for wrong in (x[:, :1], x[..., :3], x[0, 0], x.flatten(1)):
        with pytest.raises(ArgumentError, match=r"x: expected shape \[\*, 2, 4\], got"):
            stacked(wrong, values, layout, groups=2)
    with pytest.raises(ArgumentError, match=r"x: expected dtype torch\.float32 of values, got torch.float64"):
        stacked(x.double(), values, layout, groups=2)
    with pytest.raises(ArgumentError, match=r"bias: expected torch\.float32 \[6\]"):
        stacked(x, values, layout, torch.randn(3), groups=2)
    with pytest.raises(ArgumentError, match="layout: expected one of a 2-D weight"):
        stacked(x, values, make_layout("csr", torch.ones(6, 4, 1, 1, dtype=torch.bool)), groups=2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_equals_the_layers_one_by_one_on_the_device(kind: str, dtype: torch.dtype, seed: int) -> None:
    options = {**LAYOUTS[kind], **({"block": (16, 16)} if kind == "bsr" else {})}
    layers = [layer.to("cuda", dtype) for layer in members((3, 32, 48), options)]
    stack = SparseLinearStack.from_layers(layers)
    x = torch.randn(37, 3, 48, device="cuda", dtype=dtype, requires_grad=True)
    y = stack(x)
    right = torch.stack([layer(part) for layer, part in zip(layers, x.unbind(-2), strict=True)], dim=-2)
    grad = torch.randn_like(right)
    ours = torch.autograd.grad(y, (x, stack.values, stack.bias), grad)
    dx, *rest = torch.autograd.grad(right, (x, *(p for layer in layers for p in (layer.values, layer.bias))), grad)
    close = {"rtol": 2e-3, "atol": 2e-3} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(y, right, **close)
    torch.testing.assert_close(ours[0], dx, **close)
    weights = torch.cat([layer.layout.scatter(grad) for layer, grad in zip(layers, rest[::2], strict=True)])
    torch.testing.assert_close(stack.layout.scatter(ours[1]), weights, **close)
    torch.testing.assert_close(ours[2], torch.cat(rest[1::2]), **close)
    assert y.is_contiguous()

"""Layers that compute the activation behind them: the same results, whatever is converted before or after."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.formats import make_layout
from lth_sparse.nn.fused import FusedGELU, FusedReLU
from lth_sparse.ops.reference import ACTIVATIONS

LAYOUTS = {"csr": {}, "bsr": {"block": (2, 2), "cover": "zeros"}, "dense": {}}


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 16, 9), nn.ReLU(inplace=True), nn.Linear(9, 5),
    ).double()  # fmt: skip


def sparse_network(layout: str = "csr") -> nn.Sequential:
    model = network()
    masks = {name: torch.rand(p.shape) < 0.5 for name, p in model.named_parameters() if p.dim() > 1}
    ls.sparsify_(model, masks, layout=layout, **LAYOUTS[layout])  # type: ignore[arg-type]
    return model


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    found = [y.detach(), x.grad, *(p.grad for p in model.parameters())]
    model.zero_grad()
    return [tensor.clone() for tensor in found if tensor is not None]


@pytest.fixture
def x(seed: int) -> Tensor:
    return torch.randn(7, 3, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_results_with_two_nodes_less(layout: str, x: Tensor) -> None:
    plain = sparse_network(layout)
    model = copy.deepcopy(plain)
    assert ls.nn.fuse_relu_(model) == 2
    assert ls.nn.fuse_relu_(model) == 2  # twice is once
    assert type(model[4]) is nn.ReLU  # behind BatchNorm
    for ours, right in zip(run(model, x), run(plain, x), strict=True):
        assert torch.equal(ours, right)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    assert "activation=relu" in repr(model[0])
    assert ls.nn.fuse_relu_(model, False) == 0
    assert [type(m) for m in model] == [type(m) for m in plain]


def gated_network(layout: str = "csr") -> nn.Sequential:
    """One of each activation behind a layer, and a second GELU behind the first."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 9), nn.GELU(), nn.GELU(),
        nn.Linear(9, 8), nn.GELU("tanh"), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5),
    ).double()  # fmt: skip
    masks = {name: torch.rand(p.shape) < 0.5 for name, p in model.named_parameters() if p.dim() > 1}
    ls.sparsify_(model, masks, layout=layout, **LAYOUTS[layout])  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_activation_is_fused_with_the_same_results(layout: str, x: Tensor) -> None:
    plain = gated_network(layout)
    model = copy.deepcopy(plain)
    assert ls.nn.fuse_activations_(model) == 4
    assert ls.nn.fuse_activations_(model) == 4
    found = [getattr(module, "activation", None) for module in model]
    assert found == ["silu", None, None, "gelu", None, None, "gelu_tanh", None, "relu", None, None]
    assert [type(module) for module in (model[4], model[5])] == [FusedGELU, nn.GELU]
    for ours, right in zip(run(model, x), run(plain, x), strict=True):
        assert torch.equal(ours, right)
    for without in (torch.no_grad, torch.inference_mode):
        with without():
            torch.testing.assert_close(model(x), plain(x), rtol=1e-12, atol=1e-12)
    assert ls.nn.fuse_relu_(model, False) == 0  # the others are not its business
    assert [model[i].activation for i in (0, 3, 6, 8)] == ["silu", "gelu", "gelu_tanh", None]
    assert ls.nn.fuse_activations_(model, False) == 0
    assert [type(m) for m in model] == [type(m) for m in plain]
    assert all(model[i].activation is None for i in (0, 3, 6, 8, 10))


@torch.no_grad()
def test_no_conversion_loses_or_doubles_a_gelu(x: Tensor) -> None:
    model = gated_network()
    right = model(x)
    ls.nn.fuse_activations_(model)
    torch.testing.assert_close(copy.deepcopy(model)(x), right)
    flat = model[2](model[1](model[0](x)))
    activated = model[4](model[3](flat))
    model[5].__class__ = FusedGELU  # as behind a layer that is gone
    assert torch.equal(model[5](activated), F.gelu(activated))
    hidden = model[3](flat)
    assert torch.equal(model[4](hidden), model[4](hidden))
    ls.densify_(model)
    torch.testing.assert_close(model(x), right)


def test_no_conversion_loses_a_relu(x: Tensor) -> None:
    model = sparse_network()
    right = model(x)
    ls.nn.fuse_relu_(model)
    again = copy.deepcopy(model)
    ls.sparsify_(again, ls.nn.masks_of(model), layout="dense")
    torch.testing.assert_close(again(x), right)
    ls.densify_(model)
    assert isinstance(model[1], FusedReLU)
    torch.testing.assert_close(model(x), right)
    model[0] = nn.Identity()
    assert torch.equal(model[1](x), torch.relu(x))


def test_a_hook_that_comes_later_sees_the_layers_own_output(x: Tensor) -> None:
    model = sparse_network()
    right = model[0](x)
    whole = model(x)
    ls.nn.fuse_relu_(model)
    seen: list[Tensor] = []
    handle = model[0].register_forward_hook(lambda module, args, y: seen.append(y.detach()))
    assert torch.equal(model(x), whole)
    assert torch.equal(seen[0], right)
    assert bool((right < 0).any())
    handle.remove()
    assert not bool((model[0](x) < 0).any())


def test_layers_with_hooks_or_in_two_places_are_left_alone(x: Tensor) -> None:
    model = sparse_network()
    model[0].register_forward_hook(lambda module, args, y: None)
    model[7].register_forward_pre_hook(lambda module, args: None)
    assert ls.nn.fuse_relu_(model) == 0
    shared = sparse_network()
    both = nn.ModuleList([shared, nn.Sequential(shared[6])])
    assert ls.nn.fuse_relu_(both) == 1


# Dynamo itself instantiates autograd.Function while tracing one
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_keeps_its_relus(x: Tensor) -> None:
    model = sparse_network()
    right = model(x)
    ls.nn.fuse_relu_(model)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), right)
    torch._dynamo.reset()


def test_together_with_feature_major_activations(x: Tensor) -> None:
    plain = sparse_network()
    model = copy.deepcopy(plain)
    ls.nn.fuse_relu_(model)
    ls.nn.feature_major_(model)
    for ours, right in zip(run(model, x), run(plain, x), strict=True):
        torch.testing.assert_close(ours, right)


TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "silu": F.silu
}  # fmt: skip


def test_the_names_are_those_of_the_gpu_kernels() -> None:
    epilogue = pytest.importorskip("lth_sparse.kernels.epilogue")
    assert epilogue.ACTIVATIONS == ACTIVATIONS == ("none", *TORCH)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", TORCH)
def test_functional_activation_and_its_gradients(layout: str, activation: str) -> None:
    index = make_layout(layout, torch.rand(6, 5) < 0.6, **LAYOUTS[layout])  # type: ignore[arg-type]
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    values = index.gather(torch.randn(6, 5, dtype=torch.float64)).requires_grad_()
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return ls.functional.linear(x, values, index, bias, activation=activation)

    right = TORCH[activation](F.linear(x, index.scatter(values.detach()), bias))
    torch.testing.assert_close(call(x, values, bias), right)
    torch.testing.assert_close(call(x.detach(), values.detach(), bias.detach()), right)
    with torch.no_grad():
        torch.testing.assert_close(call(x, values, bias), right)
    assert torch.autograd.gradcheck(call, (x, values, bias))
    assert torch.autograd.gradgradcheck(call, (x, values, bias))


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", TORCH)
def test_functional_activation_of_convolutions(layout: str, activation: str) -> None:
    for shape, call, dense in (
        ((4, 3, 3, 2), ls.functional.conv2d, F.conv2d),
        ((4, 3, 3), ls.functional.conv1d, F.conv1d),
    ):
        index = make_layout(layout, torch.rand(shape) < 0.6, **LAYOUTS[layout])  # type: ignore[arg-type]
        x = torch.randn(2, 3, *(6,) * (len(shape) - 2), dtype=torch.float64)
        values = index.gather(torch.randn(shape, dtype=torch.float64)).requires_grad_()
        right = TORCH[activation](dense(x, index.scatter(values.detach())))
        for given in (x, ls.functional.feature_major(x)):
            found = call(given, values, index, activation=activation)
            torch.testing.assert_close(found, right)
            found.sum().backward()
            with torch.no_grad():
                torch.testing.assert_close(call(given, values, index, activation=activation), right)


def test_nan_passes_as_through_torch_relu(x: Tensor) -> None:
    plain = sparse_network().eval()
    model = copy.deepcopy(plain)
    ls.nn.fuse_relu_(model)
    x[0, 0, 0, 0] = float("nan")
    torch.testing.assert_close(model(x), plain(x), equal_nan=True)
    assert model(x)[0].isnan().any()


def test_bad_arguments_are_named(x: Tensor) -> None:
    layer = sparse_network()[6]
    with pytest.raises(
        ArgumentError, match="activation: expected None or one of relu, gelu, gelu_tanh, silu, got 'tanh'"
    ):
        ls.functional.linear(x.flatten(1)[:, :64], layer.values, layer.layout, activation="tanh")
    with pytest.raises(ArgumentTypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        ls.nn.fuse_relu_(3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="enabled: expected True or False, got 1"):
        ls.nn.fuse_relu_(nn.ReLU(), 1)  # type: ignore[arg-type]

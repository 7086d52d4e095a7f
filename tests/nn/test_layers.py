"""SparseLinear, SparseConv1d and SparseConv2d against the masked dense layer in float64."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.nn import SparseConv1d, SparseConv2d, SparseLinear, SparseModule

LAYERS: dict[str, tuple[type[SparseModule], Any, tuple[int, ...]]] = {
    "linear": (SparseLinear, lambda: nn.Linear(13, 7), (5, 13)),
    "linear without bias": (SparseLinear, lambda: nn.Linear(13, 7, bias=False), (2, 3, 13)),
    "linear, no batch": (SparseLinear, lambda: nn.Linear(13, 7), (13,)),
    "linear, empty batch": (SparseLinear, lambda: nn.Linear(13, 7), (0, 13)),
    "conv1d": (SparseConv1d, lambda: nn.Conv1d(4, 6, 3, 2, 1, groups=2), (3, 4, 11)),
    "conv1d same": (SparseConv1d, lambda: nn.Conv1d(4, 6, 4, padding="same"), (3, 4, 11)),
    "conv2d": (SparseConv2d, lambda: nn.Conv2d(3, 5, (3, 2), (2, 1), (1, 0), (1, 2)), (2, 3, 9, 8)),
    "conv2d same": (SparseConv2d, lambda: nn.Conv2d(3, 5, (3, 2), padding="same"), (2, 3, 9, 8)),
    "conv2d groups": (SparseConv2d, lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2, bias=False), (2, 6, 5, 5)),
    "conv2d reflect": (SparseConv2d, lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 6)),
    "conv2d circular": (SparseConv2d, lambda: nn.Conv2d(3, 5, 3, padding=2, padding_mode="circular"), (3, 6, 6)),
    "conv2d replicate": (SparseConv2d, lambda: nn.Conv2d(3, 5, 3, padding="same", padding_mode="replicate"), (3, 6, 6)),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "csr": {"layout": "csr"},
    "bsr": {"layout": "bsr", "block": (2, 3), "cover": "zeros"},
    "reordered": {"layout": "reordered", "block": (2, 3), "cover": "zeros"},
    "dense": {"layout": "dense"},
}
DENSITIES = {"nothing kept": 0.0, "some kept": 0.4, "all kept": 1.0}


def pair(
    cls: type[SparseModule], make: Any, density: float, options: dict[str, Any]
) -> tuple[nn.Module, SparseModule, Tensor]:
    """Dense layer with zeroed weights, its sparse twin, and the mask; float64."""
    torch.manual_seed(0)
    dense = make().double()
    mask = torch.rand(dense.weight.shape) < density
    sparse = cls.from_dense(dense, mask, **options)
    dense = copy.deepcopy(dense)  # the bias of the sparse layer is the dense layer's own
    with torch.no_grad():
        dense.weight.mul_(mask)
    return dense, sparse, mask


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own, of the dense layer
@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("cls", "make", "size"), LAYERS.values(), ids=LAYERS)
def test_output_and_gradients_are_those_of_the_masked_dense_layer(
    cls: Any, make: Any, size: Any, options: Any, density: float, seed: int, poison_empty: None
) -> None:
    if options.get("layout") == "reordered" and getattr(make(), "groups", 1) > 1:
        pytest.skip("refused: it would mix the channels of groups")
    dense, sparse, mask = pair(cls, make, density, options)
    x = torch.randn(size, dtype=torch.float64, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    right, y = dense(x), sparse(z)
    grad = torch.randn_like(right)
    right.backward(grad)
    y.backward(grad)
    torch.testing.assert_close(y, right)
    torch.testing.assert_close(z.grad, x.grad)
    assert isinstance(dense.weight.grad, Tensor)
    torch.testing.assert_close(sparse.values.grad, sparse.layout.gather(dense.weight.grad))
    torch.testing.assert_close(sparse.layout.scatter(sparse.values.grad), dense.weight.grad * mask)
    if dense.bias is not None:
        assert sparse.bias is not None
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad)


@pytest.fixture
def layer(seed: int) -> SparseLinear:
    return SparseLinear.from_dense(nn.Linear(13, 7), torch.rand(7, 13) < 0.3)


def test_attributes_describe_the_layer(seed: int) -> None:
    dense = nn.Conv2d(3, 5, 3, padding=1, groups=1)
    mask = torch.rand(5, 3, 3, 3) < 0.3
    sparse = SparseConv2d.from_dense(dense, mask)
    assert torch.equal(sparse.mask, mask)
    assert sparse.nnz == int(mask.sum()) == sparse.values.numel()
    assert sparse.density == pytest.approx(float(mask.float().mean()))
    assert (sparse.in_channels, sparse.out_channels, sparse.kernel_size) == (3, 5, (3, 3))
    assert (sparse.stride, sparse.padding, sparse.dilation, sparse.groups) == ((1, 1), (1, 1), (1, 1), 1)


def test_only_values_and_bias_are_parameters(layer: SparseLinear) -> None:
    assert [name for name, _ in layer.named_parameters()] == ["values", "bias"]


def test_values_are_a_copy_and_the_bias_is_the_dense_layers_own(seed: int) -> None:
    dense = nn.Linear(4, 3)
    sparse = SparseLinear.from_dense(dense, torch.ones(3, 4, dtype=torch.bool), layout="dense")
    with torch.no_grad():
        sparse.values.zero_()
    assert bool((dense.weight != 0).all())
    assert sparse.bias is dense.bias


def test_weight_is_the_masked_dense_weight(seed: int) -> None:
    dense, mask = nn.Linear(13, 7), torch.rand(7, 13) < 0.3
    assert torch.equal(SparseLinear.from_dense(dense, mask).weight, dense.weight * mask)


@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_writing_into_weight_changes_nothing(kind: str, seed: int) -> None:
    sparse = SparseLinear.from_dense(nn.Linear(4, 3), torch.ones(3, 4, dtype=torch.bool), layout=kind)
    before = sparse.values.detach().clone()
    sparse.weight.zero_()
    assert torch.equal(sparse.values, before)


@pytest.mark.parametrize("value", [torch.zeros(7, 13), nn.Parameter(torch.zeros(7, 13)), None])
def test_setting_weight_raises_and_says_what_to_do(value: Any, layer: SparseLinear) -> None:
    with pytest.raises(AttributeError, match=r"weight of a SparseLinear is read-only.*load_state_dict"):
        layer.weight = value


def test_repr_names_geometry_density_and_layout(seed: int) -> None:
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:2, :3] = True
    linear = SparseLinear.from_dense(nn.Linear(6, 4), mask, layout="bsr", block=(2, 3))
    assert repr(linear) == "SparseLinear(in_features=6, out_features=4, bias=True, density=0.25, layout=bsr 2x3)"
    conv = SparseConv1d.from_dense(nn.Conv1d(2, 3, 2), torch.ones(3, 2, 2, dtype=torch.bool))
    assert repr(conv) == "SparseConv1d(2, 3, kernel_size=(2,), stride=(1,), density=1, layout=csr)"


def test_to_dense_gives_a_plain_layer_without_drawing_random_numbers(layer: SparseLinear) -> None:
    before = torch.get_rng_state()
    dense = layer.to_dense()
    assert type(dense) is nn.Linear
    assert torch.equal(dense.weight, layer.weight)
    assert dense.bias is layer.bias
    assert torch.equal(torch.get_rng_state(), before)


def test_reset_parameters_draws_the_numbers_of_the_dense_layer(layer: SparseLinear) -> None:
    torch.manual_seed(5)
    dense = nn.Linear(13, 7)
    torch.manual_seed(5)
    layer.reset_parameters()
    assert torch.equal(layer.weight, dense.weight * layer.mask)
    assert layer.bias is not None
    assert torch.equal(layer.bias, dense.bias)


@pytest.mark.parametrize("name", ["frozen", "training", "dtype"])
def test_flags_and_dtype_survive_both_conversions(name: str, seed: int) -> None:
    dense = nn.Linear(4, 3).double().eval()
    dense.weight.requires_grad_(False)
    sparse = SparseLinear.from_dense(dense, torch.rand(3, 4) < 0.5)
    for module, weight in ((sparse, sparse.values), (sparse.to_dense(), sparse.to_dense().weight)):
        got = {"frozen": weight.requires_grad, "training": module.training, "dtype": weight.dtype}
        assert got[name] == {"frozen": False, "training": False, "dtype": torch.float64}[name]


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_casting_casts_values_and_leaves_the_index_alone(options: Any, dtype: torch.dtype, seed: int) -> None:
    sparse = SparseLinear.from_dense(nn.Linear(13, 7), torch.rand(7, 13) < 0.3, **options)
    index = [tensor.clone() for tensor in sparse.layout.index]
    x = torch.randn(5, 13)
    right = sparse(x)
    y = sparse.type(dtype)(x.to(dtype))  # .type() casts integers too, where .to() does not
    assert sparse.values.dtype == dtype
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(sparse.layout.index, index, strict=True))
    torch.testing.assert_close(y.float(), right, rtol=2e-2, atol=2e-2)


def test_to_empty_keeps_the_index(layer: SparseLinear, poison_empty: None) -> None:
    mask = layer.mask
    assert torch.equal(layer.to_empty(device="cpu").mask, mask)


def test_a_layer_that_went_through_the_meta_device_says_that_its_mask_is_lost(layer: SparseLinear) -> None:
    with pytest.raises(ArgumentError, match="its mask was lost on the meta device"):
        layer.to("meta").to_empty(device="cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_moving_to_the_gpu_takes_the_index_along(options: Any, seed: int) -> None:
    sparse = SparseLinear.from_dense(nn.Linear(13, 7).double(), torch.rand(7, 13) < 0.3, **options)
    x = torch.randn(5, 13, dtype=torch.float64)
    right = sparse(x)
    y = sparse.cuda()(x.cuda())
    assert all(tensor.is_cuda for tensor in (*sparse.parameters(), *sparse.buffers(), *sparse.layout.index))
    torch.testing.assert_close(y.cpu(), right)
    assert torch.equal(sparse.cpu()(x), right)


def test_layout_follows_buffers_that_were_replaced(layer: SparseLinear) -> None:
    layer.perm = layer.perm.clone()
    assert layer.layout.perm is layer.perm  # type: ignore[attr-defined]


def test_functional_call_takes_index_buffers_too(layer: SparseLinear) -> None:
    x = torch.randn(5, 13)
    state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    state = {name: tensor.clone() for name, tensor in state.items()}
    assert torch.equal(torch.func.functional_call(layer, state, (x,)), layer(x))


def test_deepcopy_is_independent_and_computes_the_same(layer: SparseLinear) -> None:
    x = torch.randn(5, 13)
    layer(x).sum().backward()
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    with torch.no_grad():
        twin.values.zero_()
    assert bool((layer.values != 0).all())
    assert twin.layout.index[0] is not layer.layout.index[0]


def test_a_whole_module_survives_torch_save(layer: SparseLinear) -> None:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    x = torch.randn(5, 13)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))


def test_channels_last_weights_and_inputs_give_the_same_result(seed: int) -> None:
    dense = nn.Conv2d(3, 5, 3).double()
    mask = torch.rand(5, 3, 3, 3) < 0.5
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    right = SparseConv2d.from_dense(dense, mask)(x)
    y = SparseConv2d.from_dense(dense.to(memory_format=torch.channels_last), mask)(
        x.to(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(y, right)


def test_gradients_pass_gradcheck(seed: int) -> None:
    sparse = SparseLinear.from_dense(nn.Linear(6, 4).double(), torch.rand(4, 6) < 0.5)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sparse, (x,))


def without_bias_parameter() -> nn.Linear:
    layer = nn.Linear(4, 3)
    del layer.bias
    layer.register_buffer("bias", torch.zeros(3))
    return layer


MASK = torch.ones(3, 4, dtype=torch.bool)
BAD: dict[str, tuple[Any, Any, dict[str, Any], type[Exception], str]] = {
    "other class": (nn.Conv1d(4, 3, 1), MASK, {}, ArgumentTypeError, r"module: expected a torch.nn.Linear, got Conv1d"),
    "mask is a list": (nn.Linear(4, 3), [1], {}, ArgumentTypeError, r"mask: expected a bool tensor, got list"),
    "float mask": (nn.Linear(4, 3), MASK.float(), {}, ArgumentError, r"mask: expected dtype torch.bool"),
    "mask shape": (
        nn.Linear(3, 4),
        MASK,
        {},
        ArgumentError,
        r"mask: expected shape \[4, 3\] of the weight, got \[3, 4\]",
    ),
    "layout": (nn.Linear(4, 3), MASK, {"layout": "coo"}, ArgumentError, r"layout: expected one of 'csr'.*'coo'"),
    "block missing": (nn.Linear(4, 3), MASK, {"layout": "bsr"}, ArgumentError, r"block: expected \(rows, cols\)"),
    "block for csr": (nn.Linear(4, 3), MASK, {"block": (1, 1)}, ArgumentError, r"block: expected None"),
    "complex": (nn.Linear(4, 3, dtype=torch.complex64), MASK, {}, ArgumentError, r"dtype torch.complex64"),
    "bias": (without_bias_parameter(), MASK, {}, ArgumentError, r"its bias is not a Parameter"),
    "meta": (nn.Linear(4, 3, device="meta"), MASK, {}, ArgumentError, r"meta device"),
}


@pytest.mark.parametrize(("module", "mask", "options", "error", "message"), BAD.values(), ids=BAD)
def test_from_dense_refuses_bad_arguments(
    module: Any, mask: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SparseLinear.from_dense(module, mask, **options)


def test_wrong_input_is_one_clear_error(layer: SparseLinear) -> None:
    with pytest.raises(ArgumentError, match=r"x: expected shape \[\*, 13\], got \[5, 12\]"):
        layer(torch.randn(5, 12))


def test_the_package_exports_the_entry_points() -> None:
    assert ls.nn.SparseLinear is SparseLinear
    assert callable(ls.sparsify_)
    assert callable(ls.densify_)
    assert callable(ls.dense_state_dict)

"""The block-sparse convolution over a channels_last weight against plain torch: launched by test_bsr_conv_nhwc.py, see
kernel_cases.py."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, INTERPRETED, SMALL, check
from kernel_cases import patched_interpreter as patched_interpreter  # every case uses this fixture
from kernel_conv_cases import CONVOLUTIONS, MORE, Case, strided

from lth_sparse.formats import BSR
from lth_sparse.kernels import bsr_conv, bsr_conv_backward, bsr_conv_nhwc
from lth_sparse.kernels.launch import CONV_PRODUCTS
from lth_sparse.ops import cuda, cuda_conv
from lth_sparse.ops.library import REFERENCES
from lth_sparse.ops.strides import is_channels_last, is_feature_major


def nhwc(name: str, dtype: torch.dtype = torch.float32, density: float = 0.5, batch: int | None = None) -> Case:
    """A case in channels_last memory throughout."""
    case = Case(name, dtype, density, batch, channels_last=True)
    case.x, case.grad = (strided(tensor, "channels_last") for tensor in (case.x, case.grad))
    return case


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("product", CONV_PRODUCTS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, DTYPES[0]) for name in CONVOLUTIONS | MORE),
        *((name, dtype) for name in list(MORE)[:2] for dtype in DTYPES[1:]),
    ],
)
def test_equals_dense(name: str, dtype: torch.dtype, product: str) -> None:
    case = nhwc(name, dtype)
    check(getattr(case, product)(), case.truth(product))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("product", CONV_PRODUCTS)
@pytest.mark.parametrize("name", ["3x3", "1x1 stride 2, 2 groups"])
@pytest.mark.parametrize(("batch", "density"), [(1, 0.0), (1, 1.0), (0, 0.5)])
def test_nothing_pruned_everything_pruned_no_images(batch: int, density: float, name: str, product: str) -> None:
    case = nhwc(name, torch.float32, density, batch)
    if not batch:  # torch refuses empty images; nothing adds up to zero
        truth = {"conv_forward": case.grad, "conv_input_gradient": case.x}.get(product, torch.zeros_like(case.values))
        check(getattr(case, product)(), truth.cpu().double())
    else:
        check(getattr(case, product)(), case.truth(product))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("product", CONV_PRODUCTS)
@pytest.mark.parametrize("name", ["2 groups, stride 2"])
@pytest.mark.parametrize("kind", ["feature_major", "contiguous", "every_second"])
def test_strides_are_free(kind: str, name: str, product: str) -> None:
    case = Case(name, channels_last=True)
    truth = case.truth(product)
    if kind != "contiguous":
        case.x, case.grad = (strided(tensor, kind) for tensor in (case.x, case.grad))
    check(getattr(case, product)(), truth)


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("kind", ["contiguous", "channels_last", "feature_major"])
@pytest.mark.parametrize("name", ["3x3 stride 2, wide blocks", "3 groups, block rows reach over them"])
def test_results_go_where_they_are_wanted(name: str, kind: str) -> None:
    case = nhwc(name)
    y, dx = torch.full_like(case.grad, torch.nan), torch.full_like(case.x, torch.nan)
    y, dx = (tensor.contiguous() if kind == "contiguous" else strided(tensor, kind) for tensor in (y, dx))
    for product, target in (("conv_forward", y), ("conv_input_gradient", dx)):
        found = getattr(case, product)(into=target)
        check(found, case.truth(product))
        assert found.stride() == target.stride()


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("name", ["3x3, several blocks of a tap", "3x3 stride 2, wide blocks"])
@pytest.mark.parametrize(("block_m", "block_k"), [(32, 16), (64, 128)])
def test_steps_smaller_and_larger_than_a_block(block_m: int, block_k: int, name: str) -> None:
    case = nhwc(name, density=0.7)
    for product in CONV_PRODUCTS:
        check(getattr(case, product)(block_m=block_m, block_n=16, block_k=block_k), case.truth(product))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("block_k", [16, 64])
@pytest.mark.parametrize("name", ["3x3", "2 groups, stride 2"])
def test_offsets_of_64_bits(name: str, block_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bsr_conv, bsr_conv_backward, bsr_conv_nhwc):
        monkeypatch.setattr(module, "wide", lambda tensor: True)
    case = nhwc(name)
    for product in CONV_PRODUCTS:
        check(getattr(case, product)(block_k=block_k), case.truth(product))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("splits", [1, 5])
@pytest.mark.parametrize("name", ["3x3", "3 groups, block rows reach over them"])
def test_gradients_of_weight_and_bias_by_parts_of_the_pixels(name: str, splits: int) -> None:
    """Of five parts one has no pixels and must still write zeros; a row without blocks has a bias."""
    case = nhwc(name)
    weight, bias = case.parameter_gradients(splits, block_k=16)
    check(weight, case.truth("conv_weight_gradient"))
    check(bias, case.grad.double().sum((0, 2, 3)))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_the_gradient_of_the_bias_needs_no_blocks(density: float) -> None:
    case = nhwc("3x3", density=density)
    for splits in (1, 2):
        weight, bias = case.parameter_gradients(splits, block_k=16)
        assert weight.shape == case.layout.values_shape
        check(bias, case.grad.double().sum((0, 2, 3)))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_activation_is_applied_to_the_sum(activation: str) -> None:
    case = nhwc("3x3, several blocks of a tap", torch.float16)
    check(
        case.conv_forward(activation=activation), getattr(torch.nn.functional, activation)(case.truth("conv_forward"))
    )


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("name", ["3x3", "4 groups of whole block rows"])
def test_pruned_entries_inside_a_block_get_no_gradient(name: str) -> None:
    case = nhwc(name)
    mask = case.layout.mask() & (torch.rand(case.layout.shape) < 0.5)
    case.layout = BSR.from_mask(mask, case.block, "zeros", channels_last=True)
    check(case.conv_weight_gradient(), case.truth("conv_weight_gradient"))
    assert torch.count_nonzero(case.conv_weight_gradient(3, block_k=16)) == mask.sum()


@pytest.mark.usefixtures("seed")
def test_channels_of_pruned_blocks_are_not_read() -> None:
    """A NaN in a channel that no block of a row uses does not reach the row; a dense product would spread it."""
    case = nhwc("3x3, several blocks of a tap")
    mask = case.layout.mask()
    mask[:, 16:32] = False
    case.layout, case.weight = BSR.from_mask(mask, case.block, channels_last=True), case.weight * mask
    truth = case.truth("conv_forward")
    case.x[:, 16:32] = torch.nan
    check(case.conv_forward(), truth)


@pytest.mark.usefixtures("seed", "poison_empty")
def test_groups_do_not_read_each_other() -> None:
    """A group's last block column reaches over its channels, and one block row over both groups."""
    case = nhwc("2 groups, stride 2", density=1.0)
    truth = {product: case.truth(product) for product in CONV_PRODUCTS}
    case.x[:, 3:], case.grad[:, 7:] = torch.nan, torch.nan
    check(case.conv_forward()[:, :7], truth["conv_forward"][:, :7])
    check(case.conv_input_gradient()[:, :3], truth["conv_input_gradient"][:, :3])
    found, bias = case.parameter_gradients()
    both = (case.layout.scatter(values)[:7] for values in (found, truth["conv_weight_gradient"].float()))
    ours, right = both
    check(ours, right.double())
    check(bias[:7], case.grad[:, :7].double().sum((0, 2, 3)))


@pytest.mark.usefixtures("seed")
def test_the_same_bits_every_time() -> None:
    case = nhwc("2 groups, stride 2", torch.float16)
    for product in CONV_PRODUCTS:
        assert torch.equal(getattr(case, product)(), getattr(case, product)())
    first, second = (case.parameter_gradients(3, block_k=16) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_a_tile_that_does_not_divide_the_block_is_refused() -> None:
    case = nhwc("3x3")
    for product in CONV_PRODUCTS:
        with pytest.raises(ValueError, match="block_n: expected a divisor of 16, got 32"):
            getattr(case, product)(block_n=32)


def test_more_pixels_than_an_int32_counts_are_refused() -> None:
    case = nhwc("1x1 stride 2, 2 groups")
    case.x, case.grad = torch.zeros(()).expand(2**30, 8, 5, 6), torch.zeros(()).expand(2**30, 24, 3, 3)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 output pixels"):
        bsr_conv_nhwc.input_gradient(
            case.grad,
            case.values,
            *case.index("ccol_indices", "row_indices", "perm"),
            case.x,
            case.conv,
            case.tile("conv_input_gradient"),
        )


#: Every format with every activation; what gradients are wanted takes turns.
OPERATORS = [
    (activation, [True, (first + second) % 2 == 0, True], kind)
    for first, kind in enumerate(("contiguous", "channels_last", "feature_major"))
    for second, activation in enumerate(("none", "relu", "silu"))
]


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize(("activation", "wanted", "kind"), OPERATORS, ids=str)
def test_the_registered_operators_equal_the_reference(
    activation: str, wanted: list[bool], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of entries that are not live count as 0, whatever a caller left in them; results have the format of x."""
    if INTERPRETED:
        monkeypatch.setattr(cuda, "_device", lambda index: SMALL)
    layout = BSR.from_mask(torch.rand(10, 4, 3, 3) < 0.1, (8, 4), "zeros", channels_last=True).to(DEVICE)
    sizes = ((3, 8, 6, 5), (3, 10, 3, 3), (10,), layout.values_shape)
    x, grad, bias, values = (torch.randn(size).to(DEVICE) for size in sizes)
    values = values.transpose(1, 2).contiguous().transpose(1, 2)
    x = x if kind == "contiguous" else strided(x, kind)
    tail = (list(layout.index), list(layout.shape), [2, 2], [1, 1], [1, 1], 2)
    truth = [REFERENCES["conv2d_bsr"](x.double(), values.double(), bias.double(), *tail, activation, True)]
    activated = truth[0].float() if activation == "relu" else None
    right = None if activated is None else activated.double()
    truth += REFERENCES["conv2d_bsr_backward"](grad.double(), x.double(), values.double(), *tail, wanted, right, True)
    found = [cuda_conv._conv2d(x, values, bias, *tail, activation, True)]
    found += cuda_conv._conv2d_backward(grad, x, values, *tail, wanted, activated, True)
    for ours, right in zip(found, truth, strict=True):
        assert ours.dtype == torch.float32
        check(ours.cpu(), right.cpu())
    for activation in (found[0], found[1]):
        if activation.numel():
            assert is_feature_major(activation) == (kind == "feature_major")
            assert is_channels_last(activation) == (kind == "channels_last")

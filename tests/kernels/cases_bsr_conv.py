"""The block-sparse convolution against plain torch: launched by test_bsr_conv.py, see kernel_cases.py."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, INTERPRETED, SMALL, check
from kernel_cases import patched_interpreter as patched_interpreter  # every case uses this fixture
from kernel_conv_cases import CONVOLUTIONS, Case, strided

from lth_sparse.formats import BSR
from lth_sparse.kernels import bsr_conv, bsr_conv_backward, conv_tiles
from lth_sparse.kernels.launch import CONV_PRODUCTS
from lth_sparse.ops import cuda, cuda_conv
from lth_sparse.ops.library import REFERENCES
from lth_sparse.ops.strides import feature_major, is_feature_major


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("product", CONV_PRODUCTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_equals_dense(name: str, dtype: torch.dtype, product: str) -> None:
    case = Case(name, dtype)
    check(getattr(case, product)(), case.truth(product))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("product", CONV_PRODUCTS)
@pytest.mark.parametrize("name", ["3x3", "1x1 stride 2, 2 groups"])
@pytest.mark.parametrize(("batch", "density"), [(1, 0.0), (1, 1.0), (0, 0.5)])
def test_nothing_pruned_everything_pruned_no_images(batch: int, density: float, name: str, product: str) -> None:
    case = Case(name, torch.float32, density, batch)
    if not batch:  # torch refuses empty images; nothing adds up to zero
        truth = {"conv_forward": case.grad, "conv_input_gradient": case.x}.get(product, torch.zeros_like(case.values))
        check(getattr(case, product)(), truth.cpu().double())
    else:
        check(getattr(case, product)(), case.truth(product))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("name", ["3x3", "3 groups, block rows reach over them", "1x1"])
def test_the_gradient_of_the_bias_comes_with_that_of_the_weight(name: str, splits: int) -> None:
    """Of a row without blocks, too: a case has one."""
    case = Case(name)
    weight, bias = case.parameter_gradients(splits, block_k=16)
    check(weight, case.truth("conv_weight_gradient"))
    check(bias, case.grad.double().sum((0, 2, 3)))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
def test_the_activation_is_applied_to_the_sum(activation: str) -> None:
    case = Case("3x3")
    truth = case.truth("conv_forward")
    right = truth.relu() if activation == "relu" else torch.nn.functional.gelu(truth, approximate="tanh")
    check(case.conv_forward(activation=activation), right)


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_without_blocks_is_its_bias(dtype: torch.dtype) -> None:
    case = Case("3x3", dtype)
    y = case.conv_forward()[:, :16]
    assert torch.equal(y, case.bias[:16, None, None].expand(y.shape))
    assert not case.conv_forward(bias=False)[:, :16].any()


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("product", CONV_PRODUCTS)
@pytest.mark.parametrize("name", ["unlike height and width", "2 groups, stride 2", "1x1"])
@pytest.mark.parametrize("kind", ["feature_major", "channels_last", "every_second"])
def test_strides_are_free(kind: str, name: str, product: str) -> None:
    case = Case(name)
    truth = case.truth(product)
    case.x, case.grad = (strided(tensor, kind) for tensor in (case.x, case.grad))
    check(getattr(case, product)(), truth)


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("kind", ["feature_major", "channels_last"])
@pytest.mark.parametrize("name", ["3x3", "1x1 stride 2, 2 groups"])
def test_results_go_where_they_are_wanted(name: str, kind: str) -> None:
    case = Case(name)
    y, dx = (strided(torch.full_like(tensor, torch.nan), kind).to(DEVICE) for tensor in (case.grad, case.x))
    tiles = [case.tile(product) for product in CONV_PRODUCTS]
    index = case.index("crow_indices", "col_indices")
    bias = case.bias.to(DEVICE)
    assert bsr_conv.forward(case.x.to(DEVICE), case.values, bias, *index, y, case.conv, tiles[0]) is y
    index = case.index("ccol_indices", "row_indices", "perm")
    grad = case.grad.to(DEVICE)
    assert bsr_conv_backward.input_gradient(grad, case.values, *index, dx, case.conv, tiles[1]) is dx
    check(y.cpu(), case.truth("conv_forward"))
    check(dx.cpu(), case.truth("conv_input_gradient"))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("name", ["3x3", "3 groups, block rows reach over them"])
def test_a_gradient_of_stride_zero(name: str) -> None:
    case = Case(name)
    case.grad = torch.ones(()).expand(case.grad.shape)
    for product in CONV_PRODUCTS[1:]:
        check(getattr(case, product)(), case.truth(product))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("name", ["3x3", "3 groups, block rows reach over them"])
@pytest.mark.parametrize("splits", [2, 5])
def test_split_pixels_add_up(splits: int, name: str) -> None:
    """Sixty pixels are four steps: one of five parts has none and must still write zeros."""
    case = Case(name)
    check(case.conv_weight_gradient(splits, block_k=16), case.truth("conv_weight_gradient"))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("kind", ["contiguous", "feature_major"])
def test_images_go_in_parts_through_a_bounded_workspace(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("3x3", batch=5)
    truth = case.truth("conv_input_gradient")
    whole = case.conv_input_gradient()
    columns = case.x.shape[1] * case.conv.taps * case.grad.shape[2:].numel()
    for workspace in (1, 8 * columns):  # images by one, and by two with one left
        monkeypatch.setattr(bsr_conv_backward, "WORKSPACE", workspace)
        if kind == "feature_major":
            dx = feature_major(torch.full_like(case.x, torch.nan)).to(DEVICE)
            index = case.index("ccol_indices", "row_indices", "perm")
            tile = case.tile("conv_input_gradient")
            bsr_conv_backward.input_gradient(case.grad.to(DEVICE), case.values, *index, dx, case.conv, tile)
            check(dx.cpu(), truth)
        else:
            found = case.conv_input_gradient()
            check(found, truth)
            # Interpreted, numpy multiplies, and on some processors rounds a row by where it lies in its tile.
            assert INTERPRETED or torch.equal(found, whole)


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("name", ["3x3", "1x1"])
@pytest.mark.parametrize(("block_m", "block_k"), [(16, 16), (32, 128)])
def test_steps_smaller_and_larger_than_a_block(block_m: int, block_k: int, name: str) -> None:
    case = Case(name, density=0.7)
    for product in CONV_PRODUCTS:
        check(getattr(case, product)(block_m=block_m, block_n=16, block_k=block_k), case.truth(product))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("name", ["3x3", "3 groups, block rows reach over them"])
def test_offsets_of_64_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bsr_conv, bsr_conv_backward):
        monkeypatch.setattr(module, "wide", lambda tensor: True)
    case = Case(name)
    for product in CONV_PRODUCTS:
        check(getattr(case, product)(), case.truth(product))


def test_offsets_are_64_bits_wide_where_they_must_be() -> None:
    assert not conv_tiles.wide(torch.empty(1, 1, 1, 1).expand(4, 2**10, 2**10, 2**10))
    assert conv_tiles.wide(torch.empty_strided((2, 1, 1, 1), (2**30, 1, 1, 1), device="meta"))


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("name", ["3x3", "4 groups of whole block rows", "block larger than the weight"])
def test_pruned_entries_inside_a_block_get_no_gradient(name: str) -> None:
    case = Case(name)
    mask = case.layout.mask() & (torch.rand(case.layout.shape) < 0.5)
    case.layout = BSR.from_mask(mask, case.block, "zeros")
    check(case.conv_weight_gradient(), case.truth("conv_weight_gradient"))
    assert torch.count_nonzero(case.conv_weight_gradient()) == mask.sum()
    assert torch.count_nonzero(case.conv_weight_gradient(3, block_k=16)) == mask.sum()


@pytest.mark.usefixtures("seed")
def test_channels_of_pruned_blocks_are_not_read() -> None:
    """A NaN in a channel that no block of a row uses does not reach the row; a dense product would spread it."""
    case = Case("dilation 3, block of whole channels")
    mask = case.layout.mask()
    mask[:, :2] = False
    case.layout, case.weight = BSR.from_mask(mask, case.block), case.weight * mask
    truth = case.truth("conv_forward")
    case.x[:, :2] = torch.nan
    check(case.conv_forward(), truth)


@pytest.mark.usefixtures("seed", "poison_empty")
def test_groups_do_not_read_each_other() -> None:
    """A group's last block column reaches over its channels, and one block row over both groups."""
    case = Case("2 groups, stride 2", density=1.0)
    truth = {product: case.truth(product) for product in CONV_PRODUCTS}
    case.x[:, 3:], case.grad[:, 7:] = torch.nan, torch.nan
    check(case.conv_forward()[:, :7], truth["conv_forward"][:, :7])
    check(case.conv_input_gradient()[:, :3], truth["conv_input_gradient"][:, :3])
    both = case.conv_weight_gradient(), truth["conv_weight_gradient"].float()
    found, right = (case.layout.scatter(values)[:7] for values in both)
    check(found, right.double())


@pytest.mark.usefixtures("seed")
def test_the_same_bits_every_time() -> None:
    case = Case("3x3", torch.float16)
    for product in CONV_PRODUCTS:
        assert torch.equal(getattr(case, product)(), getattr(case, product)())
    assert torch.equal(case.conv_weight_gradient(3, block_k=16), case.conv_weight_gradient(3, block_k=16))


def test_a_tile_that_does_not_divide_the_block_is_refused() -> None:
    case = Case("3x3")
    for product in CONV_PRODUCTS:
        with pytest.raises(ValueError, match="block_n: expected a divisor of 16, got 32"):
            getattr(case, product)(block_n=32)


def test_more_pixels_than_an_int32_counts_are_refused() -> None:
    case = Case("1x1 stride 2, 2 groups")
    case.x, case.grad = torch.zeros(()).expand(2**30, 8, 5, 6), torch.zeros(()).expand(2**30, 24, 3, 3)
    tile = case.tile("conv_forward")
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 output pixels"):
        bsr_conv.forward(
            case.x, case.values, None, *case.index("crow_indices", "col_indices"), case.grad, case.conv, tile
        )


#: Every format with every choice of gradients; dtypes and activations take turns, each with all of either.
OPERATORS = [
    (activation, wanted, DTYPES[(first + second) % len(DTYPES)], kind)
    for first, kind in enumerate(("contiguous", "channels_last", "feature_major"))
    for second, (wanted, activation) in enumerate(
        zip(
            ([True, True, True], [True, False, False], [False, True, False]),
            ("none", "relu", "none") if first % 2 else ("relu", "none", "relu"),
            strict=True,
        )
    )
]


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize(("activation", "wanted", "dtype", "kind"), OPERATORS, ids=str)
def test_the_registered_operators_equal_the_reference(
    activation: str, wanted: list[bool], dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of entries that are not live count as 0, whatever a caller left in them; results have the format of x."""
    if INTERPRETED:
        monkeypatch.setattr(cuda, "_device", lambda index: SMALL)
    layout = BSR.from_mask(torch.rand(10, 4, 3, 3) < 0.1, (8, 16), "zeros").to(DEVICE)
    sizes = ((3, 8, 6, 5), (3, 10, 3, 3), (10,), layout.values_shape)
    x, grad, bias, values = (torch.randn(size).to(DEVICE, dtype) for size in sizes)
    values = values.transpose(1, 2).contiguous().transpose(1, 2)
    x = x if kind == "contiguous" else strided(x, kind)
    tail = (list(layout.index), list(layout.shape), [2, 2], [1, 1], [1, 1], 2)
    truth = [REFERENCES["conv2d_bsr"](x.double(), values.double(), bias.double(), *tail, activation)]
    activated = truth[0].to(dtype) if activation == "relu" else None
    right = None if activated is None else activated.double()
    truth += REFERENCES["conv2d_bsr_backward"](grad.double(), x.double(), values.double(), *tail, wanted, right)
    found = [cuda_conv._conv2d(x, values, bias, *tail, activation)]
    found += cuda_conv._conv2d_backward(grad, x, values, *tail, wanted, activated)
    for ours, right in zip(found, truth, strict=True):
        assert ours.dtype == dtype
        check(ours.cpu(), right.cpu())
    for result in (found[0], found[1]):
        if result.numel():
            assert is_feature_major(result) == (kind == "feature_major")
            assert kind == "feature_major" or result.is_contiguous()

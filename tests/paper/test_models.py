"""The networks: sizes as in the paper's table, Gaussian Glorot weights, zero biases."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.paper import MODELS, DataSet, build_model
from lth_sparse.paper.models import VGG, Block

COLOUR, GREY = (3, 32, 32), (1, 28, 28)
MEAN = " mean flatten fc10"


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if name.endswith(".weight") and p.dim() > 1}


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("lenet", GREY, 266_200),
        ("conv2", COLOUR, 4_300_992),
        ("conv4", COLOUR, 2_425_024),
        ("conv6", COLOUR, 2_261_184),
        ("vgg19", COLOUR, 20_018_880 + 5_120),
        ("vgg19-quarter", COLOUR, 1_251_504 + 1_280),
        ("resnet20", COLOUR, 270_896),
        ("resnet18", COLOUR, 11_164_352),
    ],
)
def test_weights_are_as_many_as_the_papers(name: str, shape: tuple[int, int, int], count: int) -> None:
    assert sum(w.numel() for w in weights(build_model(name, shape)).values()) == count


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("lenet", "flatten fc300 relu fc100 relu fc10"),
        ("conv2", "conv64 relu conv64 relu pool flatten fc256 relu fc256 relu fc10"),
        ("conv4", "conv64 relu conv64 relu pool conv128 relu conv128 relu pool flatten fc256 relu fc256 relu fc10"),
        (
            "conv6",
            "conv64 relu conv64 relu pool conv128 relu conv128 relu pool conv256 relu conv256 relu pool "
            "flatten fc256 relu fc256 relu fc10",
        ),
        (
            "vgg19",
            "conv64 bn relu conv64 bn relu pool conv128 bn relu conv128 bn relu pool "
            + "conv256 bn relu " * 4
            + "pool "
            + "conv512 bn relu " * 4
            + "pool "
            + "conv512 bn relu " * 4
            + "mean flatten fc10",
        ),
        ("resnet20", "conv16 bn relu " + " ".join(f"block{n}" for n in [16] * 3 + [32] * 3 + [64] * 3) + MEAN),
        ("resnet18", "conv64 bn relu " + " ".join(f"block{n}" for n in (64, 64, 128, 128, 256, 256, 512, 512)) + MEAN),
    ],
)
def test_layers_come_in_the_papers_order(name: str, layers: str) -> None:
    def word(module: nn.Module) -> str:
        if isinstance(module, nn.Conv2d):
            assert (module.kernel_size, module.padding, module.stride) == ((3, 3), (1, 1), (1, 1))
            return f"conv{module.out_channels}"
        if isinstance(module, nn.Linear):
            return f"fc{module.out_features}"
        if isinstance(module, Block):
            return f"block{module.conv2.out_channels}"
        names = {nn.ReLU: "relu", nn.MaxPool2d: "pool", nn.Flatten: "flatten", nn.BatchNorm2d: "bn"}
        return {**names, nn.AdaptiveAvgPool2d: "mean"}[type(module)]

    assert " ".join(word(module) for module in build_model(name, COLOUR)) == layers


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_gaussian_glorot_and_biases_zero(name: str) -> None:
    model = build_model(name, COLOUR)
    for key, w in weights(model).items():
        area = math.prod(w.shape[2:])
        sigma = math.sqrt(2 / ((w.shape[0] + w.shape[1]) * area))
        z = w.detach().double().flatten() / sigma
        n = z.numel()
        # Five standard errors of the mean, the variance and the fourth moment (3, where a uniform law has 1.8).
        assert abs(z.mean()) < 5 / math.sqrt(n), key
        assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / n), key
        assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n), key
        assert z.abs().max() > 2.4, key
    assert all(not p.any() for key, p in model.named_parameters() if key.endswith(".bias"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 16, 16), (3, 32, 32), (2, 9, 13)])
def test_any_image_size_gives_logits(name: str, shape: tuple[int, int, int]) -> None:
    if name in VGG and min(shape[1:]) < 16:
        pytest.skip("four poolings")
    assert build_model(name, shape, classes=7)(torch.randn(2, *shape)).shape == (2, 7)


def test_shape_and_classes_come_from_the_data_set(tiny: DataSet) -> None:
    assert build_model("conv2", tiny)(tiny.val.x).shape == (40, 10)


def test_same_seed_same_weights() -> None:
    a, b, c = (build_model("lenet", GREY, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["fc1.weight"], c["fc1.weight"])


def test_a_seeded_model_leaves_the_global_generator_alone(seed: int) -> None:
    before = torch.get_rng_state()
    build_model("conv2", (1, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_global_generator_draws(seed: int) -> None:
    a = build_model("lenet", GREY, seed=None).fc1.weight
    b = build_model("lenet", GREY, seed=None).fc1.weight
    torch.manual_seed(seed)
    c = build_model("lenet", GREY, seed=None).fc1.weight
    assert torch.equal(a, c)
    assert not torch.equal(a, b)


def test_reset_parameters_draws_every_weight_anew_and_clears_the_biases(seed: int) -> None:
    model = build_model("conv2", (1, 8, 8))
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    model.reset_parameters()
    for key, p in model.state_dict().items():
        if key.endswith(".bias"):
            assert not p.any(), key
        else:
            assert (p != before[key]).all(), key


def test_reset_parameters_repeats_itself_with_the_same_generator() -> None:
    model = build_model("lenet", GREY)
    model.reset_parameters(torch.Generator().manual_seed(9))
    expected = model.fc2.weight.clone()
    model.reset_parameters()
    assert not torch.equal(model.fc2.weight, expected)
    model.reset_parameters(torch.Generator().manual_seed(9))
    assert torch.equal(model.fc2.weight, expected)


def test_reset_parameters_refuses_a_layer_it_does_not_know() -> None:
    model = build_model("lenet", GREY)
    model.fc2 = nn.Bilinear(3, 3, 3)
    with pytest.raises(ArgumentError, match=r"model\.fc2: expected a dense Linear or Conv2d to reset, got Bilinear"):
        model.reset_parameters()


def test_a_block_halves_the_image_exactly_where_the_channels_double() -> None:
    model = build_model("resnet20", COLOUR)
    shapes = [tuple(model[: 4 + i](torch.randn(1, *COLOUR)).shape[1:]) for i in range(9)]
    assert shapes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3
    changing = [name for name, block in model.named_children() if isinstance(block, Block) and block.shortcut]
    assert changing == ["block4", "block7"]


def test_a_block_adds_its_input_to_what_its_convolutions_make(seed: int) -> None:
    block = Block(4, 4, 1).eval()
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        block.conv2.weight.zero_()
        assert torch.allclose(block(x), x.relu())


def test_reset_parameters_forgets_the_statistics_of_batch_normalisation(seed: int) -> None:
    model = build_model("resnet20", COLOUR)
    model(torch.randn(2, *COLOUR))
    model.reset_parameters()
    fresh = build_model("resnet20", COLOUR).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in model.state_dict().items() if "bn" in key)


def test_dropout_stands_behind_each_hidden_fully_connected_layer() -> None:
    model = build_model("conv4", COLOUR, dropout=0.5)
    names = [name for name, module in model.named_children() if isinstance(module, nn.Dropout)]
    assert names == ["fc1_dropout", "fc2_dropout"]
    assert list(dict(model.named_parameters())) == list(dict(build_model("conv4", COLOUR).named_parameters()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("vgg", GREY), ArgumentError, "name: expected one of lenet, .*, vgg19, .* got 'vgg'"),
        ((None, GREY), ArgumentError, "name: expected one of"),
        (("conv6", (3, 7, 32)), ArgumentError, "data: expected images of at least 8x8 pixels for conv6"),
        (("lenet", (1, 28)), ArgumentTypeError, "data: expected a DataSet or"),
        (("lenet", (1, 28, 28.0)), ArgumentTypeError, "data: expected a DataSet or"),
        (("lenet", "28"), ArgumentTypeError, "data: expected a DataSet or"),
        (("lenet", (1, 0, 28)), ArgumentError, "data: expected positive"),
        (("lenet", GREY, "x"), ArgumentTypeError, "seed: expected an int"),
        (("lenet", GREY, -1), ArgumentError, "seed: expected at least 0"),
    ],
)
def test_bad_arguments_are_named(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_model(*arguments)


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"classes": 0}, ArgumentError),
        ({"classes": 2.0}, ArgumentTypeError),
        ({"dropout": 1.0}, ArgumentError),
        ({"dropout": -0.1}, ArgumentError),
        ({"dropout": float("nan")}, ArgumentError),
        ({"dropout": "half"}, ArgumentTypeError),
    ],
)
def test_bad_keywords_are_named(keywords: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(keywords))):
        build_model("lenet", GREY, **keywords)


@pytest.mark.parametrize("name", ["vgg19", "resnet18"])
def test_a_network_without_a_place_for_dropout_takes_none(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"dropout: expected 0 for {name}"):
        build_model(name, COLOUR, dropout=0.5)

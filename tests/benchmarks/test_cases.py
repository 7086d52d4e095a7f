"""The registry: every case builds, masks keep exactly what they say, and networks' layers are those of the networks."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import nn

from lth_sparse.benchmarks.cases import DENSITIES, Case, registry, select
from lth_sparse.errors import ArgumentError
from lth_sparse.paper import build_model

CASES = registry()
# What benchmarks of earlier versions were called, so that their results stay comparable.
OLD_NAMES = (
    "linear-1024 lenet-fc1 conv-128 lenet-fc2 linear-4096x1024 ffn-768x3072 linear-4096-b16 linear-4096-b1 conv-64 "
    "conv-256 conv-512 conv-1x1 conv-stride2"
)


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_a_case_builds_and_counts_its_pixels(case: Case) -> None:
    with torch.device("meta"):
        module = case.module()
        y = module(case.input())
    assert tuple(module.weight.shape) == case.weight
    assert y.shape[0] == case.batch
    assert y.numel() == case.pixels * case.weight[0]


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_a_mask_has_exactly_the_density(case: Case) -> None:
    mask = case.mask(0.1)
    assert mask.shape == case.weight
    assert int(mask.sum()) == round(0.1 * case.numel)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("block", [(4, 1), (16, 16)])
@pytest.mark.parametrize("name", ["lenet-fc1", "conv-1x1", "conv-64"])
def test_a_mask_of_blocks_keeps_exactly_its_share_of_whole_blocks(
    name: str, block: tuple[int, int], density: float
) -> None:
    from lth_sparse.formats import BSR

    case = CASES[name]
    rows = case.weight[0]
    layout = BSR.from_mask(case.mask(density, block), block)  # refuses a mask that is no union of blocks
    blocks = math.ceil(rows / block[0]) * math.ceil(case.numel // rows / block[1])
    assert layout.nblocks == round(density * blocks)


@pytest.mark.parametrize("name", ["lenet", "conv6", "vgg19", "resnet18"])
def test_the_layers_of_a_network_are_those_of_its_model(name: str) -> None:
    def key(module: nn.Module, side: int) -> tuple[object, ...]:
        conv = isinstance(module, nn.Conv2d)
        return (tuple(module.weight.shape), module.stride[0] if conv else 1, side if conv else 0)

    model = build_model(name, (1, 28, 28) if name == "lenet" else (3, 32, 32))
    found: Counter[tuple[object, ...]] = Counter()
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(lambda m, x, y: found.update([key(m, x[0].shape[-1])]))
    model.eval()(torch.randn(1, 1 if name == "lenet" else 3, *((28, 28) if name == "lenet" else (32, 32))))
    listed = {(case.weight, case.stride, case.image[0]): case.count for case in select(name)}
    assert listed == dict(found)


@pytest.mark.parametrize(
    ("name", "weights"), [("resnet50", 25_502_912), ("bert", 84_934_656), ("vit", 84_934_656 + 589_824 + 768_000)]
)
def test_the_layers_of_a_network_have_all_its_weights(name: str, weights: int) -> None:
    assert sum(case.numel * case.count for case in select(name)) == weights


@pytest.mark.parametrize("name", ["lenet", "conv6", "vgg19", "resnet18", "resnet50", "bert", "vit"])
def test_each_distinct_shape_of_a_network_comes_once(name: str) -> None:
    shapes = [(case.weight, case.batch, case.image, case.stride) for case in select(name)]
    assert len(set(shapes)) == len(shapes)


def test_old_names_are_still_there() -> None:
    assert set(OLD_NAMES.split()) <= set(CASES)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("lenet-fc2,lenet-fc1", ["lenet-fc1", "lenet-fc2"]),
        ("lenet-fc*", ["lenet-fc1", "lenet-fc2"]),
        ("lenet", ["lenet-fc1", "lenet-fc2", "lenet-output"]),
        (["bert-ffn-*", "bert"], ["bert-attention", "bert-ffn-up", "bert-ffn-down"]),
        ("all", list(CASES)),
    ],
)
def test_cases_are_selected_by_name_glob_and_tag(words: str | list[str], names: list[str]) -> None:
    assert [case.name for case in select(words)] == names


def test_an_unknown_word_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"cases: expected names .* or tags \(all, bert, .*got 'nope', 'x\*'"):
        select("lenet,nope,x*")


def test_operations_are_counted_for_live_weights_pixels_and_products() -> None:
    case = CASES["conv-stride2"]  # 128 x 64 x 3 x 3 on 16 x 16 with stride 2, batch 32
    assert case.flops(1000, "forward") == 2 * 1000 * 32 * 8 * 8
    assert case.flops(1000, "step") == 3 * case.flops(1000, "forward")
    assert case.least_bytes(1000, "forward") == 4 * 32 * (64 * 16 * 16 + 128 * 8 * 8) + 6 * 1000

"""Whole networks in miniature: masks, training steps, the search with masked dense layers, rows and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lth_sparse as ls
from lth_sparse.benchmarks import end_to_end
from lth_sparse.benchmarks.chains import CHAINS
from lth_sparse.benchmarks.end_to_end import COLUMNS, Run, Settings
from lth_sparse.benchmarks.machine import Rates
from lth_sparse.benchmarks.masked import Masked, mask_
from lth_sparse.benchmarks.search import MaskedSearch, multiply_adds, time_levels
from lth_sparse.benchmarks.training import FEATURE_MAJOR, MASKED, NETWORKS, OURS, TrainingStep, random_masks
from lth_sparse.errors import ArgumentError
from lth_sparse.paper import PRESETS

LENET = NETWORKS["lenet"]


@pytest.fixture(scope="module")
def run() -> Run:
    """A step and a search of LeNet, each as short as can be."""
    settings = Settings(("lenet",), (0.5, 0.1), levels=2, iterations=2, seconds=0.001, rounds=1)
    work = Run(settings, rates={1: Rates(1e11, 1e10)})
    pieces: list[str] = []
    assert len(list(work.measure(pieces.append))) == len(work.costs()) == len(pieces) == 4
    return work


@pytest.mark.parametrize("name", NETWORKS)
def test_masks_spare_the_first_convolution_and_the_last_linear_layer(name: str) -> None:
    model = NETWORKS[name].model()
    layers = {f"{key}.weight": m for key, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    masks = random_masks(model, 0.1)
    spared = {"output.weight"} if name == "lenet" else {"conv1.weight", "output.weight"}
    assert set(layers) - set(masks) == spared
    assert all(int(mask.sum()) == round(0.1 * mask.numel()) for mask in masks.values())


@pytest.mark.parametrize("name", ["lenet", "conv6"])
def test_the_papers_networks_are_trained_as_its_presets_say(name: str) -> None:
    network, preset = NETWORKS[name], PRESETS[name]
    optimizer = network.optimizer(network.model().parameters())
    assert (network.batch, network.solver, dict(network.rates)) == (preset.batch, preset.optimizer, preset.rates)
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == preset.lr


@pytest.mark.parametrize("name", ["resnet18", "vgg19"])
def test_the_networks_with_batch_normalisation_are_trained_by_momentum(name: str) -> None:
    optimizer = NETWORKS[name].optimizer([torch.zeros(1, requires_grad=True)])
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["momentum"], optimizer.defaults["weight_decay"]) == (0.9, 1e-4)


@pytest.mark.parametrize("layer", [nn.Linear(7, 5), nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2)])
def test_a_masked_layer_computes_with_the_masked_weight_and_masks_its_gradient(layer: Any, seed: int) -> None:
    mask = torch.rand(layer.weight.shape) < 0.5
    x = torch.randn(3, 7) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 8, 8)
    masked = Masked(layer, mask)
    y = masked(x)
    y.square().sum().backward()
    assert not layer.weight.grad[~mask].any()
    assert layer.weight.grad[mask].all()
    with torch.no_grad():
        layer.weight[~mask] = 0
        assert torch.equal(layer(x), y)


def test_masked_layers_and_ours_compute_the_same_network(seed: int) -> None:
    model = NETWORKS["resnet18"].model().eval()
    masks = random_masks(model, 0.2)
    x = torch.randn(2, 3, 32, 32)
    masked = mask_(NETWORKS["resnet18"].model(), masks).eval()
    ls.sparsify_(model, masks)
    with torch.no_grad():
        torch.testing.assert_close(model(x), masked(x), rtol=1e-3, atol=1e-4)


def test_a_training_step_trains_and_counts_its_phases_and_bytes() -> None:
    model = LENET.model()
    ls.sparsify_(model, random_masks(model, 0.1))
    step = TrainingStep(LENET, model)
    before = [parameter.clone() for parameter in model.parameters()]
    step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert len(step.phases) == 1
    found, size = step.bytes(), sum(parameter.nbytes for parameter in model.parameters())
    assert found["parameter_bytes"] == found["gradient_bytes"] == size
    assert found["optimizer_bytes"] == 2 * size + 4 * len(before)  # two moments, and a counter for each parameter
    assert found["index_bytes"] > 0
    assert found["saved_bytes"] > 60 * 784 * 4  # the images at least


def test_channels_last_reaches_weights_and_images() -> None:
    network = NETWORKS["conv6"]
    step = TrainingStep(network, network.model(), torch.channels_last)
    assert step.x.is_contiguous(memory_format=torch.channels_last)
    assert step.model.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_both_searches_prune_the_same_shares() -> None:
    levels = list(time_levels(LENET, 1, 3, 1))
    assert [[one.candidate for one in level] for level in levels] == [[OURS, MASKED]] * 4
    assert all(ours.density == masked.density for ours, masked in levels)
    assert levels[3][0].density == pytest.approx(0.513, abs=1e-3)
    assert all(one.seconds >= one.train_seconds > 0 for level in levels for one in level)


def test_the_masked_search_prunes_the_smallest_and_rewinds() -> None:
    search = MaskedSearch(LENET)
    x, y = LENET.data()
    search.level(x, y, 2)
    trained = search.model.fc1.module.weight.detach().clone()
    search.level(x, y, 0)
    mask = search.masks["fc1.weight"]
    assert int(mask.sum()) == round(0.8 * mask.numel())
    assert trained.abs()[mask].min() >= trained.abs()[~mask].max()
    assert torch.equal(search.model.fc1.module.weight, LENET.model().fc1.weight)
    assert torch.equal(search.model.fc1.mask, mask.float())


def test_rows_have_the_columns_of_the_csv(run: Run) -> None:
    rows = run.rows()
    assert all(tuple(row) == COLUMNS for row in rows)
    steps = [(row["candidate"], row["density"]) for row in rows if row["part"] == "step"]
    ours = [(candidate, density) for density in ("0.5", "0.1") for candidate in (OURS, FEATURE_MAJOR)]
    assert steps == [("dense", "1"), (MASKED, "0.1"), *ours]
    searches = [(row["candidate"], row["level"]) for row in rows if row["part"] == "search"]
    assert searches == [(candidate, str(level)) for level in range(3) for candidate in (OURS, MASKED)]
    assert {row["weights_kept"] for row in rows if row["density"] == "0.5"} == {"133600"}  # and 1,000 of the output


def test_the_floor_is_the_work_left_of_the_dense_training(run: Run) -> None:
    dense = next(one for one in run.levels if (one.candidate, one.level) == (OURS, 0))
    assert [run.floor(one) for one in run.levels] == [one.work * dense.train_seconds for one in run.levels]
    # Without convolutions every weight is used once for an image.
    assert [one.work for one in run.levels] == pytest.approx([one.density for one in run.levels])


def test_a_convolution_works_once_for_each_pixel() -> None:
    network = NETWORKS["conv6"]
    x, _ = network.data()
    found = multiply_adds(network.model(), x[:2])
    assert found["conv1.weight"] == 2 * 64 * 3 * 9 * 32 * 32
    assert found["conv6.weight"] == 2 * 256 * 256 * 9 * 8 * 8
    assert found["output.weight"] == 2 * 256 * 10


def test_tables_end_with_the_whole_search(run: Run) -> None:
    steps, search = run.grids()
    assert len(steps.rows) == 6
    assert [row[0] for row in search.rows] == ["0", "1", "2", "all"]


def test_plots_are_drawn(run: Run, tmp_path: Path) -> None:
    paths = end_to_end.draw(run.rows(), tmp_path)
    assert [path.name for path in paths] == ["steps.svg", "search.svg"]
    assert "floor" in paths[1].read_text()


def test_a_search_is_for_networks_with_prune_rates() -> None:
    assert Settings(("vgg19", "lenet")).pieces() == [(1, "vgg19", "step"), (1, "lenet", "step"), (1, "lenet", "search")]


def test_chains_come_once_for_each_number_of_threads_and_have_no_network() -> None:
    pieces = Settings(("lenet",), threads=(1, 2), parts=("chain", "step")).pieces()
    chains = [(name, "chain") for name in CHAINS]
    assert pieces == [(threads, *piece) for threads in (1, 2) for piece in (("lenet", "step"), *chains)]


def test_quick_keeps_what_was_asked_for() -> None:
    assert Settings(levels=7).quick().levels == 7
    assert Settings().quick().depth == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"networks": ("alexnet",)}, "networks: expected some of lenet, conv6, resnet18, vgg19, got alexnet"),
        ({"networks": ()}, "networks: expected some of"),
        ({"parts": ("steps",)}, "parts: expected some of step, search, chain, got steps"),
        ({"densities": (1.0,)}, "densities: expected numbers between 0 and 1"),
        ({"threads": ()}, "threads: expected numbers from 1"),
        ({"levels": 0}, "levels: expected at least 1"),
        ({"iterations": 0}, "iterations: expected at least 1"),
    ],
)
def test_settings_refuse_what_cannot_be_measured(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Settings(**changed)

"""Which searches a network's claims need: at the paper's budget, level by level, and enough for every claim."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lth_sparse.cli.studies import NETWORKS, main_preset, studies_of
from lth_sparse.engine import EarlyStop, LevelRecord, TicketResult
from lth_sparse.paper import PRESETS, DataSet, Split
from lth_sparse.report.claims import claims_of, examine


def images(network: str) -> DataSet:
    shape = (1, 28, 28) if network == "lenet" else (3, 32, 32)
    none = Split(torch.zeros(0, *shape), torch.zeros(0, dtype=torch.int64))
    return DataSet("none", none, none, none, 10, shape, (0.0,), (1.0,))


def test_the_main_study_of_each_network_is_the_one_that_finds_tickets() -> None:
    names = [main_preset(network, PRESETS.__getitem__).name for network in NETWORKS]
    assert names == ["lenet", "conv2", "conv4", "conv6", "resnet-warmup", "vgg-warmup"]


def test_lenet_is_compared_with_one_shots_other_rates_and_no_resetting() -> None:
    main, *others = studies_of("lenet", PRESETS.__getitem__, images("lenet"))
    assert (main.controls, main.control_levels) == (("reinit", "random"), (7, 15, 20))
    assert [study.name for study in others] == ["one-shot 7", "one-shot 15", "continue", "rate 0.4"]
    assert others[0].keywords["one_shot"] is True
    assert others[0].preset.rates == pytest.approx({"fc*": 1 - 0.8**7, "output*": 1 - 0.9**7})
    assert others[2].keywords["rewind"] == "continue"
    faster, left = others[3], main.densities(images("lenet"))[15]
    assert faster.preset.rates == {"fc*": 0.4, "output*": 0.2}
    assert faster.densities(images("lenet"))[-1] >= left > 0.6 * faster.densities(images("lenet"))[-1]


@pytest.mark.parametrize("network", ["conv2", "conv4", "conv6"])
def test_conv_nets_are_compared_with_themselves_with_dropout(network: str) -> None:
    main, dropout = studies_of(network, PRESETS.__getitem__, images(network))
    assert (main.preset, dropout.preset) == (PRESETS[network], PRESETS[f"{network}-dropout"])
    assert (main.controls, main.control_levels) == (("reinit",), (20,))


def test_resnet_and_vgg_are_compared_at_other_learning_rates_at_the_papers_levels() -> None:
    resnet = studies_of("resnet", PRESETS.__getitem__, images("resnet"))
    assert [(s.name, s.preset.name, s.control_levels) for s in resnet] == [
        ("iterative", "resnet-warmup", (10,)),
        ("lr 0.1", "resnet", (6,)),
        ("lr 0.01", "resnet-low", (6,)),
    ]
    vgg = studies_of("vgg", PRESETS.__getitem__, images("vgg"))
    assert [(s.name, s.preset.name, s.control_levels, s.keywords["scope"]) for s in vgg] == [
        ("iterative", "vgg-warmup", (19,), "global"),
        ("lr 0.1", "vgg", (12,), "global"),
        ("lr 0.01", "vgg-low", (12,), "global"),
        ("layer-wise", "vgg-layerwise", (), "layer"),
    ]


@pytest.mark.parametrize("network", NETWORKS)
def test_every_claim_finds_what_it_compares_in_the_studies(network: str) -> None:
    """Networks that are all alike: no claim may be left without figures because a study or a control is missing."""
    data, studies = images(network), studies_of(network, PRESETS.__getitem__, images(network))

    def record(k: int, density: float, control: str | None = None) -> LevelRecord:
        row = {"step": 100, "val_loss": 0.5, "test_acc": 0.9}
        return LevelRecord(k, density, 1.0, {"test_acc": 0.9}, EarlyStop(100, row), [row], {}, [], control)

    densities = {study.name: study.densities(data) for study in studies}
    results = {}
    for study in studies:
        levels = [record(k, density) for k, density in enumerate(densities[study.name])]
        controls = {(k, kind): record(k, 0.1, kind) for k in study.control_levels for kind in study.controls}
        results[study.name] = {seed: TicketResult([], levels, controls, {}) for seed in range(2)}
    claims = claims_of(network, densities, 10_000, 0.9)
    assert [examine(claim, results).seeds for claim in claims] == [2] * len(claims)
    for figure in {claim.figure for claim in claims if claim.figure}:  # and no study that its figure does not run
        run = {study.name: results[study.name] for study in studies if figure in study.figures}
        assert all(examine(claim, run).seeds == 2 for claim in claims if claim.figure == figure)
    assert {claim.figure for claim in claims if claim.figure} == {f for study in studies for f in study.figures}


def test_a_studys_keywords_are_those_of_a_search() -> None:
    (main, *_) = studies_of("conv2", PRESETS.__getitem__, images("conv2"))
    short = dataclasses.replace(main, preset=dataclasses.replace(main.preset, levels=3), control_levels=(3,))
    assert short.keywords == {
        **{"rates": PRESETS["conv2"].rates, "scope": "layer", "rewind": "init", "levels": 3},
        **{"controls": ("reinit",), "control_levels": (3,)},
    }

"""`lth-sparse reproduce` with a budget of seconds: every study trained, resumed, judged and stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lth_sparse.cli.reproduce import Options, preset_for
from lth_sparse.engine import Ticket

Run = Callable[..., Any]
TINY = ("reproduce", "lenet", "--iterations", 4, "--levels", 2, "--threads", 1)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduce") / "run"


def test_all_studies_are_trained_and_every_claim_is_judged(run: Run, done: Path) -> None:
    outcome = run(*TINY, "--seeds", 2, "--output", done)
    assert outcome.code in (0, 1), outcome.err
    assert "a scaled-down study" in outcome.out
    facts = json.loads((done / "claims.json").read_text())
    assert facts["seeds"] == 2
    assert len(facts["claims"]) == 12  # no level of the printed ladder is reached
    assert {claim["outcome"] for claim in facts["claims"]} <= {"holds", "contradicted", "not shown"}
    assert (outcome.code == 1) == any(claim["outcome"] == "contradicted" for claim in facts["claims"])
    assert sorted(path.name for path in done.iterdir() if path.is_dir()) == [
        *("continue", "iterative", "one-shot_2", "rate_0.4")
    ]
    page = (done / "report.html").read_text(encoding="utf-8")
    assert "<h2>Claims of the paper</h2>" in page
    assert "one-shot pruning" in page
    assert (done / "iterative" / "seed_1" / "control_02_random.safetensors").exists()


def test_a_second_run_trains_nothing(run: Run, done: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*.safetensors")}
    outcome = run(*TINY, "--seeds", 2, "--output", done)
    assert " trainings in " not in outcome.out
    assert before == {path: path.stat().st_mtime_ns for path in done.rglob("*.safetensors")}


def test_one_figure_alone(run: Run, done: Path) -> None:
    run(*TINY, "--seeds", 2, "--output", done, "--figure", 9)
    facts = json.loads((done / "claims.json").read_text())
    assert {claim["figure"] for claim in facts["claims"]} == {9}
    outcome = run(*TINY, "--seeds", 2, "--output", done, "--figure", 5)
    assert outcome.code == 1
    assert "figure: expected one of 4, 9 for lenet, got 5" in outcome.err


def test_only_what_a_figure_needs_is_trained(run: Run, tmp_path: Path) -> None:
    words = ("reproduce", "conv2", "--iterations", 1, "--levels", 1, "--seeds", 1, "--threads", 1)
    outcome = run(*words, "--figure", 5, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == ["iterative"]
    outcome = run(*words, "--figure", 8, "--output", tmp_path / "never")
    assert "figure: expected one of 5, 6 for conv2, got 8" in outcome.err
    assert not (tmp_path / "never").exists()


def test_another_budget_in_the_same_directory_is_refused(run: Run, done: Path) -> None:
    outcome = run("reproduce", "lenet", "--iterations", 5, "--levels", 2, "--output", done)
    assert outcome.code == 1
    assert "holds a run with iterations 4, but 5 was asked for" in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("resnet50",), "network: expected one of lenet, conv2, conv4, conv6, resnet, vgg"),
        (("lenet", "--budget", "huge"), "budget: expected one of quick, full"),
    ],
)
def test_unknown_words_are_refused(run: Run, words: Any, message: str, tmp_path: Path) -> None:
    outcome = run("reproduce", *words, "--output", tmp_path / "never")
    assert outcome.code == 1
    assert message in outcome.err
    assert not (tmp_path / "never").exists()


def test_a_convolutional_network(run: Run, tmp_path: Path) -> None:
    words = ("--iterations", 1, "--levels", 1, "--seeds", 1, "--threads", 1)
    outcome = run("reproduce", "conv2", *words, "--output", tmp_path)
    assert outcome.code == 0, outcome.err
    facts = json.loads((tmp_path / "claims.json").read_text())
    assert [claim["outcome"] for claim in facts["claims"]] == ["not shown"] * 6
    assert [claim["figure"] for claim in facts["claims"]] == [5, 5, 5, 5, 6, 6]
    assert (tmp_path / "dropout" / "seed_0" / "level_01.safetensors").exists()


def test_resnet_at_three_learning_rates(run: Run, tmp_path: Path) -> None:
    words = ("--iterations", 1, "--levels", 1, "--seeds", 1, "--threads", 1, "--output", tmp_path)
    outcome = run("reproduce", "resnet", *words)
    assert outcome.code == 0, outcome.err
    assert "  lr 0.01: ResNet-20, lr 0.01, 3 trainings of 1 iterations" in outcome.out
    facts = json.loads((tmp_path / "claims.json").read_text())
    assert [(claim["outcome"], claim["seeds"]) for claim in facts["claims"]] == [("not shown", 1)] * 8
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["iterative", "lr_0.01", "lr_0.1"]
    starts = [Ticket.load(path).initial for path in sorted(tmp_path.rglob("level_01.safetensors"))]
    assert len(starts) == 3
    densities = {Ticket.load(path).density for path in tmp_path.rglob("level_01.safetensors")}
    assert densities == {217_126 / 270_608}  # 267,408 x 0.8 of the 3x3 convolutions, and 3,200 that stay
    assert all(start["block4.shortcut.weight"].equal(starts[0]["block4.shortcut.weight"]) for start in starts)
    preset = json.loads((tmp_path / "reproduce.json").read_text())
    assert (preset["name"], preset["lr"], preset["milestones"]) == ("resnet-warmup-quick", 0.03, [1, 1])


def test_vgg_globally_and_layer_by_layer(small_vgg: None, run: Run, tmp_path: Path) -> None:
    budget = ("--iterations", 2, "--levels", 3, "--seeds", 1, "--threads", 1)
    words = ("reproduce", "vgg", *budget, "--output", tmp_path)
    outcome = run(*words)
    assert outcome.code in (0, 1), outcome.err
    assert "Scaled down: VGG-19 with a quarter of its channels, where the paper has all of them." in outcome.out
    facts = json.loads((tmp_path / "claims.json").read_text())
    assert [claim["seeds"] for claim in facts["claims"]] == [1] * 6
    masks = {name: Ticket.load(tmp_path / name / "seed_0" / "level_03.safetensors").masks for name in (
        "iterative", "layer-wise")}  # fmt: skip
    assert all(one["output.weight"].all() for one in masks.values())
    evenly = {round(float(mask.float().mean()), 1) for name, mask in masks["layer-wise"].items() if "conv" in name}
    assert len(evenly) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Options("vgg", "full", data=Path("x")), ("vgg19", "cifar10", 112_480, True, 4, 20)),
        (Options("vgg", "full"), ("vgg19", "digits", 112_480, False, 4, 20)),
        (Options("vgg"), ("vgg19-quarter", "digits", 300, False, 1, 19)),
        (Options("vgg", iterations=30, levels=2), ("vgg19-quarter", "digits", 30, False, 1, 2)),
    ],
)
def test_budget_and_data_decide_what_is_trained(options: Options, expected: tuple[Any, ...]) -> None:
    p = preset_for("vgg-warmup", options)
    assert (p.model, p.dataset, p.iterations, p.flip, p.crop, p.levels) == expected
    assert p.warmup == round(10_000 * p.iterations / 112_480)

"""`lth-sparse find` from the command line to its report, and everything that may go wrong before and during it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lth_sparse.cli import find
from lth_sparse.cli.find import Options, command_line, preset_of
from lth_sparse.cli.presets import scaled_down, title
from lth_sparse.engine import Ticket
from lth_sparse.engine.criteria import CRITERIA
from lth_sparse.engine.lock import DirectoryLock
from lth_sparse.engine.scope import SCOPES
from lth_sparse.errors import ArgumentError
from lth_sparse.paper import PRESETS

Run = Callable[..., Any]


def facts_of(directory: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    return facts


def test_succeeds_and_names_ticket_and_report(finished: tuple[Path, Any]) -> None:
    directory, outcome = finished
    assert (outcome.code, outcome.err) == (0, "")
    assert f"Report: {directory / 'report.html'}" in outcome.out
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("Ticket: ")]
    assert Ticket.load(line.removeprefix("Ticket: ")).level == 1


def test_prints_a_table_for_each_seed_and_the_verdict(finished: tuple[Path, Any]) -> None:
    text = finished[1].out
    for words in ("Seed 0 (1 of 2)", "Seed 1 (2 of 2)", "weights left", "speed-up", "Verdict (mean over 2 seeds"):
        assert words in text


def test_output_that_is_no_terminal_has_no_control_characters(finished: tuple[Path, Any]) -> None:
    assert not any(character < " " and character != "\n" for character in finished[1].out)


def test_each_training_is_one_line_of_a_log(finished: tuple[Path, Any]) -> None:
    lines = [line for line in finished[1].out.splitlines() if line.startswith("[")]
    assert len(lines) == 2 * (2 + 2)
    assert lines[-1].startswith("[8/8] seed 1, level 1 shuffled mask: 80.0% left, test acc. ")


def test_report_agrees_with_the_tickets(finished: tuple[Path, Any]) -> None:
    directory, _ = finished
    trainings = facts_of(directory)["trainings"]
    assert len(trainings) == 8
    for training in trainings:
        stem = f"level_{training['level']:02d}"
        if training["control"]:
            stem = f"control_{training['level']:02d}_{training['control']}"
        ticket = Ticket.load(directory / f"seed_{training['seed']}" / f"{stem}.safetensors")
        assert training["density"] == ticket.density
        assert training["accuracy"] == ticket.metrics["test_acc"]


def test_report_repeats_the_command(finished: tuple[Path, Any]) -> None:
    directory, _ = finished
    assert facts_of(directory)["command"] == (
        f"lth-sparse find lenet --quick --levels 1 --seeds 2 --iterations 6 --output {directory} --threads 1"
    )


def test_page_is_beside_it(finished: tuple[Path, Any]) -> None:
    text = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 3 + 7  # the curves, and a figure for each analysis, two of where the survivors are
    assert "src=" not in text


def test_a_finished_run_is_shown_again_without_training(
    finished: tuple[Path, Any], find_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, outcome = finished
    before = facts_of(directory)["trainings"]
    monkeypatch.setattr("lth_sparse.cli.find.make_train", lambda *_, **__: pytest.fail)
    again = find_tiny("--seeds", 2, "--output", directory)
    assert again.code == 0
    assert again.out.count("found finished") == 8
    assert facts_of(directory)["trainings"] == before
    assert again.out.splitlines()[-1] == outcome.out.splitlines()[-1]


def test_no_controls_trains_none(find_tiny: Run, tmp_path: Path) -> None:
    outcome = find_tiny("--seeds", 1, "--no-controls", "--rate", "0.5", "--output", tmp_path)
    assert outcome.code == 0
    facts = facts_of(tmp_path)
    assert facts["controls"] == []
    assert facts["hyperparameters"]["rates"] == "all layers 0.5, output layer 0.25"
    assert "No control was trained" in outcome.out


def test_the_smallest_candidate_gets_controls_of_its_own(
    find_tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "candidate", lambda *_, **__: 1)
    outcome = find_tiny("--levels", 2, "--seeds", 1, "--output", tmp_path)
    assert outcome.code == 0
    trained = [(control["level"], control["control"]) for control in facts_of(tmp_path)["controls"]]
    assert trained == [(1, "reinit"), (1, "shuffled"), (2, "reinit"), (2, "shuffled")]
    assert "Level 1 is the smallest that is as accurate and as quick as dense" in outcome.out
    lines = [line.split("]")[0] for line in outcome.out.splitlines() if line.startswith("[")]
    assert lines == ["[1/5", "[2/5", "[3/5", "[4/5", "[5/5", "[6/7", "[7/7"]


def test_criterion_scope_granularity_and_freeze_reach_the_search(find_tiny: Run, tmp_path: Path) -> None:
    words = ["--criterion", "snip", "--granularity", "block:2x2", "--freeze", "output", "--freeze", "fc2"]
    outcome = find_tiny("--seeds", 1, "--no-controls", *words, "--output", tmp_path)
    assert outcome.code == 0
    ticket = Ticket.load(tmp_path / "seed_0" / "level_01.safetensors")
    given = ticket.hyperparameters
    assert (given["criterion"], given["scope"], given["granularity"]) == ("snip", "global", "block:2x2")
    assert given["freeze"] == ["output", "fc2"]
    assert ticket.masks["fc1.weight"].float().mean() == pytest.approx(0.8, abs=1e-4)
    assert facts_of(tmp_path)["command"].count("--freeze") == 2
    again = find_tiny("--seeds", 1, "--no-controls", *words, "--output", tmp_path)
    assert (again.code, again.out.count("found finished")) == (0, 2)
    other = find_tiny("--seeds", 1, "--no-controls", "--output", tmp_path)
    assert (other.code, "holds a run with" in other.err) == (1, True)


def test_help_names_every_criterion_and_scope(run: Run) -> None:
    text = " ".join(run("find", "--help").out.split())
    for name in (*CRITERIA, *SCOPES):
        assert re.search(rf"\b{name}\b", text), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resnet50"], "model: expected one of lenet, conv2"),
        (["--dataset", "imagenet"], "dataset: expected"),
        (["--scope", "galaxy"], "scope: expected one of 'layer', 'global', 'erk'"),
        (["--criterion", "luck"], "criterion: expected one of 'magnitude', 'large_final'"),
        (["--granularity", "cube"], "granularity: expected 'weight', 'row'"),
        (["--freeze", "conv*"], "freeze: expected names or globs among fc1.weight"),
        (["--granularity", "filter"], "granularity: expected one that applies to fc1.weight"),
        (["--granularity", "2:4", "--levels", "20"], "levels: expected at most 7 with granularity='2:4'"),
        (["--criterion", "snip", "--rewind", "5it"], "rewind: expected 'init' with criterion='snip'"),
        (["--rewind", "yesterday"], "rewind: expected"),
        (["--layout", "coo"], "layout: expected"),
        (["--rate", "1.5"], "rate: expected"),
        (["--dataset", "mnist"], "mnist"),
        (["--dataset", "digits", "--data", "/"], "directory: expected none"),
        (["conv2", "--data", "/nonexistent"], "/nonexistent"),
    ],
)
def test_a_users_mistake_is_one_line_and_leaves_nothing(run: Run, tmp_path: Path, words: list[str], said: str) -> None:
    output = tmp_path / "run"
    outcome = run("find", *words, "--output", output)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert said in outcome.err
    assert not output.exists()


def test_an_output_that_cannot_be_made_is_one_line(find_tiny: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = find_tiny("--output", tmp_path / "file" / "run")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "cannot make the run directory" in outcome.err


def test_other_settings_in_the_same_directory_are_refused(finished: tuple[Path, Any], run: Run) -> None:
    outcome = run("find", "lenet", "--quick", "--iterations", 7, "--levels", 1, "--output", finished[0])
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "holds a run with iterations 6, but 7 was asked for" in outcome.err


def test_another_number_of_threads_is_said_beside_the_seconds(
    finished: tuple[Path, Any], find_tiny: Run, tmp_path: Path
) -> None:
    directory = copy_of(finished, tmp_path)
    outcome = find_tiny("--seeds", 2, "--output", directory, "--threads", 2)
    assert outcome.code == 0
    assert "begun with 1 threads and goes on with 2" in outcome.out
    assert "begun with 1 threads" in facts_of(directory)["crowded"]


def test_the_plan_is_measured_once_and_kept_with_the_run(
    find_tiny: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--seeds", 1, "--no-controls", "--plan", "--output", tmp_path)
    assert find_tiny(*words).code == 0
    evens = json.loads((tmp_path / "plan.json").read_text())
    assert set(evens) == {"fc1.weight", "fc2.weight", "output.weight"}
    identity = json.loads((tmp_path / "seed_0" / "run.json").read_text())
    assert identity["hyperparameters"]["break_even"] == evens
    monkeypatch.setattr("lth_sparse.cli.directory.plan", lambda *_, **__: pytest.fail("measured again"))
    assert find_tiny(*words).code == 0
    outcome = find_tiny("--seeds", 1, "--no-controls", "--output", tmp_path)
    assert "holds a run with plan True, but 'nothing' was asked for" in outcome.err
    (tmp_path / "plan.json").write_text('{"fc1.weight": 3}')
    outcome = find_tiny(*words)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "plan.json: damaged" in outcome.err


def copy_of(finished: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


@pytest.mark.parametrize("name", ["find.json", "seed_0/run.json", "seed_0/level_01.safetensors"])
def test_a_damaged_file_of_the_run_is_named(
    finished: tuple[Path, Any], find_tiny: Run, tmp_path: Path, name: str
) -> None:
    directory = copy_of(finished, tmp_path)
    (directory / name).write_bytes((directory / name).read_bytes()[:40])
    outcome = find_tiny("--seeds", 2, "--output", directory)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert str(directory / name) in outcome.err


def test_an_interrupt_is_130_and_says_how_to_go_on(
    find_tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(find, "find_ticket", interrupted)
    outcome = find_tiny("--output", tmp_path)
    assert outcome.code == 130
    assert outcome.err == (
        "lth-sparse: stopped; go on with: lth-sparse find lenet --quick --levels 1 --iterations 6 "
        f"--output {tmp_path} --threads 1\n"
    )


@pytest.mark.skipif(os.name == "nt", reason="SIGINT")
def test_control_c_in_the_middle_of_training_leaves_no_traceback(tmp_path: Path) -> None:
    # Heard even where the tests run in the background of a shell, which has what it starts there ignore the signal.
    program = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('lth_sparse.cli', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", program, "find", "--iterations", "1000000", "--threads", "1"]
    with subprocess.Popen(
        [*command, "--output", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while not (tmp_path / "run" / "seed_0" / "start.safetensors").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("\n") == 1
    assert err.startswith("lth-sparse: stopped; go on with: lth-sparse find lenet ")


@pytest.mark.parametrize(
    ("options", "dataset"),
    [
        (Options(), "digits"),
        (Options(data=Path("x")), "mnist"),
        (Options(model="conv2", data=Path("x")), "cifar10"),
        (Options(model="conv2", dataset="mnist", data=Path("x")), "mnist"),
        (Options(model="conv2", quick=True), "digits"),
    ],
)
def test_the_data_set_follows_from_the_options(options: Options, dataset: str) -> None:
    assert preset_of(options).dataset == dataset


def test_options_override_the_preset() -> None:
    preset = preset_of(Options(quick=True, levels=3, iterations=12))
    assert (preset.levels, preset.iterations, preset.batch) == (3, 12, PRESETS["lenet"].batch)


def test_an_unknown_model_lists_the_known() -> None:
    with pytest.raises(ArgumentError, match="lenet, conv2, conv4, conv6"):
        preset_of(Options(model="alexnet"))


def test_resnet_spares_shortcuts_and_output_at_any_rate(run: Run, tmp_path: Path) -> None:
    budget = ("--quick", "--iterations", 1, "--levels", 1, "--seeds", 1, "--threads", 1, "--no-controls")
    outcome = run("find", "resnet-warmup", *budget, "--rate", 0.5, "--output", tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("ResNet-20, lr 0.03, warm-up over 1 iterations on digits: 997 / 300 / 500 images")
    ticket = Ticket.load(tmp_path / "seed_0" / "level_01.safetensors")
    assert ticket.hyperparameters["scope"] == "global"
    assert ticket.density == (267_408 // 2 + 3_200) / 270_608
    whole = {name for name, mask in ticket.masks.items() if mask.all()}
    assert whole >= {"block4.shortcut.weight", "block7.shortcut.weight", "output.weight"}
    given = facts_of(tmp_path)["hyperparameters"]
    assert (given["optimizer"], given["momentum"], given["crop"]) == ("sgd", 0.9, 1)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("conv2-dropout", "Conv-2 with dropout"),
        ("vgg", "VGG-19, lr 0.1"),
        ("vgg-layerwise", "VGG-19, lr 0.1, warm-up over 10,000 iterations, pruned layer by layer"),
    ],
)
def test_a_title_tells_the_presets_of_a_network_apart(model: str, said: str) -> None:
    assert title(PRESETS[model]) == said


def test_a_network_that_is_not_the_papers_is_said() -> None:
    said = ["Scaled down: VGG-19 with a quarter of its channels, where the paper has all of them."]
    assert scaled_down(PRESETS["vgg-low"].quick()) == said
    assert not any(scaled_down(PRESETS[name].quick()) for name in ("lenet", "conv6", "resnet"))
    assert not any(scaled_down(preset) for preset in PRESETS.values())


def test_command_line_quotes_what_a_shell_would_split() -> None:
    options = Options(controls=False, rate=0.3, output=Path("my runs"))
    assert command_line(options) == "lth-sparse find lenet --rate 0.3 --no-controls --output 'my runs'"


def test_more_controls_and_another_initialisation(find_tiny: Run, tmp_path: Path) -> None:
    words = ("--seeds", 1, "--init", "kaiming_normal", "--more-controls", "rescaled, prune_at_0", "--output", tmp_path)
    assert find_tiny(*words).code == 0
    facts = facts_of(tmp_path)
    assert {control["control"] for control in facts["controls"]} == {"reinit", "shuffled", "rescaled", "prune_at_0"}
    assert "--init kaiming_normal" in facts["command"]
    ticket = Ticket.load(tmp_path / "seed_0" / "level_00.safetensors")
    assert float(ticket.initial["fc1.weight"].std()) == pytest.approx((2 / 784) ** 0.5, rel=0.01)
    other = find_tiny("--seeds", 1, "--output", tmp_path)
    assert other.code == 1
    assert "holds a run with init 'kaiming_normal'" in other.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--init", "xavier"), "init: expected one of glorot_normal"),
        (("--more-controls", "luck"), "controls: expected one of 'reinit'"),
    ],
)
def test_unknown_controls_and_initialisations_are_refused(find_tiny: Run, words: Any, message: str) -> None:
    outcome = find_tiny(*words)
    assert outcome.code == 1
    assert message in outcome.err


def test_barrier_trains_the_dense_network_and_the_ticket_in_another_order_and_reports(
    find_tiny: Run, tmp_path: Path
) -> None:
    outcome = find_tiny("--seeds", 1, "--no-controls", "--barrier", "--output", tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert "4 trainings of 6 iterations" in outcome.out
    for level in (0, 1):
        assert (tmp_path / "seed_0" / f"control_0{level}_reordered.safetensors").exists()
    report = json.loads((tmp_path / "report.json").read_text())
    (grid,) = report["analyses"]["Linear mode connectivity"]
    assert [row[0] for row in grid["rows"]] == ["dense", "ticket"]
    assert all(row[4] in ("0 of 1", "1 of 1") for row in grid["rows"])
    assert "--barrier" in report["command"]
    assert "<h2>Linear mode connectivity</h2>" in (tmp_path / "report.html").read_text()


def test_two_commands_in_one_directory_are_refused(find_tiny: Run, tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "lock"):
        outcome = find_tiny("--seeds", 1, "--output", tmp_path)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "in use by" in outcome.err
    assert not (tmp_path / "find.json").exists()

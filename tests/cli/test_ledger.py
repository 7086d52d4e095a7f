"""`lth-sparse convert TICKET --target`: end to end on a tiny ticket, and its errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lth_sparse.engine import Ticket
from lth_sparse.paper import build_model

Run = Callable[..., Any]
QUICK = ("--retrain", 3, "--seconds", 0, "--threads", 1)


def small() -> nn.Module:
    """For package.module:function."""
    return build_model("lenet", (1, 28, 28), seed=5)


def test_the_run_directory_gives_everything(run: Run, ticket: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    methods = "cover:4x1,vectors,refill"
    outcome = run(
        "convert", ticket, "--target", "cpu", *QUICK, "--report", out, "--methods", methods, "--budget-loss", 99
    )
    assert outcome.code == 0
    assert sorted(path.name for path in out.iterdir()) == ["ledger.json", "report.html", "ticket.safetensors"]
    ledger = json.loads((out / "ledger.json").read_text())
    assert [entry["name"] for entry in ledger["entries"]] == [
        "dense",
        "csr",
        "auto",
        "cover:4x1",
        "vectors:4x1",
        "refill",
    ]
    for entry in ledger["entries"][1:]:
        assert entry["time"]["step"]["median"] > 0
        assert len(entry["retrained"]) == 1
        assert entry["name"] in outcome.out
    assert ledger["source"] == Ticket.load(ticket).hash
    assert ledger["steps"] == 3
    chosen = Ticket.load(out / "ticket.safetensors")
    best = next(entry for entry in ledger["entries"] if entry["name"] == ledger["best"]["name"])
    assert chosen.hash == best["ticket"]
    assert chosen.hash == ledger["source"] or chosen.parent == ledger["source"]
    assert "From mask to blocks" in (out / "report.html").read_text()


def test_a_gpu_that_is_not_there_gets_masks_and_counts_and_no_times(
    run: Run, ticket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "out"
    outcome = run("convert", ticket, "--target", "cuda", "--retrain", 0, "--report", out, "--methods", "drop:16x16")
    assert outcome.code == 0
    assert "not measured" in outcome.out
    ledger = json.loads((out / "ledger.json").read_text())
    assert all(entry["time"] is None for entry in ledger["entries"])
    assert ledger["entries"][3]["added"] > 0


def test_a_network_of_ones_own_is_timed_without_accuracies(
    run: Run, ticket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    lonely = tmp_path / "ticket.safetensors"
    shutil.copy(ticket, lonely)
    out = tmp_path / "out"
    words = ("--network", "test_ledger:small", "--input", "5x1x28x28", "--methods", "cover:4x1")
    outcome = run("convert", lonely, "--target", "cpu", "--seconds", 0, "--threads", 1, "--report", out, *words)
    assert outcome.code == 0
    entry = json.loads((out / "ledger.json").read_text())["entries"][3]
    assert entry["accuracy"] is None
    assert entry["time"] is not None


def test_without_level_0_methods_that_add_are_left_out_and_named(run: Run, ticket: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "ticket.safetensors"
    shutil.copy(ticket, lonely)
    base = ("convert", lonely, "--target", "cuda", "--network", "lenet", "--quick", "--retrain", 0)
    outcome = run(*base, "--report", tmp_path / "out")
    assert outcome.code == 0
    assert "Left out, as they add weights: " in outcome.out
    outcome = run(*base, "--report", tmp_path / "out", "--methods", "vectors")
    assert outcome.code == 1
    assert "--dense" in outcome.err
    outcome = run(
        *base, "--report", tmp_path / "out", "--methods", "vectors", "--dense", ticket.parent / "level_00.safetensors"
    )
    assert outcome.code == 0


def test_another_ticket_is_compared(run: Run, ticket: Path, tmp_path: Path) -> None:
    other = ticket.parent.parent / "seed_1" / ticket.name
    words = ("--methods", "cover", "--compare", f"other seed={other}", "--report", tmp_path / "out")
    outcome = run("convert", ticket, "--target", "cpu", *QUICK, *words)
    assert outcome.code == 0
    assert "other seed" in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target", "tpu"), "--target"),
        (("--target", "cpu", "--to", "csr"), "--to"),
        (("--target", "cpu", "--weights", "initial"), "--weights"),
        (("--target", "cpu", "--methods", "blocks"), "method"),
        (("--target", "cpu", "--network", "alexnet"), "--network"),
        (("--target", "cpu", "--budget-loss", "-1"), "--budget-loss"),
        (("--target", "cpu", "--output", "blocks.pt"), "--output"),
        (("--target", "cpu", "--compare", "other"), "--compare"),
        ((), "--output"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    run: Run, ticket: Path, tmp_path: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("convert", ticket, *words)
    assert outcome.code == 1
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_ticket_from_nowhere_needs_its_network(run: Run, ticket: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "a" / "b" / "ticket.safetensors"
    lonely.parent.mkdir(parents=True)
    shutil.copy(ticket, lonely)
    outcome = run("convert", lonely, "--target", "cpu", "--methods", "cover", "--report", tmp_path / "out")
    assert outcome.code == 1
    assert "--network" in outcome.err


def test_the_report_of_a_search_is_not_overwritten(run: Run, ticket: Path) -> None:
    directory = ticket.parent.parent
    before = (directory / "report.html").read_bytes()
    outcome = run("convert", ticket, "--target", "cpu", "--report", directory)
    assert outcome.code == 1
    assert "--report" in outcome.err
    assert (directory / "report.html").read_bytes() == before


def test_killed_while_it_measures_nothing_is_written(
    run: Run, ticket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lth_sparse.cli.ledger.ledger_of", killed)
    outcome = run("convert", ticket, "--target", "cpu", "--report", tmp_path / "out")
    assert outcome.code == 130
    assert not list((tmp_path / "out").iterdir())

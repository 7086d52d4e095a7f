"""Run directories: killed anywhere, started again, the same tickets bit for bit; and everything that is refused."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lth_sparse as ls
from lth_sparse import _files
from lth_sparse.errors import ArgumentTypeError, RunError, TicketError

Search = Callable[..., Any]


class Killed(BaseException):
    """Stands for SIGKILL where a process of its own would take too long."""


def files(directory: Path) -> dict[str, bytes]:
    """All result files but the timings, which differ from run to run."""
    return {
        path.name: path.read_bytes()
        for path in sorted(directory.iterdir())
        if path.suffix == ".safetensors" or path.name == "run.json"
    }


FULL = {"levels": 2, "rewind": "4it", "controls": ("reinit", "shuffled")}


@pytest.fixture
def whole(search: Search, tmp_path: Path) -> dict[str, bytes]:
    """Files of a search that was not interrupted."""
    search(directory=tmp_path / "whole", **FULL)
    return files(tmp_path / "whole")


def test_a_search_leaves_these_files(search: Search, tmp_path: Path) -> None:
    search(directory=tmp_path, **FULL)
    levels = [f"level_0{k}{end}" for k in range(3) for end in (".json", ".safetensors")]
    controls = [f"control_02_{kind}{end}" for kind in ("reinit", "shuffled") for end in (".json", ".safetensors")]
    expected = {*levels, *controls, "run.json", "start.safetensors", "rewind.safetensors", "lock"}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_tickets_are_the_same_with_and_without_a_directory(search: Search, tmp_path: Path) -> None:
    with_directory, without = search(directory=tmp_path, **FULL), search(**FULL)
    assert [t.hash for t in with_directory.tickets] == [t.hash for t in without.tickets]
    assert {key: t.hash for key, t in with_directory.control_tickets.items()} == {
        key: t.hash for key, t in without.control_tickets.items()
    }


def test_stored_tickets_are_those_of_the_result(search: Search, tmp_path: Path) -> None:
    result = search(directory=tmp_path)
    for ticket in result.tickets:
        assert ls.Ticket.load(tmp_path / f"level_{ticket.level:02d}.safetensors") == ticket


def test_a_finished_search_is_loaded_not_trained(search: Search, tmp_path: Path) -> None:
    first = search(directory=tmp_path, **FULL)
    events: list[Any] = []

    class Listener:
        def on_level_start(self, level: Any) -> None:
            events.append("trained")

        def on_level_end(self, record: Any) -> None:
            events.append((record.index, record.control, record.resumed))

    second = search(directory=tmp_path, train=lambda model, level: 1 / 0, callbacks=[Listener()], **FULL)
    assert second.ticket == first.ticket
    assert [record.seconds for record in second.levels] == [record.seconds for record in first.levels]
    assert [record.layers for record in second.levels] == json.loads(json.dumps([r.layers for r in first.levels]))
    assert [record.early_stop for record in second.levels] == [record.early_stop for record in first.levels]
    assert events == [(0, None, True), (1, None, True), (2, None, True), (2, "reinit", True), (2, "shuffled", True)]


@pytest.mark.parametrize("training", range(5))
@pytest.mark.parametrize("step", [2, 6])
def test_killed_inside_a_training_and_resumed_gives_the_same_files(
    search: Search, make_train: Any, tmp_path: Path, whole: dict[str, bytes], training: int, step: int
) -> None:
    trainings: list[Any] = []

    class Bomb:
        def on_step(self, level: Any) -> None:
            if len(trainings) == training + 1 and level.steps == max(step, level.start_step + 1):
                raise Killed

    bombed = make_train(watch=lambda model, level: trainings.append(level))
    with pytest.raises(Killed):
        search(directory=tmp_path / "run", train=bombed, callbacks=[Bomb()], **FULL)
    search(directory=tmp_path / "run", **FULL)
    assert files(tmp_path / "run") == whole


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_write_and_resumed_gives_the_same_files(
    search: Search, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    replace = os.replace
    for number in range(len(whole) + 5):  # and five files of timings
        written: list[int] = []

        def bomb(source: Any, target: Any, number: int = number, written: list[int] = written) -> None:
            written.append(1)
            if moment == "after" or len(written) <= number:
                replace(source, target)
            if len(written) == number + 1:
                raise Killed

        directory = tmp_path / f"{moment}{number}"
        monkeypatch.setattr(_files.os, "replace", bomb)
        with pytest.raises(Killed):
            search(directory=directory, **FULL)
        monkeypatch.setattr(_files.os, "replace", replace)
        search(directory=directory, **FULL)
        assert files(directory) == whole


SCRIPT = """
import os, signal, sys, torch, lth_sparse as ls
torch.set_num_threads(1)
directory, seed, kill_at = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.manual_seed(seed)
x, y = torch.rand(64, 10, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
model = torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 2))

if kill_at == "write":
    from lth_sparse import _files
    count, replace = [], os.replace
    def bomb(source, target):
        count.append(target)
        if len(count) == 6:
            os.kill(os.getpid(), signal.SIGKILL)  # the temporary file is left behind
        replace(source, target)
    _files.os.replace = bomb

def train(model, level):
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(6):
        batch = torch.randint(64, (16,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        level.step()
        if kill_at == "step" and level.index == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    return {"test_acc": float((model(x).argmax(1) == y).float().mean())}

ls.find_ticket(model, train, levels=2, rate=0.4, directory=directory, seed=3)
"""


def run_script(directory: Path, seed: int, kill_at: str) -> int:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(directory), str(seed), kill_at]
    return subprocess.run(command, check=False, timeout=300, stdin=subprocess.DEVNULL).returncode


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_a_process_killed_twice_ends_with_the_same_files(tmp_path: Path) -> None:
    assert run_script(tmp_path / "whole", 0, "never") == 0
    assert run_script(tmp_path / "run", 0, "write") == -signal.SIGKILL
    assert list((tmp_path / "run").glob(".*.tmp"))
    assert run_script(tmp_path / "run", 1, "step") == -signal.SIGKILL
    # The last start builds its model from another seed: theta_0 is the directory's.
    assert run_script(tmp_path / "run", 2, "never") == 0
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert not list((tmp_path / "run").glob(".*.tmp"))


# --- another search, or another owner, in the same directory ---------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("rate", 0.4, "rate is 0.3 in this run, but 0.4 was asked for"),
        ("levels", 4, "levels is 3 in this run, but 4 was asked for"),
        ("seed", 1, "seed is 0 in this run, but 1 was asked for"),
        ("rewind", "4it", "rewind is 'init' in this run, but '4it' was asked for"),
        ("criterion", torch.abs, "criterion is 'magnitude' in this run, but '.*abs' was asked for"),
        ("rates", {"fc": 0.1}, "rates is {} in this run, but {'fc': 0.1} was asked for"),
        ("freeze", "conv", r"freeze is \[\] in this run, but \['conv'\] was asked for"),
    ],
)
def test_other_hyperparameters_are_refused_with_both_values(
    search: Search, tmp_path: Path, keyword: str, value: Any, message: str
) -> None:
    search(directory=tmp_path, train=lambda model, level: {"test_acc": 0.0})
    with pytest.raises(RunError, match=message):
        search(directory=tmp_path, **{keyword: value})


def test_another_architecture_is_refused_by_name(search: Search, tmp_path: Path, net: Any) -> None:
    search(directory=tmp_path, train=lambda model, level: {"test_acc": 0.0})
    net.out = nn.Linear(12, 4)
    with pytest.raises(RunError, match=r"model: out\.weight is \[\[3, 12\], 'torch.float32'\] in this run, but"):
        search(directory=tmp_path, model=net)


def test_controls_may_be_added_to_a_finished_search(search: Search, tmp_path: Path) -> None:
    first = search(directory=tmp_path)
    second = search(directory=tmp_path, controls="reinit")
    assert second.ticket == first.ticket
    assert set(second.controls) == {(3, "reinit")}


def test_another_version_of_torch_warns(search: Search, tmp_path: Path) -> None:
    search(directory=tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    run["versions"]["torch"] = "1.0"
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.warns(UserWarning, match=r"begun with torch 1\.0, going on with .* last bits"):
        search(directory=tmp_path)


# --- damage and bad places -------------------------------------------------------------------------------------------


def test_a_damaged_level_is_an_error_that_says_what_to_do(
    search: Search, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    search(directory=tmp_path / "run", **FULL)
    path = tmp_path / "run" / "level_01.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(TicketError, match=r"level_01\.safetensors.*Delete that file to have the level trained again"):
        search(directory=tmp_path / "run", **FULL)
    path.unlink()
    search(directory=tmp_path / "run", **FULL)
    assert files(tmp_path / "run") == whole


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', "\udc80"])
def test_a_damaged_run_file_is_an_error(search: Search, tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text, errors="surrogateescape")
    with pytest.raises(TicketError, match=r"run\.json: damaged .*choose another directory"):
        search(directory=tmp_path)


def test_an_edited_run_file_is_an_error(search: Search, tmp_path: Path) -> None:
    search(directory=tmp_path, levels=0)
    path = tmp_path / "run.json"
    path.write_text(path.read_text().replace('"rate": 0.3', '"rate": 0.4'))
    with pytest.raises(TicketError, match="does not match its hash"):
        search(directory=tmp_path, levels=0, rate=0.4)


def test_levels_of_another_search_are_an_error(search: Search, tmp_path: Path) -> None:
    search(directory=tmp_path / "a", seed=0)
    search(directory=tmp_path / "b", seed=1)
    foreign = (tmp_path / "b" / "level_02.safetensors").read_bytes()
    (tmp_path / "a" / "level_02.safetensors").write_bytes(foreign)
    with pytest.raises(RunError, match="level 2 does not descend from level 1 as it is there"):
        search(directory=tmp_path / "a", seed=0)


def test_a_renamed_level_is_an_error(search: Search, tmp_path: Path) -> None:
    search(directory=tmp_path)
    (tmp_path / "level_01.safetensors").write_bytes((tmp_path / "level_02.safetensors").read_bytes())
    with pytest.raises(TicketError, match="expected level 1"):
        search(directory=tmp_path)


def test_levels_without_a_run_file_are_an_error(search: Search, tmp_path: Path) -> None:
    (tmp_path / "level_00.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"holds level_00\.safetensors but no run\.json"):
        search(directory=tmp_path)


def test_a_missing_rewind_point_is_an_error(search: Search, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        search(directory=tmp_path, rewind="4it", callbacks=[_FailAt(1)])
    (tmp_path / "rewind.safetensors").unlink()
    with pytest.raises(RunError, match=r"lacks rewind\.safetensors .*delete level_00\.safetensors"):
        search(directory=tmp_path, rewind="4it")


def test_lost_timings_are_nan(search: Search, tmp_path: Path) -> None:
    search(directory=tmp_path, levels=1)
    (tmp_path / "level_00.json").unlink()
    (tmp_path / "level_01.json").write_text("{")
    again = search(directory=tmp_path, levels=1)
    assert all(math.isnan(record.seconds) for record in again.levels)


def test_a_file_in_the_directorys_place_is_an_error(search: Search, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match=r"cannot make the run directory .*run: File exists"):
        search(directory=tmp_path / "run")


def test_a_directory_that_is_no_path_is_an_error(search: Search) -> None:
    with pytest.raises(ArgumentTypeError, match="directory: expected a path, got 3"):
        search(directory=3)


def test_a_full_disk_is_one_clear_error_and_the_search_goes_on_later(
    search: Search, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if "level_01.safetensors" in self.name:
            write_bytes(self, data[:100])
            raise OSError(28, "No space left on device")
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"cannot write .*level_01\.safetensors: No space left on device"):
        search(directory=tmp_path / "run", **FULL)
    monkeypatch.undo()
    assert not (tmp_path / "run" / "level_01.safetensors").exists()
    assert not list((tmp_path / "run").glob(".*.tmp"))
    search(directory=tmp_path / "run", **FULL)
    assert files(tmp_path / "run") == whole


class _FailAt:
    """A callback that fails at the start of a level."""

    def __init__(self, index: int) -> None:
        self.index = index

    def on_level_start(self, level: Any) -> None:
        if level.index == self.index:
            raise ZeroDivisionError

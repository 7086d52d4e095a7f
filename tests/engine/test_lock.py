"""Locks between searches of one sweep, which runs each of them once at a time, on whatever machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lth_sparse.engine import lock
from lth_sparse.engine.lock import SWEEP, DirectoryLock
from lth_sparse.errors import RunError


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What this process writes into a lock as a search of the sweep "here"."""
    monkeypatch.setenv(SWEEP, "here")
    with DirectoryLock(tmp_path / "other"):
        written: dict[str, Any] = json.loads((tmp_path / "other").read_text())
    assert written["sweep"] == "here"
    return written


@pytest.mark.parametrize(("sweep", "taken"), [("here", True), ("there", False), (None, False)])
def test_on_another_machine_only_the_same_sweep_is_known_to_have_ended(
    tmp_path: Path, owner: dict[str, Any], sweep: str | None, taken: bool
) -> None:
    left = {**owner, "host": "elsewhere", "pid": 1, "sweep": sweep}
    (tmp_path / "lock").write_text(json.dumps(left))
    if taken:
        with DirectoryLock(tmp_path / "lock"):
            assert json.loads((tmp_path / "lock").read_text()) == owner
    else:
        with pytest.raises(RunError, match="in use by process 1 on elsewhere"):
            DirectoryLock(tmp_path / "lock").__enter__()


def test_a_search_of_the_same_sweep_that_is_about_to_end_is_waited_for(
    tmp_path: Path, owner: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as before:
        left = {**owner, "pid": before.pid, "started": None}
        (tmp_path / "lock").write_text(json.dumps(left))
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            before.kill()
            before.wait()

        monkeypatch.setattr(lock.time, "sleep", sleep)
        with DirectoryLock(tmp_path / "lock"):
            assert len(waits) == 1


def test_but_not_for_ever(tmp_path: Path, owner: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as before:
        (tmp_path / "lock").write_text(json.dumps({**owner, "pid": before.pid, "started": None}))
        with pytest.raises(RunError, match=f"in use by process {before.pid} on "):
            DirectoryLock(tmp_path / "lock").__enter__()
        before.kill()


def test_taking_a_lock_removes_what_the_killed_left_half_written(tmp_path: Path) -> None:
    for name in (".report.json.abc.tmp", "report.json", "mine.tmp"):
        (tmp_path / name).touch()
    with DirectoryLock(tmp_path / "lock"):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "mine.tmp", "report.json"]

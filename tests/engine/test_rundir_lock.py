"""A run directory belongs to one search at a time: its lock, whoever holds it, and whatever became of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import lth_sparse as ls
from lth_sparse.engine.lock import DirectoryLock
from lth_sparse.errors import RunError

Search = Callable[..., Any]


def test_two_searches_in_one_directory_are_refused(search: Search, tmp_path: Path) -> None:
    def train(model: nn.Module, level: Any) -> dict[str, float]:
        with pytest.raises(RunError, match="in use by another search of this process"):
            search(directory=tmp_path)
        return {"test_acc": 0.0}

    search(levels=0, directory=tmp_path, train=train)


def test_the_lock_of_a_living_process_names_it(search: Search, tmp_path: Path) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with DirectoryLock(tmp_path / "other"):
            owner = json.loads((tmp_path / "other").read_text())
        owner |= {"pid": sleeper.pid, "started": None}
        (tmp_path / "lock").write_text(json.dumps(owner))
        with pytest.raises(RunError, match=rf"in use by process {sleeper.pid} on "):
            search(directory=tmp_path)
    finally:
        sleeper.kill()
        sleeper.wait()
    search(directory=tmp_path, levels=0)


@pytest.mark.parametrize("text", ["", "{", "null", '{"pid": "x"}', "garbage"])
def test_a_half_written_lock_is_taken_over(search: Search, tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    search(directory=tmp_path, levels=0, train=lambda model, level: {"test_acc": 0.0})


def test_the_lock_of_a_process_with_a_reused_id_is_taken_over(search: Search, tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "other"):
        owner = json.loads((tmp_path / "other").read_text())
    if owner["started"] is None:
        pytest.skip("no /proc here, so a reused process id cannot be told")
    (tmp_path / "lock").write_text(json.dumps({**owner, "started": "1"}))
    search(directory=tmp_path, levels=0, train=lambda model, level: {"test_acc": 0.0})


def test_a_lock_of_another_machine_is_respected(search: Search, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": None}))
    with pytest.raises(RunError, match=r"in use by process 1 on elsewhere .*delete the file 'lock'"):
        search(directory=tmp_path)


def test_the_lock_is_free_after_success_and_after_failure(search: Search, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        search(directory=tmp_path, train=lambda model, level: 1 / 0)
    assert (tmp_path / "lock").read_text() == ""
    search(directory=tmp_path)
    assert (tmp_path / "lock").read_text() == ""


def test_a_loop_left_early_frees_its_directory(net: nn.Module, tmp_path: Path) -> None:
    loop = ls.levels(net, levels=2, directory=tmp_path)
    for _ in loop:
        break
    loop.close()
    assert [level.index for level in ls.levels(net, levels=2, directory=tmp_path)] == [0, 1, 2]

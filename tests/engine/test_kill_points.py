"""Killed at any point of any schedule, of `find`, of a sweep or of a data-parallel search, and started again: the same
files, bit for bit. `tests/kill_points.py` does the killing and says how.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kill_points
import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fork, SIGKILL")

SECONDS = 600


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was found of every case, by two processes that share them."""
    out = tmp_path_factory.mktemp("kill")
    names = sorted(kill_points.CASES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # rather than ask the network for this machine's own name
    workers = []
    for half in (names[::2], names[1::2]):
        words = [sys.executable, kill_points.__file__, str(out), *half]
        workers.append(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    try:
        for worker in workers:
            said = worker.communicate(timeout=SECONDS)[0]
            assert worker.returncode == 0, said.decode()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return {name: json.loads(Path(out / f"{name}.json").read_text()) for name in names}


@pytest.mark.parametrize("case", sorted(kill_points.CASES))
def test_killed_at_every_write_and_every_step_it_ends_with_the_same_files(reports: dict[str, Any], case: str) -> None:
    assert reports[case]["failure"] is None
    # A search of one level writes run.json, its start, a ticket and notes, each with two points, and takes 3 steps.
    assert reports[case]["points"] >= (8 if case == "sweep" else 19)


def test_a_chain_notices_what_is_not_the_same(tmp_path: Path) -> None:
    """The check itself can fail: on another result, and on a file that should not be there."""
    truth = {"level_00.safetensors": b"a", "level_00.json": b"b"}
    kill_points.check_whole({**truth, "level_00.json": b"seconds may differ"}, truth, "here")
    with pytest.raises(AssertionError, match=r"after the kill at 'here': level_00\.safetensors differs"):
        kill_points.check_whole({**truth, "level_00.safetensors": b"c"}, truth, "here")
    with pytest.raises(AssertionError, match=r"left\.tmp"):
        kill_points.check_whole({**truth, "left.tmp": b""}, truth, "here")
    (tmp_path / "level_00.safetensors").write_bytes(b"a")
    with pytest.raises(AssertionError, match=r"no notes for level_00\.safetensors"):
        kill_points.check_prefix(tmp_path, truth, "here")
    (tmp_path / "level_00.json").write_bytes(b"b")
    kill_points.check_prefix(tmp_path, truth, "here")
    (tmp_path / "level_00.safetensors").write_bytes(b"b")
    with pytest.raises(AssertionError, match=r"level_00\.safetensors differs"):
        kill_points.check_prefix(tmp_path, truth, "here")

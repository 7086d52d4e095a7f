"""Searches killed by SIGKILL at every durable write and after every training step, and started again each time.

    python kill_points.py OUT CASE...

Each case runs once undisturbed, which writes down everything that happens: the lock, the beginning and the end of every
write, deletions, and the steps of every training. Then a chain of processes, all in one directory, is killed at these
points one after the other, each process going on from what the one before left; after every kill, whatever result is
there must be that of the undisturbed run, byte for byte. The last process is let through. All are forks of this one,
which computes on one thread and so has no others, and starting one costs milliseconds. OUT/CASE.json says how many
points there were, and what went wrong first, if anything.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kill_cases import AGAIN, DYNAMIC, PARALLEL, RANKS, SEARCHES, Fuse, network, one_find, one_sweep, search, training
from torch import nn

import lth_sparse as ls
from lth_sparse.paper import load_dataset

#: Seconds that a rank may take to notice that the other one has died.
PATIENCE = 60.0


# --- processes -------------------------------------------------------------------------------------------------------


def forked(work: Callable[[], None], log: Path) -> int:
    """Process id of a fork that runs ``work``: it ends with 0, with 1 and a trace in ``log``, or as it is killed."""
    if child := os.fork():
        return child
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        gc.disable()
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(child: int, seconds: float | None = None) -> int | None:
    """Exit code of a fork, negative for a signal; None, and it is killed, if it takes longer than ``seconds``."""
    deadline = time.monotonic() + (seconds or 0.0)
    while True:
        found, status = os.waitpid(child, 0 if seconds is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.005)


def alone(run: Callable[[Path, Fuse], None]) -> Callable[..., None]:
    """Start a case of one process; returns when it has ended as it should."""

    def start(directory: Path, log: Path, point: str | None = None, whole: Path | None = None) -> None:
        def work() -> None:
            fuse = Fuse(directory, point, whole and whole / "archive")
            with fuse.lit():
                run(directory, fuse)
            if whole is not None:
                (whole / "seen.json").write_text(json.dumps(fuse.seen))

        code = ended(forked(work, log))
        wanted = -signal.SIGKILL if point else 0
        if code != wanted:
            raise AssertionError(f"at {point!r}: exit code {code}: {log.read_text()[-3000:]}")

    return start


def together(directory: Path, log: Path, point: str | None = None, whole: Path | None = None) -> None:
    """Start the data-parallel search. When one rank is killed, the other one must not wait for ever."""
    store = log.parent / f"store_{time.monotonic_ns()}"

    def work(rank: int) -> Callable[[], None]:
        def run() -> None:
            from datetime import timedelta

            fuse = Fuse(directory, point, whole and whole / "archive")
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=PATIENCE)
            )
            with fuse.lit():
                train = training(fuse, rank, RANKS)
                model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).double()
                ls.find_ticket(model, train, directory=directory, **PARALLEL)
            if whole is not None:
                (whole / f"seen_{rank}.json").write_text(json.dumps(fuse.seen))
            torch.distributed.barrier()

        return run

    children = [forked(work(rank), log) for rank in range(RANKS)]
    codes = [ended(child, 2 * PATIENCE) for child in children]
    if point is None and codes != [0] * RANKS:
        raise AssertionError(f"exit codes {codes}: {log.read_text()[-3000:]}")
    if point is not None and (None in codes or -signal.SIGKILL not in codes or 0 in codes):
        raise AssertionError(f"at {point!r}: exit codes {codes}: {log.read_text()[-3000:]}")
    if whole is not None:
        seen = [json.loads((whole / f"seen_{rank}.json").read_text()) for rank in range(RANKS)]
        assert [one for one in seen[1] if not one.startswith("rank")] == [], "rank 1 writes"
        both = [[one] if not one.startswith("rank 0") else [one, one.replace("rank 0", "rank 1")] for one in seen[0]]
        points = [point for pair in both for point in pair]
        assert set(seen[1]) <= set(points)
        (whole / "seen.json").write_text(json.dumps(points))


# --- chains ----------------------------------------------------------------------------------------------------------


def is_result(path: Path) -> bool:
    """Whether a file has to be the same in all runs: not wall times, reports with the time of day, and locks."""
    return path.suffix == ".safetensors" or path.name.startswith(("run.", "find.", "finished.", "stability_"))


def files_of(directory: Path) -> dict[str, bytes]:
    found = sorted(path for path in directory.rglob("*") if path.is_file()) if directory.exists() else []
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def check_prefix(directory: Path, archive: dict[str, bytes], point: str) -> None:
    """Every result that is there is the undisturbed run's, and no ticket is there without its notes."""
    found = files_of(directory)
    for name, content in found.items():
        if is_result(Path(name)) and not Path(name).name.startswith("."):
            assert content == archive[name], f"after the kill at {point!r}: {name} differs"
            notes = str(Path(name).with_suffix(".json"))
            assert notes not in archive or notes in found, f"after the kill at {point!r}: no notes for {name}"


def chain(start: Callable[..., None], out: Path, afresh: bool = False) -> int:
    """Kill a process at every point, one after the other; the number of points.

    With ``afresh`` each goes on by itself to the end, and the next one begins in an empty directory: for programs that
    write the same files again and again.
    """
    whole, directory = out / "whole", out / "run"
    whole.mkdir(parents=True)
    start(directory, out / "whole.log", whole=whole)
    truth = files_of(directory)
    shutil.rmtree(directory)
    points = json.loads((whole / "seen.json").read_text())
    points = [point for point in points if (point.startswith("write ") if afresh else AGAIN not in point)]
    archive = {**truth, **files_of(whole / "archive")}
    for point in points:
        start(directory, out / "log", point)
        check_prefix(directory, archive, point)
        if afresh:
            start(directory, out / "log")
            check_whole(files_of(directory), truth, point)
            shutil.rmtree(directory)
    start(directory, out / "log")
    check_whole(files_of(directory), truth, "all points")
    return len(points)


def check_whole(ours: dict[str, bytes], truth: dict[str, bytes], point: str) -> None:
    assert set(ours) == set(truth), f"after the kill at {point!r}: {set(ours) ^ set(truth)}"
    for name, content in truth.items():
        assert not is_result(Path(name)) or ours[name] == content, f"after the kill at {point!r}: {name} differs"
    if "sweep.json" in truth:
        assert len({str(json.loads(files["sweep.json"])["combinations"]) for files in (ours, truth)}) == 1


CASES: dict[str, Callable[..., None]] = {
    **{name: alone(search(name)) for name in SEARCHES},
    **{name: alone(run) for name, run in DYNAMIC.items()},
    "find": alone(one_find),
    "sweep": alone(one_sweep),
    "two ranks": together,
}


def main(out: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    # What torch imports at its first optimiser step takes seconds; the forks have it from here.
    ls.find_ticket(network(), training(Fuse(out)), levels=1)
    load_dataset("digits")
    gc.collect()
    gc.freeze()  # a collection in a fork would touch, and so copy, all memory
    for name in names:
        begin = time.monotonic()
        report: dict[str, Any] = {"points": 0, "failure": None}
        try:
            report["points"] = chain(CASES[name], out / name, afresh=name == "sweep")
        except Exception as error:
            report["failure"] = f"{type(error).__name__}: {error}"
        report["seconds"] = time.monotonic() - begin
        (out / f"{name}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(Path(sys.argv[1]), sys.argv[2:] or list(CASES))

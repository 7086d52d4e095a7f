"""A few processes at a time, none of which outlives this one.

Every process has a pipe from here as its standard input (`cli/child.py` watches it): closing it ends the process, and
the system closes it when this process dies.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Task", "run_all"]

POLL_SECONDS, GRACE_SECONDS = 0.05, 10.0


@dataclass(frozen=True)
class Task:
    """A command line, the file that takes what it prints, and where it runs if not here."""

    name: str
    words: Sequence[str]
    log: Path
    directory: Path | None = None


def run_all(
    tasks: Iterable[Task], jobs: int, environment: Mapping[str, str]
) -> Generator[tuple[Task, int], None, None]:
    """Run the tasks in their order, ``jobs`` at a time; yield each with its exit code when it ends.

    However the iteration ends, early, by an exception or by Ctrl-C, no process is left.
    """
    waiting = list(tasks)[::-1]
    running: list[tuple[Task, subprocess.Popen[bytes]]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop()
                running.append((task, _start(task, environment)))
            ended = [(task, process) for task, process in running if process.poll() is not None]
            for task, process in ended:
                running.remove((task, process))
                _hang_up(process)
                yield task, process.returncode
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        _stop([process for _, process in running])


def _start(task: Task, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with open(task.log, "wb") as log:
        return subprocess.Popen(
            task.words,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=task.directory,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C in a terminal comes here alone, and here it is decided what ends
        )


def _hang_up(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tell all to end, and kill what has not after a while, or at once at a second Ctrl-C."""
    try:
        for process in processes:
            _hang_up(process)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()

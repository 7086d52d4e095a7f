"""Processes of a sweep on the nodes of a Ray cluster: Ray decides where and when each runs, and nothing here does.

A task of Ray starts on its node the process that `pool` would start on this machine, and lives as long as it does.
Everything else is files, so all nodes have to see the sweep's directory under the same path. When a node dies, Ray
starts its tasks on another one, where they go on from what is in that directory.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lth_sparse.cli.pool import GRACE_SECONDS, Task, run_all
from lth_sparse.errors import RunError, expected

__all__ = ["run_on_ray"]

#: Exit code of a process that Ray lost.
LOST = 1


def run_on_ray(
    tasks: Iterable[Task],
    environment: Mapping[str, str],
    *,
    address: str,
    threads: int,
    jobs: int | None,
    proof: Path,
) -> Generator[tuple[Task, int], None, None]:
    """Run the tasks as those of a Ray cluster; yield each with its exit code when it ends.

    However the iteration ends, early, by an exception or by Ctrl-C, what has not ended is cancelled.

    Args:
        tasks: with absolute paths.
        environment: variables that every process gets on top of its node's own.
        address: "auto" for the cluster that RAY_ADDRESS names or that this machine belongs to, "local" for one of this
            machine alone that ends with this call, or a cluster's own address.
        threads: CPUs that Ray reserves for each.
        jobs: at most so many at a time; None for as many as the cluster has room for.
        proof: a file in the sweep's directory. A node without it does not share the directory.

    Raises:
        RunError: ray is not installed, or the cluster cannot be reached.
    """
    ray = _ray()
    with _connected(ray, address):
        start = ray.remote(num_cpus=threads)(_run_here)
        waiting = list(tasks)[::-1]
        running: dict[Any, Task] = {}
        try:
            while waiting or running:
                while waiting and (jobs is None or len(running) < jobs):
                    task = waiting.pop()
                    running[start.remote(task, dict(environment), sys.executable, proof)] = task
                for reference in ray.wait(list(running), num_returns=1)[0]:
                    task = running.pop(reference)
                    yield task, _code(ray, reference, task)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=GRACE_SECONDS)


def _run_here(task: Task, environment: Mapping[str, str], python: str, proof: Path) -> int:
    """On a node: the task from its beginning to its end; its exit code.

    Raises:
        RunError: the node does not see the directories of whoever sent the task.
    """
    import os

    for path, there in ((proof, proof.is_file()), (task.directory, task.directory is None or task.directory.is_dir())):
        if not there:
            what = "the sweep's directory and the one that it was started in on every node, under the same paths"
            raise RunError(expected("ray", what, f"a node without {path}"))
    if task.words[0] == python:
        task = replace(task, words=[sys.executable, *task.words[1:]])
    with contextlib.closing(run_all([task], 1, {**os.environ, **environment})) as results:
        return next(results)[1]


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        what = "the package ray, which comes with pip install 'lth_sparse[ray]'"
        raise RunError(expected("ray", what, f"none ({error})")) from error
    return ray


@contextlib.contextmanager
def _connected(ray: Any, address: str) -> Generator[None, None, None]:
    """Within a program that has a cluster already, that one; else the one at ``address``, until the end."""
    if ray.is_initialized():
        yield
        return
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise RunError(expected("ray", "the address of a Ray cluster that runs", f"{address!r}: {error}")) from error
    try:
        yield
    finally:
        ray.shutdown()


def _code(ray: Any, reference: Any, task: Task) -> int:
    """Exit code of a task that has ended; what Ray says of one that it lost goes into the task's log."""
    try:
        return int(ray.get(reference))
    except ray.exceptions.RayError as error:
        with open(task.log, "a", encoding="utf-8") as log:
            log.write(f"\nlth-sparse: error: Ray: {_reason(error)}\n")
        return LOST


def _reason(error: BaseException) -> str:
    """One line: the mistake that a node found, or else Ray's own words."""
    cause = getattr(error, "cause", None) or error
    return " ".join(str(cause).split())

"""`lth-sparse sweep --ray`: what is asked of Ray, by a stand-in for it; and the tickets of a real local cluster."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lth_sparse.cli import sweeping
from lth_sparse.cli.cluster import run_on_ray
from lth_sparse.cli.pool import Task

Run = Callable[..., Any]

#: In place of `find`: a report, or the failure that the rate asks for.
STAND_IN = """
import json, os, pathlib, sys
words = sys.argv[1:]
where = pathlib.Path(words[words.index("--output") + 1])
rate = float(words[words.index("--rate") + 1])
with open(where / "calls", "a") as calls:
    calls.write(f"{os.environ['OMP_NUM_THREADS']} {os.environ['LTH_SPARSE_SWEEP']} {os.getcwd()}\\n")
if rate == 0.9:
    sys.exit("lth-sparse: error: no such luck")
level = {"level": 0, "early_accuracy": None, "accuracy": {"mean": rate}}
verdict = {"kind": "none", "title": "No winning ticket", "level": None, "density": None}
report = {"verdict": verdict, "levels": [level], "trainings": [{"seconds": 1.0}]}
(where / "report.json").write_text(json.dumps(report))
"""


class Remote:
    """A function of the stand-in; `remote` runs it at once."""

    def __init__(self, ray: Any, function: Callable[..., Any]) -> None:
        self.ray, self.function = ray, function

    def remote(self, *arguments: Any) -> int:
        reference = len(self.ray.outcomes)
        if reference in self.ray.lost:
            self.ray.outcomes.append(self.ray.exceptions.RayError("the node\n has died"))
            return reference
        try:
            self.ray.outcomes.append(self.function(*arguments))
        except Exception as error:
            failure = self.ray.exceptions.RayError("of the task, with a long trace")
            failure.cause = error
            self.ray.outcomes.append(failure)
        return reference


class FakeRay(ModuleType):
    """The calls of ray that are used, without a cluster."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.exceptions = ModuleType("ray.exceptions")
        self.exceptions.RayError = type("RayError", (Exception,), {})
        self.outcomes: list[Any] = []
        self.lost: set[int] = set()
        self.asked: list[Any] = []
        self.cancelled: list[int] = []
        self.waited: list[int] = []
        self.running = False

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **options: Any) -> None:
        if options["address"] == "nowhere:1":
            raise ConnectionError("nobody is there")
        self.asked.append(options)
        self.running = True

    def shutdown(self) -> None:
        self.running = False

    def remote(self, **options: Any) -> Callable[..., Remote]:
        self.asked.append(options)
        return lambda function: Remote(self, function)

    def wait(self, references: list[int], num_returns: int, timeout: float | None = None) -> Any:
        self.waited.append(len(references))
        return references[:num_returns], references[num_returns:]

    def get(self, reference: int) -> Any:
        outcome = self.outcomes[reference]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def cancel(self, reference: int, force: bool) -> None:
        assert force
        self.cancelled.append(reference)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Children are STAND_INs; the directory of the sweep."""
    monkeypatch.setattr(sweeping, "CHILD", (sys.executable, "-S", "-c", STAND_IN))
    return tmp_path / "sweep"


def rows_of(directory: Path) -> Any:
    return json.loads((directory / "sweep.json").read_text(encoding="utf-8"))["combinations"]


def test_every_combination_is_a_task_of_ray_and_the_report_that_of_the_pool(
    run: Run, stand_in: Path, fake: FakeRay
) -> None:
    grid = ("--grid", "rate=0.1,0.2", "--threads", 3)
    assert run("sweep", *grid, "--output", stand_in / "pool").code == 0
    outcome = run("sweep", *grid, "--output", stand_in / "ray", "--ray", "head:6379")
    assert (outcome.code, outcome.err) == (0, "")
    assert fake.asked == [{"address": "head:6379", "log_to_driver": False, "logging_level": "warning"}, {"num_cpus": 3}]
    assert len(fake.outcomes) == 2
    assert not fake.running
    assert rows_of(stand_in / "ray") == rows_of(stand_in / "pool")
    said = (stand_in / "ray" / "rate=0.1" / "calls").read_text().split()
    assert said == ["3", str(stand_in / "ray"), os.getcwd()]
    assert "2 of 2 combinations to run, on Ray (head:6379)" in outcome.out
    assert f"--ray head:6379 --threads 3 --output {stand_in / 'ray'}" in (stand_in / "ray/sweep.json").read_text()


def test_what_is_finished_is_not_sent_again_whoever_ran_it(run: Run, stand_in: Path, fake: FakeRay) -> None:
    words = ("sweep", "--output", stand_in)
    assert run(*words, "--grid", "rate=0.1").code == 0
    assert run(*words, "--grid", "rate=0.1,0.2", "--ray", "auto").code == 0
    assert len(fake.outcomes) == 1
    assert run(*words, "--grid", "rate=0.1,0.2").out.count("finished before") == 2


def test_a_combination_that_fails_or_whose_node_dies_is_reported(run: Run, stand_in: Path, fake: FakeRay) -> None:
    fake.lost = {1}
    outcome = run("sweep", "--grid", "rate=0.9,0.1,0.2", "--ray", "auto", "--output", stand_in)
    assert outcome.code == 1
    failed, lost, finished = rows_of(stand_in)
    assert failed["error"] == "lth-sparse: error: no such luck"
    assert lost["error"] == "lth-sparse: error: Ray: the node has died"
    assert finished["status"] == "finished"
    again = run("sweep", "--grid", "rate=0.1,0.2", "--ray", "auto", "--output", stand_in)
    assert (again.code, "1 of 2 combinations to run" in again.out) == (0, True)


@pytest.mark.parametrize("missing", ["proof", "directory"])
def test_a_node_that_does_not_share_the_directory_says_so(tmp_path: Path, fake: FakeRay, missing: str) -> None:
    place = tmp_path / ("elsewhere" if missing == "directory" else ".")
    proof = tmp_path / "lock"
    if missing == "directory":
        proof.touch()
    task = Task("a", [sys.executable, "-S", "-c", ""], tmp_path / "log", place)
    results = run_on_ray([task], {}, address="auto", threads=1, jobs=None, proof=proof)
    assert list(results) == [(task, 1)]
    assert "ray: expected the sweep's directory and the one" in task.log.read_text()
    assert f"got a node without {place if missing == 'directory' else proof}" in task.log.read_text()


def test_no_more_tasks_at_a_time_than_jobs_and_none_is_left(tmp_path: Path, fake: FakeRay) -> None:
    (tmp_path / "lock").touch()
    tasks = [Task(str(n), [sys.executable, "-S", "-c", ""], tmp_path / f"{n}.log") for n in range(5)]
    options = {"address": "local", "threads": 1, "proof": tmp_path / "lock"}
    results = run_on_ray(tasks, {}, jobs=2, **options)
    with contextlib.closing(results):
        assert [next(results)[0].name for _ in range(2)] == ["0", "1"]
    assert fake.waited == [2, 2, 1]
    assert fake.cancelled == [2]
    assert fake.asked[0] == {
        "address": "local",
        "log_to_driver": False,
        "logging_level": "warning",
        "include_dashboard": False,
    }
    assert not fake.running


def test_a_programs_own_cluster_is_used_and_left_alone(tmp_path: Path, fake: FakeRay) -> None:
    fake.running = True
    (tmp_path / "lock").touch()
    task = Task("a", [sys.executable, "-S", "-c", "import sys; sys.exit(7)"], tmp_path / "log")
    results = run_on_ray([task], {}, address="auto", threads=1, jobs=None, proof=tmp_path / "lock")
    assert list(results) == [(task, 7)]
    assert fake.asked == [{"num_cpus": 1}]
    assert fake.running


def test_a_node_uses_its_own_python(tmp_path: Path, fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock").touch()
    own, task = sys.executable, Task("a", ["/driver/python", "-S", "-c", ""], tmp_path / "log")
    monkeypatch.setattr(sys, "executable", "/driver/python")
    results = run_on_ray([task], {}, address="auto", threads=1, jobs=None, proof=tmp_path / "lock")
    remote = fake.remote

    def elsewhere(**options: Any) -> Callable[..., Remote]:
        def on_node(function: Callable[..., Any]) -> Remote:
            def call(*arguments: Any) -> Any:
                with pytest.MonkeyPatch.context() as node:
                    node.setattr(sys, "executable", own)
                    return function(*arguments)

            return remote(**options)(call)

        return on_node

    monkeypatch.setattr(fake, "remote", elsewhere)
    assert list(results) == [(task, 0)]


def test_without_ray_the_error_names_the_extra(run: Run, stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = run("sweep", "--grid", "rate=0.1", "--ray", "auto", "--output", stand_in)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "ray: expected the package ray, which comes with pip install 'lth_sparse[ray]'" in outcome.err


def test_a_cluster_out_of_reach_is_one_line(run: Run, stand_in: Path, fake: FakeRay) -> None:
    outcome = run("sweep", "--grid", "rate=0.1", "--ray", "nowhere:1", "--output", stand_in)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "the address of a Ray cluster that runs, got 'nowhere:1': nobody is there" in outcome.err


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A real cluster of this machine, with two CPUs."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.filterwarnings("ignore::Warning")  # of ray's own
def test_on_a_real_cluster_the_tickets_are_bit_for_bit_those_of_find(
    run: Run, find_tiny: Run, tmp_path: Path, cluster: Any
) -> None:
    budget = ("lenet", "--quick", "--iterations", 6, "--levels", 1, "--seeds", 1, "--no-controls")
    directory = tmp_path / "sweep"
    outcome = run("sweep", *budget, "--grid", "rate=0.1,0.2", "--ray", "auto", "--output", directory)
    assert (outcome.code, outcome.err) == (0, "")
    for rate in ("0.1", "0.2"):
        whole = tmp_path / rate
        assert find_tiny("--seeds", 1, "--no-controls", "--rate", rate, "--output", whole).code == 0
        for path in (whole / "seed_0").glob("*.safetensors"):
            assert (directory / f"rate={rate}" / "seed_0" / path.name).read_bytes() == path.read_bytes()
    assert {row["status"] for row in rows_of(directory)} == {"finished"}

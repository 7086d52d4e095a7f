"""The GPU suite outlives its workers: whatever kills one costs the rows of what was under way, and is said."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lth_sparse.benchmarks.gpu import __main__ as command
from lth_sparse.benchmarks.gpu import session, worker
from lth_sparse.benchmarks.gpu.cases import Case
from lth_sparse.benchmarks.gpu.clock import CaptureError, HostClock
from lth_sparse.benchmarks.gpu.measuring import COLUMNS, DeadDeviceError, case_columns
from lth_sparse.benchmarks.gpu.rates import Rates
from lth_sparse.benchmarks.gpu.suite import Suite
from lth_sparse.benchmarks.measure import read_csv

CASES = [Case("G1", "linear", label, (4, 8, 8), 0.5, (4, 4), dtype="float32") for label in ("one", "two", "three")]

# Times every provider of every case at once; what `deaths` says for (case, provider) happens instead.
STUB = """
import json, os, sys, time
task = json.load(sys.stdin)
pipe = os.fdopen(int(sys.argv[1]), "w")
def tell(**message):
    print(json.dumps(message), file=pipe, flush=True)
if task["task"] == "warm":
    open(LOG, "a").write("warm " + " ".join(case["label"] for case in task["cases"]) + "\\n")
    sys.exit()
if task["rates"] is None:
    if STARTS_BADLY:
        os._exit(7)
    tell(facts={"device": "stub"})
    tell(rates={"dram": 1e12}, errors={})
for case in task["cases"]:
    name = f"G1-{case['label']}-bsr4x4-d0.5-float32"
    known = task["known"].get(name, {})
    for provider in ("inputs", "dense", "ours", "all"):
        tell(at=[name, provider, "forward"])
        death = DEATHS.get(f"{case['label']} {provider}")
        if known.get(provider, death) == "eager" and death == "capture":
            death = None
        if death and known.get(provider, "eager") == "eager":
            if death == "hang":
                time.sleep(60)
            if death == "capture":
                tell(dead="capture broke", capture=True)
                os._exit(3)
            if death == "dead":
                tell(dead="illegal access", capture=False)
                os._exit(3)
            os.kill(os.getpid(), 11)
        if provider in ("dense", "ours"):
            how = known.get(provider, "graph")
            row = {"case": name, "goal": "G1", "mode": "forward", "provider": provider, "how": how}
            status = known.get(provider, "ok")
            row |= {"status": "ok" if status == "eager" else status, "block": "4x4", "density": 0.5}
            tell(row=row | ({"median_us": 2.0, "ratio": 1.0} if row["status"] == "ok" else {}))
    tell(load={"sm_mhz": "1980"})
    tell(done=name)
"""


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., Suite]:
    """suite(deaths, ...): a suite over CASES whose workers are stubs."""

    def make(deaths: dict[str, str] | None = None, starts_badly: bool = False, **options: Any) -> Suite:
        script = tmp_path / "stub.py"
        head = f"LOG, DEATHS, STARTS_BADLY = {str(tmp_path / 'log')!r}, {deaths or {}!r}, {starts_badly}\n"
        script.write_text(head + textwrap.dedent(STUB))
        said: list[str] = []
        found = Suite(
            CASES, tmp_path / "gpu.csv", command=(sys.executable, "-S", str(script)), say=said.append,
            **{"warm": False, "minutes": 2.0, **options},
        )  # fmt: skip
        found.said = said  # type: ignore[attr-defined]
        return found

    return make


def status_of(suite: Suite) -> dict[str, str]:
    return {f"{row['case'].split('-')[1]} {row['provider']}": row["status"] for row in suite.rows}


ALL_OK = {f"{case.label} {provider}": "ok" for case in CASES for provider in ("dense", "ours")}


def test_rows_reach_the_file_with_device_and_load(suite: Callable[..., Suite], tmp_path: Path) -> None:
    one = suite(warm=True)
    one.run()
    assert not one.failed
    assert one.left == []
    assert status_of(one) == ALL_OK
    rows = read_csv(tmp_path / "gpu.csv")
    assert tuple(rows[0]) == COLUMNS
    assert {(row["device"], row["sm_mhz"]) for row in rows} == {("stub", "1980")}
    assert one.rates == Rates(dram=1e12)
    warmed = " ".join((tmp_path / "log").read_text().split())
    assert sorted(warmed.replace("warm ", "").split()) == sorted(case.label for case in CASES)


@pytest.mark.parametrize("death", ["crash", "dead"])
def test_a_provider_that_kills_the_process_costs_itself_alone(death: str, suite: Callable[..., Suite]) -> None:
    one = suite({"two ours": death})
    one.run()
    assert one.failed
    reason = {"crash": "the process died with exit code -11", "dead": "illegal access"}[death]
    assert status_of(one) == ALL_OK | {"two ours": f"failed: {reason}"}
    assert len(one.rows) == 6  # what had been measured of the case is not there twice


def test_a_capture_that_breaks_a_process_is_measured_eagerly(suite: Callable[..., Suite]) -> None:
    one = suite({"two ours": "capture"})
    one.run()
    assert not one.failed
    assert status_of(one) == ALL_OK
    assert {row["how"] for row in one.rows if row["provider"] == "ours" and "two" in row["case"]} == {"eager"}


def test_a_hanging_kernel_is_given_up(suite: Callable[..., Suite]) -> None:
    one = suite({"two ours": "hang"}, step_seconds=0.5)
    one.run()
    assert status_of(one) == ALL_OK | {"two ours": "failed: no answer within 0 s"}


@pytest.mark.parametrize("where", ["inputs", "all"])
def test_a_death_that_no_provider_explains_ends_the_case(where: str, suite: Callable[..., Suite]) -> None:
    one = suite({f"two {where}": "crash"})
    one.run()
    found = status_of(one)
    assert found[f"two {where}"].startswith("failed: the process died")
    assert {name: status for name, status in found.items() if "two" not in name} == {
        name: "ok" for name in ALL_OK if "two" not in name
    }
    assert one.left == []


def test_a_case_that_kills_every_process_is_left_in_the_end(suite: Callable[..., Suite]) -> None:
    one = suite({"one dense": "crash", "one ours": "crash", "one all": "crash"})
    one.run()
    assert set(status_of(one)) == {*ALL_OK, "one all"}
    assert one.left == []


def test_workers_that_never_start_are_not_started_forever(suite: Callable[..., Suite]) -> None:
    one = suite(starts_badly=True)
    one.run()  # the second goes without probes
    assert one.failed
    assert one.problems == ["a worker died before it measured anything: the process died with exit code 7"]
    assert status_of(one) == ALL_OK
    broken = Suite(CASES, None, command=(sys.executable, "-c", "raise SystemExit(5)"), say=lambda _: None, warm=False)
    broken.run()
    assert len(broken.problems) == 3
    assert broken.left == CASES


def test_without_time_nothing_is_begun(suite: Callable[..., Suite]) -> None:
    one = suite(minutes=0.0)
    one.run()
    assert (one.left, one.rows, one.failed) == (CASES, [], False)


def test_the_command_says_what_failed_and_draws_the_rest(suite: Callable[..., Suite], tmp_path: Path) -> None:
    one, said = suite({"two ours": "dead"}), []
    assert command.run(CASES, one.csv, tmp_path / "plots", say=said.append, suite=one) == 1
    assert any(line.startswith("PROBLEM G1-two-") and "illegal access" in line for line in said)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["gpu-ratio.svg"]


def test_a_worker_measures_on_the_cpu_and_tells_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    messages: list[dict[str, Any]] = []
    task = {
        "task": "measure", "device": "cpu", "cases": [CASES[0].to_dict()], "known": {}, "rates": None, "seconds": 0.0,
        "until": 1e12, "probe": [16, 1024],
    }  # fmt: skip
    plain = json.loads(json.dumps(task))
    assert worker.serve(plain, lambda message: messages.append(json.loads(json.dumps(message)))) == 0
    kinds = [next(iter(message)) for message in messages]
    assert kinds[:3] == ["at", "facts", "rates"]
    assert kinds[-2:] == ["load", "done"]
    rows = [message["row"] for message in messages if "row" in message]
    assert {row["provider"] for row in rows} == {"dense", "ours"}
    assert all(row["status"] == "ok" for row in rows)
    late = plain | {"until": 0.0, "rates": {}}
    assert worker.serve(late, lambda message: None) == 0
    assert worker.serve(plain | {"task": "warm"}, lambda message: None) == 0


@pytest.mark.parametrize(("error", "capture"), [(DeadDeviceError("lost"), False), (CaptureError("broke"), True)])
def test_a_worker_that_must_be_replaced_says_why(
    error: Exception, capture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_case(*_: object) -> Any:
        raise error

    monkeypatch.setattr(worker, "measure_case", measure_case)
    messages: list[Any] = []
    task = {
        "task": "measure", "device": "cpu", "cases": [CASES[0].to_dict()], "known": {}, "rates": {}, "seconds": 0.0,
        "until": 1e12,
    }  # fmt: skip
    assert worker.serve(task, messages.append, HostClock()) == 3
    assert messages[-1] == {"dead": f"{type(error).__name__}: {error}", "capture": capture}


def test_every_column_of_a_case_is_a_column_of_the_file() -> None:
    assert set(case_columns(CASES[0])) <= set(COLUMNS)
    assert len(set(COLUMNS)) == len(COLUMNS)


def shell(text: str) -> tuple[str, ...]:
    return ("sh", "-c", text, "-")


@pytest.mark.parametrize(
    ("tests", "suite_", "code"), [("exit 0", "exit 0", 0), ("exit 1", "exit 0", 1), ("exit 0", "exit 1", 1)]
)
def test_a_session_measures_whatever_the_tests_say(
    tests: str, suite_: str, code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    found = session.run(out, 1.0, 1.0, shell(f"echo tested; {tests}"), shell(f'echo measured "$@"; {suite_}'))
    assert found == code
    assert (out / "tests.log").read_text() == "tested\n"
    printed = (out / "suite.log").read_text()
    assert printed.startswith(f"measured --out {out} --minutes 0.")
    assert printed in capfd.readouterr().out


def test_tests_that_take_too_long_are_cut_short(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert session.run(tmp_path, 1.0, 0.01, shell("sleep 60 & sleep 60"), shell("exit 0")) == 1
    assert "tests: were cut short" in capfd.readouterr().out


def test_the_list_needs_no_gpu_and_the_suite_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--list", "--goals", "G2,G4"]) == 0
    listed = capsys.readouterr().out
    assert "G2   blocks of 128" in listed
    assert "G4-vit-l-mlp-bsr64x64-d0.1-bfloat16" in listed
    assert "G1-" not in listed
    assert command.main(["--out", str(tmp_path)]) == 1
    assert "expected an NVIDIA GPU" in capsys.readouterr().err
    assert command.main(["--goals", "G2"]) == 1
    assert "--out: expected a folder" in capsys.readouterr().err

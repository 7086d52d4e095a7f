"""The gate's run over its whole table (`make gpu-compile`): what is compiled once, what is kept, and when it fails."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import kernel_gate_facts
import kernel_gate_run
from kernel_gate_facts import Facts

FACTS = Facts(40, 0, 1024, ("mma m16n8k8",), (16, 16), 0, (16, 16, 4), False)
JOB = ("small", ("sm_80", "reduce", "float32"))


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_gate_facts, "KNOWN", {})


def test_what_is_known_is_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made, learnt = kernel_gate_run.work(JOB)
    assert made.facts.registers > 0
    assert list(learnt.values()) == [made.facts]
    record = tmp_path / "record.jsonl"
    lines = [json.dumps([key, dataclasses.asdict(facts)]) for key, facts in learnt.items()]
    record.write_text("\n".join(lines) + '\n["cut off", {"regi')
    kernel_gate_facts.KNOWN.clear()
    kernel_gate_run.read_record(record)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled once more")

    monkeypatch.setattr(kernel_gate_facts.triton, "compile", never)
    assert kernel_gate_run.work(JOB) == (made, {})
    # Another kernel is not known, and why it does not compile is its fault.
    made, learnt = kernel_gate_run.work(("small", ("sm_80", "reduce", "float16")))
    assert (made, learnt) == ("AssertionError: compiled once more", {})
    assert kernel_gate_run.faults_of(JOB, made) == ["does not compile: AssertionError: compiled once more"]


def test_facts_belong_to_all_that_they_follow_from(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernel_gate import SMALL_KERNELS
    from triton.compiler import ASTSource

    def key(dtype: str = "float32", device: str = "sm_80", warps: int = 4) -> str:
        return kernel_gate_facts.key_of(device, ASTSource(*SMALL_KERNELS["reduce"](dtype)), {"num_warps": warps})

    keys = {key(), key(dtype="float16"), key(device="sm_86"), key(warps=8)}
    assert len(keys) == 4
    assert key() in keys
    monkeypatch.setattr(kernel_gate_facts.triton, "__version__", "99.0")
    assert key() not in keys


@pytest.mark.parametrize(("spills", "code"), [(0, 0), (8, 1)])
def test_it_fails_where_a_rule_is_broken_and_names_what_breaks_it(
    spills: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = kernel_gate_run.kernel_gate.Small
    seen: list[Any] = []

    def compile_all(chosen: Any, workers: int, record: Path) -> dict[int, Any]:
        seen.append((len(chosen), workers, record))
        spilling = dataclasses.replace(FACTS, spills=spills)
        return {number: small(*about, spilling if number == 1 else FACTS) for number, (_, about) in enumerate(chosen)}

    monkeypatch.setattr(kernel_gate_run, "compile_all", compile_all)
    words = ["--match", "reduce", "--match", "sm_80", "-j", "3", "--record", str(tmp_path / "record")]
    assert kernel_gate_run.main(words) == code
    assert seen == [(3, 3, tmp_path / "record")]
    out = capsys.readouterr().out
    if code:
        assert "1 of 3 configurations break a rule" in out
        assert out.count("FAULT: 8 bytes of spilled registers") == 2  # in the table, and below it
    else:
        assert "all 3 configurations keep every rule" in out
    assert kernel_gate_run.main([*words, "--sample", "2"]) == code
    assert seen[1][0] == 2


def test_a_run_that_is_stopped_says_where_to_find_what_it_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kernel_gate_run, "compile_all", stopped)
    assert kernel_gate_run.main(["--match", "reduce", "--record", str(tmp_path / "record")]) == 130
    assert f"kept in {tmp_path / 'record'}" in capsys.readouterr().err


def test_every_job_is_another_one() -> None:
    found = kernel_gate_run.jobs()
    assert len(found) == len(set(found))
    assert {name for name, _ in found} == set(kernel_gate_run.SECTIONS)

"""The cases of the GPU suite on the CPU, at small sizes: every provider runs, is checked, and fails alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from lth_sparse.benchmarks.gpu import layers, measuring, pieces
from lth_sparse.benchmarks.gpu.cases import CASES, GOALS, Case, ordered, select
from lth_sparse.benchmarks.gpu.clock import HostClock
from lth_sparse.benchmarks.gpu.layers import Layer, Skip, layout_for, mask_for
from lth_sparse.benchmarks.gpu.measuring import DeadDeviceError, measure_case, warm_case
from lth_sparse.benchmarks.gpu.rates import ITEM, Rates, ceiling, probe
from lth_sparse.errors import ArgumentError
from lth_sparse.ops.backend import HAS_TRITON

ALL = ("forward", "dx", "dw", "step")
RATES = Rates(8e14, 8e14, 4e14, 5e13, 4e12, 6e12)
LINEAR = Case("G1", "linear", "a", (9, 64, 48), 0.5, (16, 16), dtype="float32", modes=ALL, peers=("masked dense",))
CONV = Case("G8", "conv", "c", (2, 32, 16, 5, 3), 0.5, (8, 8), dtype="float32", modes=("forward", "step"))
SMALL = {
    "linear": replace(LINEAR, peers=("masked dense", "torch BSR", "torch CSR", "dense tf32")),
    "half": replace(LINEAR, dtype="bfloat16", modes=("forward",)),
    "csr": replace(LINEAR, block=None, layout="csr", modes=("forward", "step")),
    "conv": replace(CONV, peers=("dense contiguous", "masked dense")),
    "mlp": Case("G4", "mlp", "m", (6, 16, 64), 0.5, (8, 8), dtype="float32", modes=("forward", "step")),
    "decode": Case("G6", "decode", "d", (1, 1, 32, 64), 0.5, (8, 8), dtype="float32"),
    "planner": Case("G10", "planner", "p", (6, 64, 48), 0.2, (8, 8), dtype="float32", modes=("step",)),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Layers so small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows_of(case: Case, **options: Any) -> list[dict[str, Any]]:
    seen: list[tuple[str, str]] = []
    rows = list(
        measure_case(case, "cpu", HostClock(), RATES, lambda *where: seen.append(where), seconds=0.0, **options)
    )
    assert seen
    return rows


def break_(monkeypatch: pytest.MonkeyPatch, provider: str, error: Exception) -> None:
    """Let one provider of a layer raise when it is built."""
    right = Layer.call

    def call(self: Layer, name: str, mode: str) -> Callable[[], object]:
        if name == provider:
            raise error
        return right(self, name, mode)

    monkeypatch.setattr(Layer, "call", call)


@pytest.mark.parametrize("name", SMALL)
def test_every_provider_has_a_time_a_ratio_and_a_small_error(name: str) -> None:
    case = SMALL[name]
    rows = rows_of(case)
    assert {row["mode"] for row in rows} == set(case.modes)
    for row in rows:
        assert row["status"] == "ok", row
        assert row["median_us"] > 0.0
        assert row["ratio"] > 0.0
        assert row["provider"].startswith("torch ") or row["error"] < (2e-2 if case.dtype == "bfloat16" else 1e-5)
    ours = [row for row in rows if row["provider"].startswith(("ours", "planner"))]
    assert {row["mode"] for row in ours} == set(case.modes)
    assert all(row["dense_error"] > 0.0 for row in ours)
    if case.op in ("linear", "conv"):
        assert all(0.0 < row["share"] < 1.0 for row in ours)


def test_a_warmed_case_runs_and_times_nothing() -> None:
    for case in (SMALL["linear"], SMALL["mlp"], replace(LINEAR, op="memory", modes=("memory",))):
        warm_case(case, "cpu", HostClock())


@pytest.mark.parametrize("broken", ["torch BSR", "ours", "dense"])
def test_a_provider_that_fails_costs_the_others_nothing(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = SMALL["linear"]
    break_(monkeypatch, broken, RuntimeError("no\nluck"))
    rows = rows_of(case)
    failed = [row for row in rows if row["status"] != "ok"]
    assert {(row["provider"], row["status"]) for row in failed} == {(broken, "failed: RuntimeError: no")}
    expected = {provider for mode in case.modes for provider in Layer(case, "cpu").providers(mode)}
    assert {row["provider"] for row in rows} == expected
    assert all(row["median_us"] > 0.0 for row in rows if row["status"] == "ok")
    assert broken != "dense" or all("ratio" not in row for row in rows)


def test_inputs_that_fail_are_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: Case, device: str) -> Layer:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(measuring, "PROBLEMS", {"linear": broken})
    (row,) = rows_of(LINEAR)
    assert (row["provider"], row["status"]) == ("inputs", "failed: RuntimeError: out of memory")
    warm_case(LINEAR, "cpu", HostClock())


def test_wrong_numbers_are_said_and_timed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Layer._ours
    monkeypatch.setattr(Layer, "_ours", lambda self: lambda *tensors: right(self)(*tensors) * 1.01)
    ours = [row for row in rows_of(LINEAR) if row["provider"] == "ours"]
    assert len(ours) == len(ALL)
    assert all(row["status"].startswith("wrong: error ") for row in ours)
    assert all(row["median_us"] > 0.0 for row in ours)


def test_a_check_that_fails_is_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Layer) -> list[torch.Tensor]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Layer, "truth", broken)
    rows = rows_of(LINEAR)
    assert {row["mode"] for row in rows if row["status"].startswith("failed")} == {"check"}
    assert all(row["median_us"] > 0.0 for row in rows if row["mode"] != "check")


def test_the_reference_is_never_timed() -> None:
    rows = rows_of(replace(LINEAR, dtype="float16"))
    ours = [row["status"] for row in rows if row["provider"] == "ours"]
    assert len(ours) == len(ALL)
    assert all(status.startswith("skipped: no kernel for the") for status in ours)
    assert all(row["status"] == "ok" for row in rows if row["provider"] != "ours")


def test_the_dense_layout_counts_where_a_kernel_reads_its_bitmap(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(LINEAR, layout="dense", block=None, modes=("forward",))
    (ours,) = (row for row in rows_of(case) if row["provider"] == "ours")
    assert ours["status"].endswith("torch's dense product would run")

    def backend_of(kind: str, device: str, dtype: object, dims: int, gradients: bool, tokens: int | None = None) -> str:
        return "cuda-triton" if tokens == 9 else "torch"

    monkeypatch.setattr(layers, "backend_of", backend_of)
    (ours,) = (row for row in rows_of(case) if row["provider"] == "ours")
    assert (ours["status"], ours["backend"]) == ("ok", "cuda-triton")


def test_layouts_of_other_versions_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LAYOUTS", {})
    with pytest.raises(Skip, match="no layout 'csr'"):
        layout_for(SMALL["csr"], torch.ones(64, 48, dtype=torch.bool))


def test_channels_last_blocks_are_asked_for_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CONV, layout="bsr channels_last")
    seen: dict[str, Any] = {}

    def with_it(mask: torch.Tensor, block: tuple[int, int], cover: None = None, channels_last: bool = False) -> str:
        seen.update(block=block, channels_last=channels_last)
        return "layout"

    def without(mask: torch.Tensor, block: tuple[int, int], cover: None = None) -> None:
        raise AssertionError("it takes no such blocks")

    monkeypatch.setattr(layers.BSR, "from_mask", staticmethod(with_it))
    assert layout_for(case, mask_for(case)) == "layout"
    assert seen == {"block": (8, 8), "channels_last": True}
    monkeypatch.setattr(layers.BSR, "from_mask", staticmethod(without))
    with pytest.raises(Skip, match="no channels_last blocks"):
        layout_for(case, mask_for(case))


def test_masks_have_the_pattern_of_their_layout() -> None:
    flat = mask_for(LINEAR).view(4, 16, 3, 16).sum((1, 3))
    assert sorted(flat.flatten().tolist()) == [0] * 6 + [256] * 6
    last = mask_for(replace(CONV, layout="bsr channels_last")).permute(0, 2, 3, 1).reshape(4, 8, 18, 8)
    assert set(last.sum((1, 3)).flatten().tolist()) == {0, 64}
    half = mask_for(replace(LINEAR, layout="2:4", block=None))
    assert half.shape == (64, 48)
    assert bool((half.view(64, 12, 4).sum(2) == 2).all())


def test_a_dead_device_ends_the_process_and_says_who(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(HostClock):
        fine = True

        def finish(self) -> None:
            if not self.fine:
                raise RuntimeError("an illegal memory access was encountered")

    clock, where = Dead(), []

    def call(self: Layer, provider: str, mode: str) -> Callable[[], object]:
        clock.fine = False
        raise RuntimeError("illegal access")

    monkeypatch.setattr(Layer, "call", call)
    with pytest.raises(DeadDeviceError, match="illegal access"):
        list(measure_case(LINEAR, "cpu", clock, RATES, lambda *at: where.append(at)))
    assert where[-1] == ("dense", "forward")


def test_what_broke_a_process_is_left_out_or_not_captured() -> None:
    captured: list[bool] = []

    class Noting(HostClock):
        def ready(self, call: Callable[[], object], captured_: bool = True, **options: bool) -> Callable[[], object]:
            captured.append(options.get("captured", captured_))
            return super().ready(call)

    case = replace(LINEAR, modes=("forward",))
    known = {"ours": "failed: it died", "masked dense": "eager"}
    rows = {
        row["provider"]: row for row in measure_case(case, "cpu", Noting(), RATES, lambda *_: None, known, seconds=0.0)
    }
    assert rows["ours"]["status"] == "failed: it died"
    assert "median_us" not in rows["ours"]
    assert captured == [True, False]  # dense, masked dense


def test_memory_is_what_a_step_leaves_allocated() -> None:
    case = Case("G11", "memory", "m", (8, 64, 64), 0.25, (16, 16), dtype="float32", modes=("memory",))
    counts = iter([100, 100 + 4 * 64 * 64 * 4, 50, 50 + 64 * 64 * 4])
    found = pieces.memory_bytes(case, "cpu", lambda: next(counts))
    assert found == {"dense": 4 * 64 * 64 * 4, "ours": 64 * 64 * 4}
    with pytest.raises(Skip, match="counted on a GPU"):
        pieces.memory_bytes(case, "cpu")


def test_the_ceiling_is_the_largest_bound() -> None:
    case = replace(LINEAR, size=(4096, 4096, 4096), dtype="bfloat16", block=(64, 64), density=0.1)
    work = 0.1 * 4096**3
    l2 = 2 * work * (1 / 64 + 1 / 128) / 6e12
    assert ceiling(case, RATES, "forward") == pytest.approx(l2)
    assert ceiling(case, RATES, "step") == pytest.approx(3 * l2)
    decode = replace(case, size=(1, 14336, 4096))
    moved = 2 * (4096 + 14336 + 0.1 * 14336 * 4096)
    assert ceiling(decode, RATES, "forward") == pytest.approx(moved / 4e12, rel=0.01)
    tall = replace(case, block=(64, 16))
    assert ceiling(tall, RATES, "dx") > ceiling(tall, RATES, "forward") == pytest.approx(l2)  # type: ignore[operator]
    assert ceiling(replace(case, op="mlp"), RATES, "forward") is None
    assert ceiling(case, Rates(), "forward") is None
    single = replace(case, layout="csr", block=None, dtype="float32")
    assert ceiling(single, RATES, "forward") == pytest.approx(2 * work / 5e13)


def test_probes_find_rates_and_survive_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, errors = probe(HostClock(), "cpu", 32, 4096)
    assert rates.bfloat16 is not None
    assert rates.dram is not None
    assert set(errors) <= {"l2"}  # Triton's, without a device
    assert "TFLOP/s" in str(rates)
    assert str(Rates()) == "no probe worked"


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_the_probe_of_l2_reads_what_it_says() -> None:
    code = (
        "import torch\nfrom lth_sparse.benchmarks.gpu.read_kernel import read\n"
        "source = torch.arange(64, dtype=torch.float32)\n"
        "print(read(source, torch.empty(3), rounds=4, block=16).tolist())"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    parts = [sum(range(start, start + 16)) for start in range(0, 64, 16)]
    # Program p reads blocks p, p + 3, p + 6 and p + 9 of four, wrapping around.
    assert json.loads(result.stdout) == [float(sum(parts[(p + 3 * i) % 4] for i in range(4))) for p in range(3)]


def test_cases_are_named_once_and_every_goal_comes_early() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {case.goal for case in CASES} == set(GOALS)
    assert {case.goal for case in CASES[:16]} == set(GOALS)
    assert sorted(names) == sorted(case.name for case in ordered(CASES))
    assert all(Case.from_dict(case.to_dict()) == case for case in CASES)
    assert all(case.dtype in ITEM and set(case.modes) <= {*ALL, "memory"} for case in CASES)


def test_cases_are_chosen_by_goal_and_by_glob() -> None:
    assert {case.goal for case in select(["G1", "G7"])} == {"G1", "G7"}
    assert {case.goal for case in select([], ["G8-*float16"])} == {"G8"}
    with pytest.raises(ArgumentError, match="goals: expected some of G1"):
        select(["G12"])
    with pytest.raises(ArgumentError, match="cases: expected names"):
        select([], ["G1-*", "nothing"])


@pytest.mark.gpu
@pytest.mark.parametrize("op", sorted({case.op for case in CASES}))
def test_the_smallest_case_of_each_operator_runs_on_a_device(op: str) -> None:
    from lth_sparse.benchmarks.gpu.clock import DeviceClock

    case = next(case for case in CASES if case.op == op and case.block)
    sizes = {"mlp": (64, 128, 256), "decode": (1, 1, 256, 512), "conv": (2, 128, 128, 8, 3)}
    case = replace(case, size=sizes.get(op, (64, 256, 256)), layout="bsr", block=(32, 32), peers=())
    rows = list(measure_case(case, "cuda", DeviceClock(), RATES, lambda *_: None, seconds=0.0))
    assert {row["provider"] for row in rows} & {"ours", "planner"}
    assert [row for row in rows if not row["status"].startswith(("ok", "skipped"))] == []

"""The tuner with a made-up kernel and a made-up clock: which configuration wins, what is kept, and what is reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lth_sparse.errors import ArgumentError, BackendError
from lth_sparse.kernels import launch, launch_csr, tables
from lth_sparse.kernels.candidates import candidates
from lth_sparse.kernels.launch import Device, Problem, Tile
from lth_sparse.ops import tune_cache, tuning
from lth_sparse.ops.tune_cache import TuneCache
from lth_sparse.ops.tuning import Call, tune_calls

DEVICE = Device("Some GPU", 90, 232448, 132)
PROBLEM = Problem("forward", "float16", (64, 64), 4096, 1024, 1024, 0.1)


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("LTH_SPARSE_CACHE", "1")
    monkeypatch.setenv("LTH_SPARSE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(launch, "_INSTALLED", {})
    launch.forget()
    yield tmp_path / "cache"
    launch.forget()


@dataclass
class Kernel:
    """A kernel that asks for its configuration as a real one does, and takes the seconds that `seconds` says."""

    problem: Problem = PROBLEM
    seconds: Callable[[Tile], float] = lambda tile: 1.0
    result: Callable[[Tile], Tensor] = lambda tile: torch.ones(3)
    launched: list[Tile] = field(default_factory=list)

    def __call__(self) -> Tensor:
        tile = launch.select(DEVICE, self.problem)
        self.launched.append(tile)
        return self.result(tile)

    def clock(self, call: Callable[[], object]) -> list[float]:
        call()
        return [self.seconds(self.launched[-1])] * 3

    def tune(self, **options: Any) -> tuning.TuneReport:
        return tune_calls([Call("kernel", self)], self.clock, **options)


FIRST, BEST, OTHER = candidates(DEVICE, PROBLEM)[:3]


def seconds(tile: Tile) -> float:
    return {FIRST: 1.0, BEST: 0.5}.get(tile, 0.8)


def test_the_fastest_wins_is_stored_and_is_then_launched() -> None:
    kernel = Kernel(seconds=seconds)
    assert launch.select(DEVICE, PROBLEM) == FIRST
    report = kernel.tune()
    (one,) = report.tuned
    assert (one.tile, one.seconds, one.heuristic, one.heuristic_seconds) == (BEST, 0.5, FIRST, 1.0)
    assert one.timed == len(candidates(DEVICE, PROBLEM))
    assert one.speedup == 2.0
    assert launch.select(DEVICE, PROBLEM) == BEST
    # Another process, which finds it on the disk, and a problem nearby.
    launch._INSTALLED.clear()
    launch.forget()
    assert launch.select(DEVICE, PROBLEM) == FIRST
    tune_cache.load(DEVICE)
    assert launch.select(DEVICE, PROBLEM) == launch.select(DEVICE, replace(PROBLEM, tokens=2000)) == BEST
    assert launch.select(replace(DEVICE, name="Another GPU"), PROBLEM) == FIRST
    assert report.path == TuneCache.of(DEVICE).path
    assert report.path.exists()


@pytest.mark.parametrize("product", launch.CSR_PRODUCTS)
def test_launches_of_unstructured_weights_are_tuned_stored_and_found_alike(product: str) -> None:
    problem = Problem(product, "float32", (1, 1), 100, 512, 300, 0.1)
    first, best = candidates(DEVICE, problem)[:2]
    launched: list[Any] = []

    def run() -> Tensor:
        launched.append(launch_csr.select(DEVICE, problem))
        return torch.ones(3)

    def clock(call: Callable[[], object]) -> list[float]:
        call()
        return [0.5 if launched[-1] == best else 1.0]

    assert launch_csr.select(DEVICE, problem) == first == launch_csr.heuristic(DEVICE, problem)
    (one,) = tune_calls([Call("kernel", run)], clock).tuned
    assert (one.tile, one.heuristic, one.wrong, one.skipped) == (best, first, (), ())
    assert one.timed == len(candidates(DEVICE, problem))
    launch._INSTALLED.clear()
    launch.forget()
    assert launch_csr.select(DEVICE, problem) == first
    tune_cache.load(DEVICE)
    near = replace(problem, tokens=120, density=0.11)
    assert launch_csr.select(DEVICE, problem) == launch_csr.select(DEVICE, near) == best
    far = replace(problem, tokens=1)
    assert launch_csr.select(DEVICE, far) == launch_csr.heuristic(DEVICE, far)


def test_a_table_to_ship_holds_configurations_of_every_kind(tmp_path: Path) -> None:
    csr = Problem("csr_weight_gradient", "float32", (1, 1), 100, 512, 300, 0.1)
    tiles = {PROBLEM.bucket: BEST, csr.bucket: launch_csr.heuristic(DEVICE, csr)}
    launch.table_path(DEVICE.name, tmp_path).write_text(tables.written({}, tiles))
    assert launch.read_table(DEVICE.name, tmp_path) == tiles
    crooked = {csr.bucket: replace(tiles[csr.bucket], entries=24)}
    launch.table_path("crooked", tmp_path).write_text(tables.written({}, crooked))
    with pytest.raises(ValueError, match=r"csr_weight_gradient.*: entries: expected a power of two, got 24"):
        launch.read_table("crooked", tmp_path)


def test_a_wrong_result_never_wins() -> None:
    kernel = Kernel(seconds=seconds, result=lambda tile: torch.ones(3) + (0.1 if tile == BEST else 0.0))
    (one,) = kernel.tune().tuned
    assert one.tile == OTHER
    assert [tile for tile, _ in one.wrong] == [BEST]
    assert one.wrong[0][1] > 1.0
    assert "1 WRONG" in str(one)
    assert launch.select(DEVICE, PROBLEM) == OTHER
    assert kernel.launched.count(BEST) == 1  # and was not even timed


@pytest.mark.parametrize(
    "result",
    [
        torch.tensor([1.0, 1.0, float("nan")]),
        torch.tensor([1.0, 1.0, float("inf")]),
        torch.ones(2),
        torch.ones(3, dtype=torch.float64),
        torch.zeros(3),
    ],
)
def test_what_counts_as_wrong(result: Tensor) -> None:
    (one,) = Kernel(seconds=seconds, result=lambda tile: result if tile == BEST else torch.ones(3)).tune().tuned
    assert [tile for tile, _ in one.wrong] == [BEST]


def test_rounding_is_right() -> None:
    for dtype, error in ((torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float32, 1e-5)):
        truth = torch.ones(3, dtype=dtype)
        assert tuning.deviation([truth * (1 + error)], [truth]) < 1.0
        assert tuning.deviation([truth * (1 + 50 * error)], [truth]) > 1.0
    empty, nothing = torch.empty(0), torch.zeros(2)
    assert tuning.deviation([empty, nothing], [empty, nothing]) == 0.0


def test_memory_is_poisoned_before_a_configuration_may_find_a_right_result_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    filled: list[int] = []
    full_like = torch.full_like

    def watched(like: Tensor, value: float) -> Tensor:
        assert value != value
        filled.append(len(kernel.launched))
        return full_like(like, value)

    monkeypatch.setattr(torch, "full_like", watched)
    kernel = Kernel(seconds=seconds)
    kernel.tune(limit=4)
    # One launch asks what there is, then each configuration is run for its result and once for its time.
    assert filled == [3, 5, 7]


def unfit_errors() -> list[Exception]:
    found: list[Exception] = [ValueError("no such kernel"), RuntimeError("PassManager::run failed")]
    try:
        from triton.runtime.errors import OutOfResources
    except ImportError:
        return found
    return [*found, OutOfResources(300000, 232448, "shared memory")]


@pytest.mark.parametrize("error", unfit_errors(), ids=lambda error: type(error).__name__)
def test_a_configuration_that_cannot_run_is_skipped_and_reported(error: Exception) -> None:
    def result(tile: Tile) -> Tensor:
        if tile == BEST:
            raise error
        return torch.ones(3)

    report = Kernel(seconds=seconds, result=result).tune()
    (one,) = report.tuned
    assert one.tile == OTHER
    ((tile, reason),) = one.skipped
    assert tile == BEST
    assert reason.startswith(type(error).__name__)
    assert "1 skipped" in str(report)
    assert reason in str(report)


@pytest.mark.parametrize("error", [RuntimeError("an illegal memory access was encountered"), TypeError("a bug")])
def test_any_other_failure_is_not_hidden(error: Exception) -> None:
    def result(tile: Tile) -> Tensor:
        if tile == BEST:
            raise error
        return torch.ones(3)

    with pytest.raises(type(error), match=str(error)):
        Kernel(result=result).tune()


def test_a_heuristic_that_does_not_run_is_an_error() -> None:
    def result(tile: Tile) -> Tensor:
        if kernel.launched[1:]:  # the first launch only asks what there is
            raise ValueError("too large")
        return torch.ones(3)

    kernel = Kernel(result=result)
    with pytest.raises(BackendError, match=r"forward/float16/.* does not run: ValueError: too large"):
        kernel.tune()


def test_noise_does_not_replace_the_heuristic() -> None:
    (one,) = Kernel(seconds=lambda tile: 1.0 if tile == FIRST else 0.99).tune().tuned
    assert one.tile == FIRST
    assert "heuristic kept" in str(one)
    # One lucky time is not enough either: the fastest are timed again.
    lucky = iter([1.0, 0.1])
    (one,) = Kernel(seconds=lambda tile: next(lucky, 1.0)).tune(again=True).tuned
    assert one.tile == FIRST


def test_what_is_stored_is_tuned_again_only_when_asked() -> None:
    kernel = Kernel(seconds=seconds)
    kernel.tune()
    count = len(kernel.launched)
    report = kernel.tune()
    assert (report.tuned, report.stored) == ((), 1)
    assert "1 launches had been tuned before" in str(report)
    assert len(kernel.launched) == count + 1
    assert len(kernel.tune(again=True).tuned) == 1


def test_one_bucket_is_tuned_once_and_each_launch_of_a_call_by_itself() -> None:
    other = Kernel(replace(PROBLEM, product="input_gradient"), seconds)
    same = Kernel(replace(PROBLEM, tokens=4000), seconds)
    first = Kernel(seconds=seconds)
    both = Call("both", lambda: [first(), other()])
    report = tune_calls([both, Call("same", same)], lambda call: [call() is None or 1.0])
    assert [one.problem for one in report.tuned] == [first.problem, other.problem]
    assert len(same.launched) == 1


def test_the_cache_of_another_version_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(seconds=seconds).tune()
    assert TuneCache.of(DEVICE).tiles() == {PROBLEM.bucket: BEST}
    for name in ("lth_sparse", "kernels", "torch", "triton"):
        with monkeypatch.context() as patch:
            now = tune_cache.versions()
            assert now[name]
            patch.setattr(tune_cache, "versions", lambda now=now, name=name: {**now, name: "another"})
            assert TuneCache.of(DEVICE).tiles() == {}


def test_a_damaged_file_is_named_and_written_anew(directory: Path) -> None:
    Kernel(seconds=seconds).tune()
    path = TuneCache.of(DEVICE).path
    assert path.parent == directory
    assert path.name.startswith("tune-")
    path.write_text('{"half')
    with pytest.warns(UserWarning, match=rf"{path.name}: ignoring a damaged cache of the tuner"):
        tune_cache.load(DEVICE)
    with pytest.warns(UserWarning, match="ignoring a damaged cache of the tuner"):
        Kernel(seconds=seconds).tune()
    assert TuneCache.of(DEVICE).tiles() == {PROBLEM.bucket: BEST}


@pytest.mark.parametrize("tile", [None, {}, {"block_m": 64}, {"colour": 1}, {**tables.entry_of(BEST), "block_n": 128}])
def test_a_damaged_entry_is_named_and_left_out(tile: Any) -> None:
    Kernel(seconds=seconds).tune()
    cache = TuneCache.of(DEVICE)
    content = json.loads(cache.path.read_text())
    content["entries"][PROBLEM.key]["value"]["tile"] = tile
    cache.path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="ignoring the damaged entry 'forward/float16"):
        assert cache.tiles() == {}


def test_with_the_cache_off_winners_serve_this_process_alone(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setenv("LTH_SPARSE_CACHE", "0")
    report = Kernel(seconds=seconds).tune()
    assert report.path is None
    assert "for this process alone" in str(report)
    assert launch.select(DEVICE, PROBLEM) == BEST
    tune_cache.load(DEVICE)
    assert launch.select(DEVICE, PROBLEM) == BEST
    assert not directory.exists()


def test_progress_ends_at_one_and_names_what_is_next() -> None:
    seen: list[tuple[float, str]] = []
    Kernel(seconds=seconds).tune(progress=lambda share, words: seen.append((share, words)))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert seen[0][1] == f"kernel, {PROBLEM.key}"


def test_mistakes_are_named() -> None:
    with pytest.raises(ArgumentError, match="limit: expected an int of at least 2, got 1"):
        Kernel().tune(limit=1)
    with pytest.raises(ArgumentError, match="calls: expected layers that run by Triton kernels"):
        tune_calls([Call("dense", lambda: torch.ones(1))], lambda call: [1.0])
    with pytest.raises(ArgumentError, match="kernel: expected a call with finite results"):
        Kernel(result=lambda tile: torch.tensor([float("inf")])).tune()
    assert len(Kernel(seconds=seconds).tune(limit=2).tuned) == 1


def test_what_is_exported_is_a_table_to_ship(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="--export: expected tuned configurations of Some GPU, got none in"):
        tune_cache.exported(DEVICE)
    Kernel(seconds=seconds).tune()
    path = launch.table_path(DEVICE.name, tmp_path)
    path.write_text(tune_cache.exported(DEVICE))
    assert launch.read_table(DEVICE.name, tmp_path) == {PROBLEM.bucket: BEST}
    content = json.loads(path.read_text())
    assert (content["device"], content["family"]) == ("Some GPU", "sm-90")
    assert {"date", "lth_sparse", "torch", "triton"} <= set(content)

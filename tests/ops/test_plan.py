"""The planner takes what measured fastest, ties go to the dense layout, and the engine's path measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lth_sparse.errors import ArgumentError
from lth_sparse.ops import cost, plan, use_backend
from lth_sparse.ops.measure import Timing

Timings = dict[str, Timing]


def case(density: float, shape: tuple[int, ...] = (64, 48)) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape), torch.rand(shape) < density


def blocks(shape: tuple[int, int], block: tuple[int, int], share: float) -> torch.Tensor:
    return cost.random_mask(shape, share, block, torch.Generator().manual_seed(0))


def measured(monkeypatch: pytest.MonkeyPatch, timings: Timings) -> list[dict[str, Any]]:
    """Let `measure` return `timings`; the list collects the keyword arguments of its calls."""
    calls: list[dict[str, Any]] = []

    def measure(weight: object, layouts: dict[str, object], *_: object, **keywords: Any) -> Timings:
        calls.append(keywords | {"kinds": list(layouts)})
        return {name: timings[name] for name in ("torch", "masked", *layouts)}

    monkeypatch.setattr(plan, "measure", measure)
    return calls


@pytest.fixture
def cache_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LTH_SPARSE_CACHE", "1")
    monkeypatch.setenv("LTH_SPARSE_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def bsr_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a kernel for blocks exists."""

    def backend_of(kind: str, *_: object, **__: object) -> str:
        return "torch" if kind == "dense" else "cpu-fast"

    monkeypatch.setattr(plan, "backend_of", backend_of)


def test_without_pruning_the_layer_stays_dense() -> None:
    weight, _ = case(1)
    choice = plan.choose_layout(weight, torch.ones_like(weight, dtype=torch.bool))
    assert (choice.kind, choice.note) == ("dense", "nothing pruned")


@pytest.mark.parametrize(
    ("density", "shape", "kind"),
    [
        (0.05, (64, 48), "csr"),
        (0.95, (64, 48), "csr"),  # few weights: the call decides, not the arithmetic
        (0.85, (128, 96), "csr"),
        (0.99, (128, 96), "dense"),
        (0.75, (512, 256), "dense"),
        (0.65, (512, 256), "csr"),
        (0.65, (1024, 512), "dense"),
        (0.55, (1024, 512), "csr"),
        (0.75, (16, 8, 3, 3), "dense"),
        (0.3, (16, 8, 3, 3), "csr"),
    ],
)
def test_without_a_sample_density_decides_and_no_speedup_is_claimed(
    density: float, shape: tuple[int, ...], kind: str
) -> None:
    choice = plan.choose_layout(*case(density, shape))
    assert choice.kind == kind
    assert choice.speedup_forward is None
    assert choice.speedup_backward is None
    assert choice.over_masked is None


def test_without_a_sample_nothing_is_measured_and_no_cache_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the search for a ticket has to resume bit for bit")

    monkeypatch.setattr(plan, "measure", refuse)
    monkeypatch.setattr(plan, "predict", refuse)
    monkeypatch.setattr(plan.PlanCache, "of", refuse)
    assert plan.choose_layout(*case(0.3)).kind == "csr"


def test_where_no_kernel_exists_the_layer_stays_dense() -> None:
    weight, mask = case(0.05)
    assert plan.choose_layout(weight.half(), mask).note == "no kernel for torch.float16 on cpu"
    with use_backend("reference"):
        choice = plan.choose_layout(weight, mask)
    assert (choice.kind, choice.note) == ("dense", "no kernel for torch.float32 on cpu")


def test_where_gradients_have_no_kernel_only_a_measurement_makes_a_layer_sparse() -> None:
    weight, mask = case(0.05)
    choice = plan.choose_layout(weight.bfloat16(), mask)
    note = "not measured, and no kernel for the gradients in torch.bfloat16 on cpu"
    assert (choice.kind, choice.note) == ("dense", note)
    assert plan.fast_kinds(("csr", "bsr"), weight.bfloat16()) == ["csr", "bsr"]


@pytest.mark.usefixtures("bsr_is_fast")
@pytest.mark.parametrize(
    ("mask", "block", "kind"),
    [
        (blocks((64, 64), (8, 8), 0.25), (8, 8), "bsr"),
        (blocks((64, 64), (4, 1), 0.25), (4, 1), "bsr"),
        (blocks((64, 64), (8, 8), 0.25), (2, 8), "csr"),  # too few rows to gain
        (blocks((64, 64), (1, 1), 0.25), (8, 8), "csr"),  # nearly all of each block is padding
        (blocks((256, 256), (8, 8), 0.75), (8, 8), "dense"),
    ],
)
def test_without_a_sample_bsr_is_taken_where_it_stores_little_more(
    mask: torch.Tensor, block: tuple[int, int], kind: str
) -> None:
    choice = plan.choose_layout(torch.randn(mask.shape), mask, block=block, kinds=("csr", "bsr", "dense"))
    assert (choice.kind, choice.block) == (kind, block if kind == "bsr" else None)


@pytest.mark.parametrize("fastest", ["csr", "dense"])
def test_the_measured_training_step_decides(fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = Timing(1.0, 4.0), Timing(2.0, 3.0)
    measured(monkeypatch, {"torch": Timing(3.0, 9.0), "masked": slow, "csr": slow, "dense": slow} | {fastest: fast})
    choice = plan.choose_layout(*case(0.5), sample=torch.randn(4, 48))
    assert choice.kind == fastest
    assert (choice.speedup_forward, choice.speedup_backward) == (1.5, 6.0)
    assert choice.over_masked == 0.75


@pytest.mark.parametrize(
    ("csr", "dense", "kind"),
    [
        (Timing(1, 0.99), Timing(1, 1.0), "dense"),  # a tie
        (Timing(1, 0.97), Timing(1, 1.0), "csr"),
        (Timing(1, 0.9, noise=0.04), Timing(1, 1.0, noise=0.04), "dense"),  # within what the medians are uncertain by
        (Timing(1, 0.9, noise=0.02), Timing(1, 1.0, noise=0.02), "csr"),
        (Timing(1, 1.2), Timing(1, 1.0), "dense"),
    ],
)
def test_a_tie_goes_to_the_dense_layout(csr: Timing, dense: Timing, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, {"torch": dense, "masked": dense, "csr": csr, "dense": dense})
    assert plan.choose_layout(*case(0.5), sample=torch.randn(4, 48)).kind == kind


@pytest.mark.usefixtures("bsr_is_fast")
def test_bsr_is_measured_when_a_block_is_given_and_wins_when_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    times = dict.fromkeys(("torch", "masked", "csr", "dense"), Timing(1.0, 2.0)) | {"bsr": Timing(0.1, 0.5)}
    calls = measured(monkeypatch, times)
    options = {"sample": torch.randn(4, 48), "block": (4, 4), "kinds": ("csr", "bsr", "dense")}
    choice = plan.choose_layout(*case(0.5), **options)
    assert (choice.kind, choice.block) == ("bsr", (4, 4))
    assert calls[0]["kinds"] == ["csr", "bsr", "dense"]


def test_a_choice_slower_than_masked_dense_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Timing(1.0, 2.0)
    measured(monkeypatch, {"torch": one, "masked": one, "csr": Timing(1.0, 2.6), "dense": Timing(1.0, 2.5)})
    choice = plan.choose_layout(*case(0.5), sample=torch.randn(4, 48))
    assert choice.kind == "dense"
    assert choice.note == "measured: no kernel beats dense here, 25% over masked dense"


@pytest.mark.usefixtures("cache_on")
def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Timing(1.0, 2.0)
    calls = measured(monkeypatch, {"torch": one, "masked": one, "csr": Timing(0.5, 1.0), "dense": one})
    weight, mask = case(0.3)
    x = torch.randn(4, 48)
    first = plan.choose_layout(weight, mask, sample=x)
    assert plan.choose_layout(weight * 2, mask, sample=x + 1) == first  # numbers do not matter
    assert len(calls) == 1
    others: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]] = [
        (weight, mask & (torch.rand(mask.shape) < 0.5), {"sample": x}),
        (weight, mask, {"sample": torch.randn(5, 48)}),
        (weight, mask, {"sample": x, "input_gradient": False}),
        (weight, mask, {"sample": x, "bias": torch.randn(64)}),
        (weight, mask, {"sample": x.t().contiguous().t()}),
        (weight, mask, {"sample": x, "kinds": ("csr",)}),
        (weight.double(), mask, {"sample": x.double()}),
    ]
    for count, (other, pruned, options) in enumerate(others, start=2):
        plan.choose_layout(other, pruned, **options)
        assert len(calls) == count


@pytest.mark.usefixtures("cache_on")
def test_a_mask_of_whole_rows_is_another_than_a_scattered_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Timing(1.0, 2.0)
    calls = measured(monkeypatch, dict.fromkeys(("torch", "masked", "csr", "dense"), one))
    rows, x = torch.arange(64)[:, None].expand(64, 48) < 16, torch.randn(4, 48)
    scattered = torch.arange(64 * 48).view(64, 48) % 4 == 0
    for mask in (rows, scattered):
        plan.choose_layout(torch.randn(64, 48), mask, sample=x)
    assert len(calls) == 2


@pytest.mark.usefixtures("cache_on")
def test_times_of_another_number_of_threads_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Timing(1.0, 2.0)
    calls = measured(monkeypatch, dict.fromkeys(("torch", "masked", "csr", "dense"), one))
    weight, mask = case(0.3)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            plan.choose_layout(weight, mask, sample=torch.ones(4, 48))
    finally:
        torch.set_num_threads(threads)
    assert len(calls) == 2


@pytest.fixture
def coefficients(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A calibration without measurements: csr costs 2 ns a product, everything else 1; the list collects families."""
    made: list[str] = []

    def calibrate(family: str, kinds: list[str], *_: object) -> dict[str, cost.Coefficients]:
        made.append(family)
        costs = {kind: (1e-6, 2e-3 if kind == "csr" else 1e-3, 0, 0, 0, 0, 0, 0) for kind in ("torch", *kinds)}
        return {kind: dict.fromkeys(cost.PASSES, weights) for kind, weights in costs.items()}

    monkeypatch.setattr(cost, "calibrate", calibrate)
    monkeypatch.setattr(plan, "_CALIBRATED", {})
    return made


@pytest.mark.parametrize(("density", "kind"), [(0.2, "csr"), (0.45, "dense"), (0.8, "dense")])
def test_with_a_shape_alone_the_cost_model_decides(density: float, kind: str, coefficients: list[str]) -> None:
    """Break-even is at 50%; the model must see a clear gain, so 45% stays dense."""
    weight = torch.randn(64, 64)
    mask = cost.random_mask((64, 64), density, None, torch.Generator().manual_seed(0))
    choice = plan.choose_layout(weight, mask, input_shape=(256, 64))
    assert (choice.kind, choice.note) == (kind, "by the cost model, not measured")
    assert choice.speedup_forward is None
    plan.choose_layout(weight, mask, input_shape=(128, 64))
    assert coefficients == ["linear"]  # once in a process, even without a cache


@pytest.mark.usefixtures("cache_on")
def test_a_calibration_is_kept_on_disk(coefficients: list[str]) -> None:
    first = plan.predict(torch.randn(64, 64), {"csr": 400}, (256, 64))
    plan._CALIBRATED.clear()
    assert plan.predict(torch.randn(64, 64), {"csr": 400}, (256, 64)) == first
    assert coefficients == ["linear"]
    plan.predict(torch.randn(64, 64), {"csr": 400, "dense": 64 * 64}, (256, 64))  # one more kind
    plan.predict(torch.randn(8, 4, 3, 3), {"csr": 20}, (2, 4, 8, 8), {"padding": 1})
    assert coefficients == ["linear", "linear", "conv"]


@pytest.mark.usefixtures("cache_on")
def test_a_calibration_that_is_none_is_made_again(
    coefficients: list[str], cache_on: Path, recwarn: pytest.WarningsRecorder
) -> None:
    plan.predict(torch.randn(64, 64), {"csr": 400}, (256, 64))
    (file,) = cache_on.glob("plan-*.json")
    file.write_text(file.read_text().replace("0.002", '"fast"'))
    plan._CALIBRATED.clear()
    with pytest.warns(UserWarning, match="ignoring the damaged entry 'model linear csr"):
        plan.predict(torch.randn(64, 64), {"csr": 400}, (256, 64))
    assert coefficients == ["linear", "linear"]


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(ArgumentError, match="kinds: expected some of"):
        plan.choose_layout(*case(0.5), kinds=("coo",))


def test_remembered_takes_the_cache_only_when_it_holds_all_names(cache_on: Path) -> None:
    cache = plan.PlanCache.of(torch.device("cpu"))
    one, runs = Timing(1.0, 2.0, None, 0.5, 0.01), []

    def run(*names: str) -> Callable[[], Timings]:
        def timings() -> Timings:
            runs.append(names)
            return dict.fromkeys(names, one)

        return timings

    assert plan.remembered(cache, "key", ("a",), run("a")) == {"a": one}
    assert plan.remembered(cache, "key", ("a",), run("a")) == {"a": one}
    with pytest.warns(UserWarning, match="not the timings asked for"):
        assert plan.remembered(cache, "key", ("a", "b"), run("a", "b")) == {"a": one, "b": one}
    assert runs == [("a",), ("a", "b")]

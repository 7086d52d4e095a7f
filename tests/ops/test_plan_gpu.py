"""On a GPU nothing was measured beforehand: without a sample a layer stays dense unless derived limits are clear."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lth_sparse.errors import ArgumentError
from lth_sparse.ops import backend_of, cost, plan, plan_cache
from lth_sparse.ops.gpu_limits import gpu_break_even
from lth_sparse.ops.measure import Timing
from lth_sparse.ops.plan import choose_layout, predict


class OnGPU(torch.Tensor):
    """Says that it is on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def on_gpu(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype).as_subclass(OnGPU)


def blocks(shape: tuple[int, ...], side: int, share: float) -> torch.Tensor:
    return cost.random_mask(shape, share, (side, side), torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU with Triton kernels for blocks and for single weights."""

    def fast(kind: str, *_: object, **__: object) -> str:
        return "torch" if kind == "dense" else "cuda-triton"

    monkeypatch.setattr(plan, "backend_of", fast)


def choose(shape: tuple[int, ...], side: int, share: float, **options: Any) -> plan.Choice:
    options = {"block": (side, side), "kinds": ("csr", "bsr", "dense")} | options
    return choose_layout(on_gpu(*shape), blocks(shape, side, share), **options)


@pytest.mark.parametrize(
    ("shape", "side", "share", "kind"),
    [
        ((1024, 1024), 64, 0.1, "bsr"),
        ((1024, 1024), 64, 0.3, "dense"),  # a careful kernel might win: not clear
        ((1024, 1024), 32, 0.1, "bsr"),
        ((1024, 1024), 32, 0.2, "dense"),
        ((1024, 1024), 16, 0.05, "bsr"),
        ((1024, 1024), 16, 0.1, "dense"),
        ((1024, 1024), 8, 0.01, "dense"),  # no limit was derived for blocks so small
        ((512, 512), 64, 0.05, "dense"),  # writing the outputs bounds it
        ((256, 128, 3, 3), 64, 0.1, "bsr"),
        ((256, 64, 3, 3), 64, 0.1, "dense"),
        ((2048, 2048, 1, 1), 64, 0.05, "dense"),
    ],
)
def test_blocks_are_taken_only_where_derived_limits_are_clear(
    shape: tuple[int, ...], side: int, share: float, kind: str
) -> None:
    choice = choose(shape, side, share)
    assert (choice.kind, choice.block) == (kind, (side, side) if kind == "bsr" else None)
    assert "not measured" in choice.note
    assert "derived" in choice.note
    assert choice.speedup_forward is choice.speedup_backward is choice.over_masked is None


def test_single_weights_stay_dense_unless_the_user_measured() -> None:
    mask = torch.rand(1024, 1024, generator=torch.Generator().manual_seed(0)) < 0.01
    assert choose_layout(on_gpu(1024, 1024), mask).kind == "dense"
    assert choose_layout(on_gpu(1024, 1024), mask, break_even=0.1).kind == "csr"
    assert choose_layout(on_gpu(1024, 1024), mask, kinds=("csr",)).note == "not measured on this GPU"


def test_nothing_is_measured_and_the_cost_model_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it describes CPUs")

    for name in ("measure", "predict"):
        monkeypatch.setattr(plan, name, refuse)
    monkeypatch.setattr(plan.PlanCache, "of", refuse)
    assert choose((1024, 1024), 64, 0.1).kind == "bsr"
    assert choose((1024, 1024), 64, 0.1, input_shape=(4096, 1024)).kind == "bsr"


def test_the_cost_model_refuses_a_gpu() -> None:
    with pytest.raises(ArgumentError, match="weight: expected a tensor on the CPU for the cost model, got one on cuda"):
        predict(on_gpu(64, 64), {"csr": 100}, (4, 64))


def test_with_a_sample_the_measurement_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(weight: object, layouts: dict[str, object], *_: object, **__: object) -> dict[str, Timing]:
        return {name: Timing(1.0, 1.0 if name == "bsr" else 2.0) for name in ("torch", "masked", *layouts)}

    monkeypatch.setattr(plan, "measure", measure)
    monkeypatch.setattr(plan_cache, "environment", lambda device: {"gpu": str(device)})
    choice = choose((512, 512), 16, 0.5, sample=torch.zeros(4, 512), kinds=("bsr", "dense"))
    assert (choice.kind, choice.note, choice.over_masked) == ("bsr", "measured", 0.5)


def test_empty_weights_have_no_break_even() -> None:
    assert gpu_break_even(torch.empty(0, 8), (64, 64)) == 0.0
    assert gpu_break_even(torch.empty(8, 0), (64, 64)) == 0.0


def test_a_gpus_cache_names_the_device_and_every_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = plan_cache.environment(torch.device("cuda"))
    assert found["gpu"].startswith("Test GPU, 9.0, ")
    assert found["torch"] == torch.__version__
    assert set(found) == {"processor", "generation", "lth_sparse", "gpu", "triton", "build", "torch"}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert plan_cache.environment(torch.device("cuda")) == found  # threads are nothing to it
    finally:
        torch.set_num_threads(threads)


def test_other_kernels_make_other_times_of_a_gpu(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest() -> str:
        plan_cache._kernel_sources.cache_clear()
        return plan_cache._kernel_sources()

    (tmp_path / "__init__.py").touch()
    (tmp_path / "tables").mkdir()
    monkeypatch.setattr(plan_cache.kernels, "__file__", str(tmp_path / "__init__.py"))
    found = [digest()]
    (tmp_path / "bsr.py").write_text("1")
    found.append(digest())
    (tmp_path / "tables" / "test.json").write_text("{}")
    found.append(digest())
    monkeypatch.undo()
    assert len({*found, digest()}) == 4


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_layer_on_a_gpu_is_measured_there(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "backend_of", backend_of)  # the real one
    mask = blocks((256, 256), 32, 0.2).cuda()
    weight = torch.randn(256, 256, device="cuda", dtype=dtype)
    sample = torch.randn(512, 256, device="cuda", dtype=dtype)
    choice = choose_layout(weight, mask, sample=sample, block=(32, 32), kinds=("bsr", "dense"))
    assert choice.note.startswith("measured")
    assert choice.speedup_forward is not None
    assert choice.speedup_forward > 0.0
    assert choice.over_masked is not None

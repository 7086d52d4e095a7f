"""Every candidate of a launch gives the heuristic's result, through the operators as the tuner calls them; and a whole
tuning with a clock that is made up. Launched by test_candidates.py, see kernel_cases.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, INTERPRETED, SMALL
from kernel_cases import patched_interpreter as patched_interpreter  # every case uses this fixture

from lth_sparse.formats import BSR, CSR
from lth_sparse.kernels import launch
from lth_sparse.kernels.candidates import candidates
from lth_sparse.kernels.trials import current, trial
from lth_sparse.ops import cuda, cuda_conv, cuda_csr
from lth_sparse.ops.tune_cache import TuneCache
from lth_sparse.ops.tuning import Call, deviation, tune_calls

TRIED = 5


@pytest.fixture(autouse=True)
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted kernels run on CPU tensors, which have no device to ask."""
    torch.manual_seed(0)
    if INTERPRETED:
        monkeypatch.setattr(cuda, "_device", lambda index: SMALL)
        monkeypatch.setattr(cuda_csr, "_device", lambda index: SMALL)


def linear_calls(m: int, n: int, k: int, block: tuple[int, int], dtype: torch.dtype) -> list[Call]:
    layout, x, values, bias = parts((n, k), block, (m, k), dtype)
    grad, index, shape = torch.randn(m, n, dtype=dtype, device=DEVICE), list(layout.index), list(layout.shape)
    return [
        Call("forward", lambda: cuda._linear(x, values, bias, index, shape)),
        Call("dx", lambda: cuda._linear_backward(grad, x, values, index, shape, [True, False, False])),
        Call("dw", lambda: cuda._linear_backward(grad, x, values, index, shape, [False, True, False])),
    ]


def conv_calls(block: tuple[int, int], dtype: torch.dtype) -> list[Call]:
    layout, x, values, bias = parts((20, 6, 3, 2), block, (1, 12, 4, 3), dtype)
    grad, index, shape = torch.randn(1, 20, 2, 2, dtype=dtype, device=DEVICE), list(layout.index), list(layout.shape)
    conv: Any = ([2, 2], [1, 1], [1, 1], 2)
    return [
        Call("forward", lambda: cuda_conv._conv2d(x, values, bias, index, shape, *conv)),
        Call("dx", lambda: cuda_conv._conv2d_backward(grad, x, values, index, shape, *conv, [True, False, False])),
        Call("dw", lambda: cuda_conv._conv2d_backward(grad, x, values, index, shape, *conv, [False, True, False])),
    ]


def parts(weight: tuple[int, ...], block: tuple[int, int], x: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Layout, input, values and bias of a layer with half of its blocks."""
    rows, cols = weight[0], torch.Size(weight[1:]).numel()
    kept = torch.rand(-(-rows // block[0]), -(-cols // block[1])) < 0.5
    kept[0, 0] = True
    mask = kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :cols].reshape(weight)
    layout = BSR.from_mask(mask, block)
    values = layout.gather(torch.randn(weight)).to(DEVICE, dtype)
    return layout.to(DEVICE), torch.randn(x).to(DEVICE, dtype), values, torch.randn(rows).to(DEVICE, dtype)


def csr_calls(m: int, n: int, k: int, dtype: torch.dtype) -> list[Call]:
    mask = torch.rand(n, k) < 0.3
    mask[0] = False
    layout = CSR.from_mask(mask)
    values = layout.gather(torch.randn(n, k)).to(DEVICE, dtype)
    index, shape = list(layout.to(DEVICE).index), list(layout.shape)
    x, grad, bias = (torch.randn(size).to(DEVICE, dtype) for size in ((m, k), (m, n), (n,)))
    return [
        Call("forward", lambda: cuda_csr._linear(x, values, bias, index, shape)),
        Call("dx", lambda: cuda_csr._linear_backward(grad, x, values, index, shape, [True, False, False])),
        Call("dw", lambda: cuda_csr._linear_backward(grad, x, values, index, shape, [False, True, False])),
    ]


CALLS: dict[str, Callable[[], list[Call]]] = {
    "linear float32": lambda: linear_calls(19, 50, 30, (32, 16), torch.float32),
    "linear float16": lambda: linear_calls(17, 16, 40, (16, 32), torch.float16),
    "conv float32": lambda: conv_calls((16, 8), torch.float32),
    "CSR float32": lambda: csr_calls(18, 9, 24, torch.float32),
    "CSR of few tokens, float16": lambda: csr_calls(3, 9, 24, torch.float16),
}


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_candidates_give_the_heuristics_result(calls: Callable[[], list[Call]]) -> None:
    for call in calls():
        with trial() as seen:
            call.run()
        ((problem, device),) = seen.seen.items()
        assert problem.rows is not None
        assert problem.density is not None
        tiles = candidates(device, problem, TRIED)
        assert len(tiles) > 2
        results = []
        for tile in tiles:
            with trial({problem: tile}):
                result = call.run()
            results.append([result] if isinstance(result, torch.Tensor) else list(result))
        assert max(deviation(result, results[0]) for result in results[1:]) <= 1.0


def test_a_layer_is_tuned_and_launched_by_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTH_SPARSE_CACHE", "1")
    monkeypatch.setenv("LTH_SPARSE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(launch, "_INSTALLED", {})

    def watched(call: Call) -> Call:
        def run() -> Any:
            told.update(current().tiles)  # type: ignore[union-attr]
            return call.run()

        return Call(call.name, run)

    def clock(call: Callable[[], object]) -> list[float]:
        """The heuristic's takes longer than any other."""
        told.clear()
        call()
        ((problem, tile),) = told.items()
        return [2.0 if tile == launch.heuristic(cuda._device(0), problem) else 1.0 + tile.num_warps / 100] * 3

    told: dict[Any, Any] = {}
    calls = [watched(call) for call in linear_calls(5, 32, 16, (32, 16), torch.float32)]
    report = tune_calls(calls, clock, limit=4)
    assert [one.problem.product for one in report.tuned] == list(launch.PRODUCTS)
    for one in report.tuned:
        assert one.wrong == ()
        assert one.tile != one.heuristic
        assert 1.0 < one.seconds < one.heuristic_seconds == 2.0
        assert launch.select(one.device, one.problem) == one.tile
        assert TuneCache.of(one.device).tiles()[one.problem.bucket].block_m == one.tile.block_m
    assert current() is None

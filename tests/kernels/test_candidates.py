"""Which configurations a tuner tries; that they compute the same is in cases_candidates.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lth_sparse.kernels import candidates as listed
from lth_sparse.kernels import launch, launch_csr
from lth_sparse.kernels.candidates import LIMIT, candidates, shared_bytes
from lth_sparse.kernels.launch import Device, Problem, Tile
from lth_sparse.kernels.tiles import Gather

DEVICES = (
    Device("NVIDIA H100", 90, 232448, 132),
    Device("small", 75, 65536, 40),
    Device("amd", 94, 65536, 304, hip=True),
)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
@pytest.mark.parametrize("product", launch.PRODUCTS + launch.CONV_PRODUCTS)
@pytest.mark.parametrize("dtype", launch.DTYPES)
@pytest.mark.parametrize(("block", "tokens"), [((4, 3), 1), ((16, 16), 4096), ((64, 8), 100), ((128, 128), 4096)])
def test_candidates_can_run_and_begin_with_the_heuristics(
    device: Device, product: str, dtype: str, block: tuple[int, int], tokens: int
) -> None:
    problem = Problem(product, dtype, block, tokens)
    found = candidates(device, problem)
    assert found[0] == launch.heuristic(device, problem)
    assert 1 < len(found) <= LIMIT
    assert len(set(found)) == len(found)
    gathers = not product.endswith("weight_gradient")
    for tile in found[1:]:
        assert launch.fault(problem, tile) is None
        assert shared_bytes(device, problem, tile, gathers=gathers) <= device.shared
        assert tile.precision == found[0].precision
        if gathers:
            assert tile.block_m <= max(launch.padded(tokens), found[0].block_m)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
@pytest.mark.parametrize("product", launch.CSR_PRODUCTS)
@pytest.mark.parametrize("dtype", launch.DTYPES)
@pytest.mark.parametrize(("tokens", "rows", "density"), [(1, 4096, 0.1), (16, 30, 0.01), (4096, 512, 0.5)])
def test_candidates_of_unstructured_weights_fill_the_threads_of_a_program(
    device: Device, product: str, dtype: str, tokens: int, rows: int, density: float
) -> None:
    problem = Problem(product, dtype, (1, 1), tokens, rows, 512, density)
    found = candidates(device, problem)
    assert found[0] == launch_csr.heuristic(device, problem)
    assert 2 < len(found) <= LIMIT
    assert len(set(found)) == len(found)
    for tile in found:
        assert launch.fault(problem, tile) is None
        elements = tile.rows * tile.lanes if isinstance(tile, Gather) else tile.entries
        assert elements * tile.block_m >= tile.num_warps * (64 if device.hip else 32)
        if isinstance(tile, Gather):
            assert tile.block_m <= launch.padded(tokens, 1)
    changed = {name for tile in found for name, size in vars(tile).items() if size != getattr(found[0], name)}
    assert len(changed) >= 4


def test_shared_memory_is_that_of_the_buffers_of_stages_for() -> None:
    device = DEVICES[0]
    problem = Problem("forward", "bfloat16", (64, 64), 4096)
    tile = launch.heuristic(device, problem)
    for buffers in (2, 3, 4):
        more = replace(tile, num_stages=launch.stages_for(device, tile, buffers, gathers=True))
        assert shared_bytes(device, problem, more, gathers=True) == buffers * 2 * 64 * (128 + 64)


def test_the_list_is_bounded_and_its_beginning_does_not_depend_on_the_bound() -> None:
    problem = Problem("forward", "bfloat16", (64, 64), 4096)
    everything = candidates(DEVICES[0], problem, 10**6)
    assert len(everything) > LIMIT
    for limit in (1, 7, LIMIT):
        assert candidates(DEVICES[0], problem, limit) == everything[:limit]
    names = [name for name in vars(everything[0]) if any(getattr(t, name) != getattr(everything[0], name)
                                                         for t in everything[: LIMIT // 2])]  # fmt: skip
    assert {"block_m", "block_n", "block_k", "num_warps", "num_stages"} <= set(names)


def test_a_new_bool_of_tile_is_tried_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Wider(Tile):
        magic: bool = False

    Wider.__annotations__["magic"] = bool  # a class inside a function has no names to look "bool" up in
    first = launch.heuristic(DEVICES[0], Problem("forward", "bfloat16", (64, 64), 4096))
    monkeypatch.setattr(listed, "Tile", Wider)
    monkeypatch.setattr(listed, "heuristic", lambda device, problem: Wider(**vars(first)))
    found = candidates(DEVICES[0], Problem("forward", "bfloat16", (64, 64), 4096))
    assert {tile.magic for tile in found[: LIMIT // 2]} == {False, True}  # type: ignore[attr-defined]


def test_candidates_compute_what_the_heuristics_tile_computes() -> None:
    pytest.importorskip("triton")
    from kernel_cases import run_cases

    run_cases(Path(__file__).with_name("cases_candidates.py"), interpreted=True)


@pytest.mark.gpu
def test_candidates_compute_what_the_heuristics_tile_computes_on_the_device() -> None:
    pytest.importorskip("triton")
    from kernel_cases import run_cases

    run_cases(Path(__file__).with_name("cases_candidates.py"), interpreted=False)

"""Which launch configuration a problem gets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lth_sparse.kernels import launch
from lth_sparse.kernels.launch import Device, Problem, Tile

H100 = Device("NVIDIA H100", 90, 232448, 132)
A100 = Device("NVIDIA A100", 80, 166912, 108)
ENTRY = {"block_m": 64, "block_n": 32, "block_k": 64, "num_warps": 4, "num_stages": 3}


@pytest.mark.parametrize(("size", "least", "right"), [(1, 16, 16), (16, 16, 16), (17, 16, 32), (3, 1, 4), (0, 1, 1)])
def test_padded(size: int, least: int, right: int) -> None:
    assert launch.padded(size, least) == right


@pytest.mark.parametrize("product", launch.PRODUCTS + launch.CONV_PRODUCTS)
@pytest.mark.parametrize("dtype", launch.DTYPES)
@pytest.mark.parametrize("block", [(1, 1), (4, 3), (16, 16), (24, 48), (64, 8), (128, 128), (512, 16), (16, 512)])
@pytest.mark.parametrize("tokens", [0, 1, 17, 100000])
def test_every_problem_has_a_tile_that_its_kernel_takes(
    tokens: int, block: tuple[int, int], dtype: str, product: str
) -> None:
    for device in (H100, A100, Device("small", 75, 65536, 40)):
        problem = Problem(product, dtype, block, tokens)
        tile = launch.heuristic(device, problem)
        side = problem.sides[0]
        assert side % tile.block_n == 0
        assert min(tile.block_m, tile.block_n, tile.block_k) >= 16
        assert tile.num_stages >= 2


def test_float32_uses_three_products_unless_one_is_allowed() -> None:
    problem = Problem("forward", "float32", (32, 32), 512)
    assert launch.select(A100, problem).precision == "tf32x3"
    assert launch.select(A100, problem, tf32=True).precision == "tf32"
    assert launch.select(H100, problem, tf32=True).precision == "tf32"
    gradient = Problem("input_gradient", "float32", (32, 32), 512)
    assert launch.select(A100, gradient, tf32=True).precision == "tf32"
    conv = Problem("conv_forward", "float32", (32, 32), 512)
    assert launch.select(A100, conv, tf32=True).precision == "tf32"
    assert launch.select(H100, conv, tf32=True).precision == "tf32x3"
    assert launch.select(H100, gradient, tf32=True).precision == "tf32x3"
    assert launch.select(Device("old", 70, 98304, 80), problem, tf32=True).precision == "ieee"
    assert launch.select(Device("amd", 94, 65536, 304, hip=True), problem).precision == "ieee"
    assert launch.select(A100, Problem("forward", "bfloat16", (32, 32), 512), tf32=True).precision == "ieee"


def test_tiles_by_descriptor_only_where_device_and_operands_allow_them() -> None:
    aligned = Problem("forward", "bfloat16", (64, 64), 4096, tma=True)
    assert launch.heuristic(H100, aligned).tma
    assert launch.heuristic(H100, replace(aligned, product="input_gradient")).tma
    assert not launch.heuristic(A100, aligned).tma
    assert not launch.heuristic(Device("amd", 942, 65536, 304, hip=True), aligned).tma
    assert not launch.heuristic(H100, replace(aligned, tma=False)).tma
    assert not launch.heuristic(H100, replace(aligned, product="weight_gradient")).tma
    few = launch.heuristic(H100, replace(aligned, tokens=1))  # whose steps are deeper than a block
    assert not few.tma
    assert few.block_k == 128


def test_a_table_does_not_force_descriptors_on_operands_that_refuse_them(monkeypatch: pytest.MonkeyPatch) -> None:
    aligned = Problem("forward", "bfloat16", (64, 64), 4096, tma=True)
    tile = Tile(128, 64, 64, 4, 5, tma=True)
    monkeypatch.setattr(launch, "read_table", lambda name: {aligned.key: tile})
    assert launch.select(H100, aligned) is tile
    refusing = replace(aligned, tma=False)
    assert launch.select(H100, refusing) == launch.heuristic(H100, refusing)


@pytest.mark.parametrize("device", [H100, A100, Device("sm_86", 86, 101376, 84)], ids=lambda device: device.name)
@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("block", [(16, 16), (32, 32), (64, 64), (128, 128)])
@pytest.mark.parametrize("dtype", launch.DTYPES)
def test_a_third_operand_takes_its_memory_from_the_other_two(
    dtype: str, block: tuple[int, int], gathers: bool, device: Device
) -> None:
    product = launch.PRODUCTS[1 if gathers else 2]
    tile = launch.heuristic(device, Problem(product, dtype, block, 4096))
    beside = launch.beside_relu(tile, gathers=gathers)
    assert (beside.block_m, beside.block_n) == (tile.block_m, tile.block_n)
    assert beside.num_stages >= min(tile.num_stages, 3)
    third = tile.block_m if gathers else tile.block_n
    before = tile.num_stages * tile.block_k * (tile.block_m + tile.block_n)
    after = beside.num_stages * beside.block_k * (tile.block_m + tile.block_n + third)
    assert after <= before or beside.num_stages == min(tile.num_stages, 6 if gathers else 3)


@pytest.mark.parametrize(
    ("programs", "tokens", "right"), [(1000, 100000, 1), (33, 100000, 8), (1, 1024, 2), (1, 100, 1), (0, 0, 1)]
)
def test_tokens_are_split_only_to_fill_the_device(programs: int, tokens: int, right: int) -> None:
    assert launch.splits_for(H100, programs, tokens) == right


def test_no_table_is_shipped_for_an_unknown_device() -> None:
    assert launch.read_table("no such device") == {}


def test_a_table_wins_over_the_heuristic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("forward", "float32", (32, 32), 500)
    assert problem.key == "forward/float32/32x32/512"
    path = launch.table_path(H100.name, tmp_path)
    assert path.name == "nvidia-h100.json"
    path.write_text(json.dumps({"tiles": {problem.key: ENTRY}}))
    monkeypatch.setattr(launch, "read_table", lambda name: dict(_read(name, tmp_path)))
    assert launch.select(H100, problem) == Tile(64, 32, 64, 4, 3, "tf32x3")
    other = Problem("forward", "float32", (32, 32), 513)
    assert launch.select(H100, other) == launch.heuristic(H100, other)


_read = launch.read_table


@pytest.mark.parametrize("entry", [{}, ENTRY | {"colour": 1}, ENTRY | {"block_m": "64"}, ENTRY | {"num_warps": 0}])
def test_a_wrong_table_is_refused(tmp_path: Path, entry: dict) -> None:
    launch.table_path("x", tmp_path).write_text(json.dumps({"tiles": {"forward/float32/32x32/512": entry}}))
    with pytest.raises(ValueError, match=r"x\.json: forward/float32/32x32/512: expected positive ints"):
        launch.read_table("x", tmp_path)

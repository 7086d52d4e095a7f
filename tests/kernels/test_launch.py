"""Which launch configuration a problem gets."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("product", launch.PRODUCTS + launch.CONV_PRODUCTS + launch.NHWC_PRODUCTS)
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

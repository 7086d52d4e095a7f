"""Which launch configuration a problem gets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lth_sparse.kernels import launch, tables, trials
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
    assert launch.select(H100, problem, tf32=True, rows=False).precision == "tf32x3"
    assert launch.select(A100, problem, tf32=True, rows=False).precision == "tf32"
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
    monkeypatch.setattr(launch, "read_table", lambda name: {aligned.bucket: tile})
    assert launch.select(H100, aligned) == tile
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


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, dict], None]]:
    """shipped("NVIDIA H100", {key: configuration}): ship that table for that device; none is shipped otherwise."""
    read = launch.read_table
    launch.forget()
    monkeypatch.setattr(launch, "read_table", lambda name: read(name, tmp_path))
    monkeypatch.setattr(launch, "_INSTALLED", {})

    def ship(name: str, tiles: dict) -> None:
        launch.table_path(name, tmp_path).write_text(json.dumps({"tiles": tiles}))

    yield ship
    launch.forget()


FORWARD = Problem("forward", "bfloat16", (64, 64), 4000, 4096, 1024, 0.11)


def test_no_table_is_shipped_for_an_unknown_device() -> None:
    assert launch.read_table("no such device") == {}


def test_shipped_tables_can_be_read() -> None:
    for path in launch.TABLES.glob("*.json"):
        assert launch.read_table(path.stem)


def test_a_table_wins_over_the_heuristic(shipped: Callable[..., None]) -> None:
    problem = Problem("forward", "float32", (32, 32), 500)
    assert problem.key == "forward/float32/32x32/512/anyxany/any"
    assert launch.table_path(H100.name).name == "nvidia-h100.json"
    shipped(H100.name, {problem.key: ENTRY})
    assert launch.select(H100, problem) == Tile(64, 32, 64, 4, 3, precision="tf32x3")
    for other in (replace(problem, block=(16, 32)), replace(problem, dtype="float16"), replace(problem, tokens=4000)):
        assert launch.select(H100, other) == launch.heuristic(H100, other)
    assert launch.select(A100, problem) == launch.heuristic(A100, problem)


def test_the_users_table_then_the_devices_then_its_familys(shipped: Callable[..., None]) -> None:
    near = replace(FORWARD, tokens=1000)
    tiles = {
        name: replace(launch.heuristic(H100, FORWARD), block_k=k) for name, k in {"a": 16, "b": 32, "c": 128}.items()
    }
    assert (H100.family, Device("amd", 94, 65536, 304, hip=True).family) == ("sm-90", "gfx-94")
    shipped(H100.family, {FORWARD.key: tables.entry_of(tiles["a"])})
    assert launch.select(H100, FORWARD) == launch.select(Device("H200", 90, 232448, 132), FORWARD) == tiles["a"]
    launch.install(H100.name, {near.bucket: tiles["b"]})
    assert launch.select(H100, FORWARD) == tiles["a"]  # its own bucket before a near one
    assert launch.select(H100, near) == tiles["b"]
    launch.install(H100.name, {FORWARD.bucket: tiles["c"]})
    assert launch.select(H100, FORWARD) == launch.select(H100, near) == tiles["c"]
    launch.install(H100.name, {})
    assert launch.select(H100, near) == tiles["a"]


def test_a_near_tile_has_no_more_rows_than_there_are_tokens(shipped: Callable[..., None]) -> None:
    tile = replace(launch.heuristic(H100, replace(FORWARD, tokens=128)), block_k=32)
    gradient = replace(FORWARD, product="weight_gradient", tokens=128)
    launch.install(H100.name, {replace(FORWARD, tokens=128).bucket: tile, gradient.bucket: tile})
    assert tile.block_m == 128
    assert launch.select(H100, replace(FORWARD, tokens=300)) == tile
    few = replace(FORWARD, tokens=64)
    assert launch.select(H100, few) == launch.heuristic(H100, few)
    assert launch.select(H100, replace(gradient, tokens=64)) == tile  # its rows are no tokens


def test_a_trial_answers_and_notes_on_its_own_thread_alone() -> None:
    tile = replace(launch.heuristic(H100, FORWARD), block_k=32)
    other = replace(FORWARD, product="input_gradient")
    with trials.trial({FORWARD: tile}) as seen:
        assert launch.select(H100, FORWARD) == tile
        assert launch.select(H100, other) == launch.heuristic(H100, other)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(launch.select, H100, FORWARD).result() == launch.heuristic(H100, FORWARD)
    assert seen.seen == {FORWARD: H100, other: H100}
    assert launch.select(H100, FORWARD) == launch.heuristic(H100, FORWARD)
    with trials.trial({replace(FORWARD, dtype="float32"): tile}):
        assert launch.select(H100, replace(FORWARD, dtype="float32"), tf32=True).precision == "tf32"


def test_what_operands_allow_is_part_of_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Flagged(Problem):
        fast: bool = False

    @dataclass(frozen=True)
    class Faster(Tile):
        fast: bool = False

    key, heuristic = FORWARD.key, launch.heuristic(H100, FORWARD)
    monkeypatch.setattr(launch, "_flags", lambda: ("fast",))
    slow = Flagged(**vars(FORWARD))
    fast = replace(slow, fast=True)
    assert slow.key == key
    assert fast.key == key.replace("forward", "forward+fast")
    assert Flagged.of(tables.Bucket.parse(fast.key)).bucket == fast.bucket
    assert tables.nearest([slow.bucket], fast.bucket) is None
    tile = Faster(**vars(heuristic) | {"fast": True})
    assert launch.fault(fast, tile) is None
    assert "fast: expected false for a problem whose operands do not allow it" in str(launch.fault(slow, tile))


def test_an_unknown_flag_of_a_table_is_refused(tmp_path: Path) -> None:
    key = FORWARD.key.replace("forward", "forward+colour")
    launch.table_path("x", tmp_path).write_text(json.dumps({"tiles": {key: ENTRY}}))
    with pytest.raises(ValueError, match=rf"x\.json: {re.escape(key)}: colour: expected flags among"):
        launch.read_table("x", tmp_path)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "missing field block_m"),
        ([1], "expected fields of a Tile, got [1]"),
        (ENTRY | {"colour": 1}, "unknown field colour: expected block_m"),
        (ENTRY | {"precision": "tf32"}, "unknown field precision"),
        (ENTRY | {"block_m": "64"}, "block_m: expected a positive int, got '64'"),
        (ENTRY | {"block_m": True}, "block_m: expected a positive int, got True"),
        (ENTRY | {"num_warps": 0}, "num_warps: expected a positive int, got 0"),
        (ENTRY | {"num_warps": 3}, "num_warps: expected a power of two, got 3"),
        (ENTRY | {"block_k": 8}, "block_k: expected a power of two of at least 16, got 8"),
        (ENTRY | {"block_n": 64}, "block_n: expected a divisor of 32"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path: Path, entry: object, said: str) -> None:
    key = "forward/float32/32x32/512/anyxany/any"
    launch.table_path("x", tmp_path).write_text(json.dumps({"tiles": {key: entry}}))
    with pytest.raises(ValueError, match=rf"x\.json: {re.escape(key)}: {re.escape(said)}"):
        launch.read_table("x", tmp_path)


def test_tiles_over_scattered_channels_are_smaller_where_registers_are_short() -> None:
    forward, by_input, by_weight = (Problem(name, "float16", (128, 128), 4096) for name in launch.NHWC_PRODUCTS)
    assert launch.heuristic(H100, by_input).block_n == 128
    assert launch.heuristic(H100, replace(by_input, scattered=True)).block_n == 64
    for problem in (forward, by_input, by_weight):
        deep = launch.heuristic(A100, problem)
        assert launch.heuristic(A100, replace(problem, scattered=True)).block_k == deep.block_k // 2
    deep, tall = launch.heuristic(H100, by_weight), launch.heuristic(H100, forward)
    assert launch.heuristic(H100, replace(by_weight, scattered=True)).block_k == deep.block_k // 2
    assert launch.heuristic(H100, replace(forward, scattered=True)) == replace(tall, block_m=tall.block_m // 2)
    assert launch.heuristic(H100, Problem("conv_forward", "float16", (128, 128), 4096)).block_m == 64
    assert launch.heuristic(H100, Problem("conv_forward", "float16", (64, 64), 4096)).block_m == 128
    one = replace(by_input, tokens=1)
    assert launch.heuristic(A100, replace(one, scattered=True)) == launch.heuristic(A100, one)
    several = replace(by_input, block=(16, 64), scattered=True)
    assert (
        launch.heuristic(H100, several).block_k
        == launch.heuristic(H100, replace(several, scattered=False)).block_k // 2
    )
    few = replace(forward, tokens=16)
    assert launch.heuristic(A100, replace(few, scattered=True)).block_k == launch.heuristic(A100, few).block_k // 2
    small = replace(few, block=(64, 64))
    assert launch.heuristic(A100, replace(small, scattered=True)) == launch.heuristic(A100, small)
    assert replace(forward, scattered=True).key.startswith("conv_nhwc_forward+scattered/")


def test_few_pixels_have_deep_steps_but_for_float32_over_several_blocks() -> None:
    def depth(dtype: str, side: int) -> int:
        return launch.heuristic(A100, Problem(launch.NHWC_PRODUCTS[1], dtype, (side, side), 1)).block_k

    assert (depth("float16", 16), depth("float16", 128)) == (128, 128)
    assert (depth("float32", 16), depth("float32", 64)) == (32, 64)


@pytest.mark.parametrize("tokens", [1, 64, 4096])
@pytest.mark.parametrize("side", [16, 32, 64, 128])
@pytest.mark.parametrize("product", launch.PRODUCTS)
def test_float32_fits_where_a_triton_keeps_every_stage_as_a_buffer(product: str, side: int, tokens: int) -> None:
    for device in (A100, Device("sm_86", 86, 101376, 84)):
        tile = launch.heuristic(device, Problem(product, "float32", (side, side), tokens))
        buffers = tile.num_stages // (1 if product == "weight_gradient" else 2)
        assert buffers * (tile.block_m + tile.block_n) * tile.block_k * 4 <= device.shared
        assert buffers >= 3

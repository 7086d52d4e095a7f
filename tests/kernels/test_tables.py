"""Buckets, the order in which measured ones stand in for others, and the files that hold them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from lth_sparse.kernels import tables
from lth_sparse.kernels.tables import Bucket, bucket_of

HERE = bucket_of("forward", "bfloat16", (64, 64), 4096, 4096, 1024, 0.1)


@dataclass(frozen=True)
class Tile:
    block: int
    warps: int
    group: int = 0
    tma: bool = False
    precision: str = "ieee"


@pytest.mark.parametrize(
    ("tokens", "rows", "cols", "density", "key"),
    [
        (4096, 4096, 1024, 0.1, "4096/4096x1024/0.1"),
        (4097, 4097, 1025, 0.11, "8192/8192x2048/0.1"),
        (0, 1, 65, 0.0, "16/64x128/0.01"),
        (10**7, 10**7, 10**7, 1.0, "65536/65536x65536/1"),
        (17, None, None, None, "32/anyxany/any"),
        (17, None, 64, 0.7, "32/anyx64/0.5"),
    ],
)
def test_a_bucket_counts_by_powers_of_two_and_densities_of_a_list(
    tokens: int, rows: int | None, cols: int | None, density: float | None, key: str
) -> None:
    bucket = bucket_of("forward", "float16", (16, 8), tokens, rows, cols, density)
    assert bucket.key == f"forward/float16/16x8/{key}"
    assert Bucket.parse(bucket.key) == bucket
    assert bucket_of(*bucket) == bucket


@pytest.mark.parametrize(
    "key",
    [
        "",
        "forward/float16/16x8/32",
        "forward/float16/16x8/33/64x64/0.1",
        "forward/float16/16x8/32/64x65/0.1",
        "forward/float16/16x8/32/64x64/0.11",
        "forward/float16/16/32/64x64/0.1",
        "forward/float16/16x8/032/64x64/0.1",
        "forward/float16/16x8/32/64x64/nan",
    ],
)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="expected product/dtype/RxC/tokens/ROWSxCOLS/density"):
        Bucket.parse(key)


def test_the_nearest_is_by_tokens_then_density_then_sizes() -> None:
    order = [
        HERE,
        HERE._replace(rows=2048),
        HERE._replace(rows=2048, cols=2048),
        HERE._replace(rows=64),
        HERE._replace(density=0.05),
        HERE._replace(density=0.2),
        HERE._replace(density=0.05, cols=512),
        HERE._replace(density=1.0),
        HERE._replace(tokens=2048),
        HERE._replace(tokens=8192),
        HERE._replace(tokens=2048, density=0.5),
        HERE._replace(tokens=1024),
        HERE._replace(tokens=16384),
    ]
    for index, bucket in enumerate(order):
        assert tables.nearest(reversed(order[index:]), HERE) == bucket


def test_an_unknown_size_is_one_step_from_any() -> None:
    unknown = HERE._replace(rows=None, cols=None, density=None)
    assert tables.nearest([unknown], HERE) == unknown
    assert tables.nearest([HERE], unknown) == HERE
    assert tables.nearest([HERE, unknown], unknown) == unknown
    assert tables.nearest([unknown, HERE._replace(density=0.05)], HERE) == HERE._replace(density=0.05)
    assert tables.nearest([unknown, HERE._replace(density=0.02)], HERE) == unknown


@pytest.mark.parametrize(
    "other",
    [
        HERE._replace(product="input_gradient"),
        HERE._replace(dtype="float16"),
        HERE._replace(block=(64, 32)),
        HERE._replace(tokens=512),
        HERE._replace(tokens=32768),
    ],
)
def test_nothing_stands_in_for_another_kernel_or_far_fewer_or_more_tokens(other: Bucket) -> None:
    assert tables.nearest([other], HERE) is None


def test_fields_are_read_and_written_by_name() -> None:
    assert tables.entry_of(Tile(64, 4, tma=True)) == {"block": 64, "warps": 4, "group": 0, "tma": True}
    assert tables.tile_of(Tile, {"warps": 4, "block": 64}) == Tile(64, 4)
    assert tables.tile_of(Tile, {"warps": 4, "block": 64, "group": 0, "tma": True}) == Tile(64, 4, tma=True)
    with pytest.raises(ValueError, match="tma: expected true or false, got 1"):
        tables.tile_of(Tile, {"warps": 4, "block": 64, "tma": 1})
    with pytest.raises(ValueError, match="group: expected a positive int, got -1"):
        tables.tile_of(Tile, {"warps": 4, "block": 64, "group": -1})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tiles = {HERE: Tile(64, 4), HERE._replace(density=None): Tile(32, 8, 2, True)}
    path = tmp_path / "device.json"
    path.write_text(tables.written({"device": "one", "date": "today"}, tiles))
    assert tables.read(path, lambda bucket: Tile) == tiles
    assert json.loads(path.read_text())["device"] == "one"
    path.write_text(tables.written({}, {}))
    assert tables.read(path, lambda bucket: Tile) == {}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"tiles": 3}', '{"tiles": []}', "[" * 100_000])
def test_a_file_that_is_no_table_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"device\.json: expected a JSON object"):
        tables.read(path, lambda bucket: Tile)


def test_a_wrong_key_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_text('{"tiles": {"forward": {}}}')
    with pytest.raises(ValueError, match=r"device\.json: forward: expected product/dtype"):
        tables.read(path, lambda bucket: Tile)

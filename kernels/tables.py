"""Measured launch configurations: their buckets, their JSON form, and which one serves a problem that was not measured.

A table maps buckets of problems to configurations. A bucket is what a choice depends on, coarsely enough to be met
again: product, dtype and block as they are; tokens, rows and columns of the weight by the power of two that holds
them; density by the nearest of ``DENSITIES``. Configurations are any dataclass of ints and bools: fields are read and
written by name, so a kernel that wants one more adds it to its dataclass alone. This module needs no Triton.
"""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

__all__ = ["DENSITIES", "UNKNOWN", "Bucket", "bucket_of", "entry_of", "nearest", "power_of_two", "read", "tile_of",
           "written"]  # fmt: skip

Configuration = TypeVar("Configuration")

#: Shares of the blocks that are stored. A density counts as the nearest by ratio.
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0)
#: Bounds of the powers of two: ``tl.dot`` has no side below 16, and beyond 65,536 tokens nothing changes. Products of
#: blocks of a single weight use none, and a few tokens differ there.
TOKENS, SIZES = (16, 65536), (64, 65536)
#: A configuration serves problems of at most so many times fewer or more tokens, in powers of two: ``block_m`` follows
#: the tokens, and that of a training batch would be wasted on a single token.
MOST_TOKEN_STEPS = 2
#: A size or density that is not known, in a key.
UNKNOWN = "any"


class Bucket(NamedTuple):
    """A class of problems; None where the size or density is not known."""

    product: str
    dtype: str
    block: tuple[int, int]
    tokens: int
    rows: int | None = None
    cols: int | None = None
    density: float | None = None

    @property
    def key(self) -> str:
        """The bucket's name in a file: ``forward/bfloat16/64x64/4096/4096x1024/0.1``."""
        sides = [UNKNOWN if side is None else str(side) for side in (self.rows, self.cols)]
        density = UNKNOWN if self.density is None else f"{self.density:g}"
        block = f"{self.block[0]}x{self.block[1]}"
        return f"{self.product}/{self.dtype}/{block}/{self.tokens}/{'x'.join(sides)}/{density}"

    @classmethod
    def parse(cls, key: str) -> Bucket:
        """The inverse of :attr:`key`.

        Raises:
            ValueError: ``key`` names no bucket.
        """
        try:
            product, dtype, block, tokens, sides, density = key.split("/")
            r, c = map(int, block.split("x"))
            rows, cols = (None if side == UNKNOWN else int(side) for side in sides.split("x"))
            found = cls(product, dtype, (r, c), int(tokens), rows, cols, None if density == UNKNOWN else float(density))
        except ValueError:
            found = None
        if found is None or found.key != key or found != bucket_of(*found[:4], *found[4:]):
            what = "product/dtype/RxC/tokens/ROWSxCOLS/density of a bucket"
            raise ValueError(f"{key}: expected {what}, such as forward/bfloat16/64x64/4096/4096x1024/0.1")
        return found


def power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that is neither below ``size`` nor below ``least``."""
    return max(least, 1 << max(size - 1, 0).bit_length())


def bucket_of(
    product: str,
    dtype: str,
    block: tuple[int, int],
    tokens: int,
    rows: int | None = None,
    cols: int | None = None,
    density: float | None = None,
) -> Bucket:
    """The bucket that a problem is in."""

    def side_of(size: int | None) -> int | None:
        return None if size is None else min(power_of_two(size, SIZES[0]), SIZES[1])

    share = None if density is None else DENSITIES[_step_of(density)]
    tokens = min(power_of_two(tokens, 1 if block == (1, 1) else TOKENS[0]), TOKENS[1])
    return Bucket(product, dtype, block, tokens, side_of(rows), side_of(cols), share)


def _step_of(density: float) -> int:
    """Index of the nearest of ``DENSITIES``, by ratio."""
    seen = math.log(max(density, DENSITIES[0]))
    return min(range(len(DENSITIES)), key=lambda step: abs(math.log(DENSITIES[step]) - seen))


def nearest(buckets: Iterable[Bucket], wanted: Bucket) -> Bucket | None:
    """The bucket whose configuration serves ``wanted`` best, ``wanted`` itself where it is among them.

    Product, dtype and block must agree, and tokens to ``MOST_TOKEN_STEPS`` doublings. Of those the first by, in this
    order: doublings of the tokens, steps of density, doublings of rows and of columns together. What is not known is
    one step from everything that is. Of equals the one with fewer tokens, then the sparser, then the smaller one.
    """

    def between(a: int | None, b: int | None) -> float:
        if a is None or b is None:
            return float(a is not b)
        return abs(math.log2(a) - math.log2(b))

    def distance(bucket: Bucket) -> tuple[float, ...]:
        known = bucket.density is not None and wanted.density is not None
        if known:
            density = float(abs(_step_of(bucket.density or 0.0) - _step_of(wanted.density or 0.0)))
        else:
            density = float(bucket.density is not wanted.density)
        sizes = between(bucket.rows, wanted.rows) + between(bucket.cols, wanted.cols)
        order = (float(bucket.tokens), bucket.density or 0.0, float(bucket.rows or 0), float(bucket.cols or 0))
        return (between(bucket.tokens, wanted.tokens), density, sizes, *order)

    alike = [bucket for bucket in buckets if bucket[:3] == wanted[:3]]
    close = [bucket for bucket in alike if between(bucket.tokens, wanted.tokens) <= MOST_TOKEN_STEPS]
    return min(close, key=distance, default=None)


def entry_of(tile: Any) -> dict[str, int | bool]:
    """The fields of a configuration as a file holds them."""
    return {name: getattr(tile, name) for name in _hints(type(tile))}


def tile_of(cls: type[Configuration], entry: object) -> Configuration:
    """The inverse of :func:`entry_of`: fields without a default must be there, others take it where they are not.

    Raises:
        ValueError: naming the field that is unknown, missing, or no positive int or bool as it should be.
    """
    hints = _hints(cls)
    defaults = {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]
    if not isinstance(entry, Mapping):
        raise ValueError(f"expected fields of a {cls.__name__}, got {entry!r}")
    if unknown := sorted(map(str, set(entry) - set(hints))):
        raise ValueError(f"unknown field {', '.join(unknown)}: expected {', '.join(hints)}")
    for name, kind in hints.items():
        if name not in entry:
            if defaults[name] is MISSING:
                raise ValueError(f"missing field {name}: expected {', '.join(hints)}")
            continue
        value = entry[name]
        if type(value) is not kind or (type(value) is int and value < 1 and value != defaults[name]):
            what = "true or false" if kind is bool else "a positive int"
            raise ValueError(f"{name}: expected {what}, got {value!r}")
    return cls(**entry)


def _hints(cls: Any) -> dict[str, type]:
    """Names and types of the fields that a table holds. Others, such as a precision, are the user's to choose."""
    return {name: kind for name, kind in typing.get_type_hints(cls).items() if kind in (int, bool)}


def read(path: Path, kind_of: Callable[[Bucket], type[Any]]) -> dict[Bucket, Any]:
    """The table in a file; ``kind_of`` a bucket is the class of its configuration.

    The file is ``{"device", "date", versions ..., "tiles": {key: {field: value}}}``; only ``tiles`` is looked at.

    Raises:
        ValueError: the file is no such table; names the file, the key and what is wrong.
    """
    try:
        tiles = json.loads(path.read_bytes())["tiles"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = 'a JSON object with "tiles": {key: configuration}'
        raise ValueError(f"{path}: expected {what} ({' '.join(str(error).split())})") from error
    found = {}
    for key, entry in tiles:
        try:
            bucket = Bucket.parse(key)
            found[bucket] = tile_of(kind_of(bucket), entry)
        except ValueError as error:
            where = str(path) if str(error).startswith(f"{key}: ") else f"{path}: {key}"
            raise ValueError(f"{where}: {error}") from error
    return found


def written(about: Mapping[str, Any], tiles: Mapping[Bucket, Any]) -> str:
    """The text of a table file: ``about`` (device, date, versions), then the configurations in the order of keys."""
    entries = {bucket.key: entry_of(tile) for bucket, tile in sorted(tiles.items(), key=lambda item: item[0].key)}
    lines = [f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items()]
    head = "".join(f" {json.dumps(name)}: {json.dumps(value)},\n" for name, value in about.items())
    return "{\n" + head + ' "tiles": {\n' + ",\n".join(lines) + "\n }\n}\n"

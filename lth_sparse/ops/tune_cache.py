"""Launch configurations that were tuned on this machine, on disk, and how they get to where launches are chosen.

By the rules of the planner's cache (``ops.plan_cache``: directory, switch, whole files under a lock, damage reported
and written anew), one file for each device's name and versions of torch, Triton, this library and its kernels:
another version compiles other code, of which nothing is known.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lth_sparse._version import __version__
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.kernels import launch, tables
from lth_sparse.kernels.tables import Bucket
from lth_sparse.kernels.tiles import AnyTile, kind_of
from lth_sparse.ops.plan_cache import DiskCache

__all__ = ["TuneCache", "exported", "load", "versions"]


class TuneCache(DiskCache):
    """Winners ``{key of a bucket: {"tile", "seconds", "heuristic_seconds"}}`` of one device."""

    OWNER = "tuner"

    @classmethod
    def of(cls, device: launch.Device) -> TuneCache:
        """The cache of a device under the versions of now."""
        return cls({"device": device.name, "family": device.family, **versions()})

    def tiles(self) -> dict[Bucket, AnyTile]:
        """What is stored; damaged entries are reported and left out."""
        return {Bucket.parse(key): tile for key, tile in self.items(_read).items()}

    def store(self, bucket: Bucket, tile: AnyTile, seconds: float, heuristic_seconds: float) -> None:
        """Keep a winner, with its time and that of the heuristic's tile beside it."""
        times = {"seconds": seconds, "heuristic_seconds": heuristic_seconds}
        self.put({bucket.key: {"tile": tables.entry_of(tile), **times}})


def load(device: launch.Device) -> None:
    """Let launches on ``device`` be chosen by what is stored for it, and by what this process has tuned since."""
    launch.install(device.name, {**TuneCache.of(device).tiles(), **launch.installed(device.name)})


def exported(device: launch.Device) -> str:
    """What is stored for ``device`` as the text of a table to ship: a file of ``kernels/tables``.

    Raises:
        ArgumentError: nothing is stored.
    """
    cache = TuneCache.of(device)
    tiles = cache.tiles()
    if not tiles:
        where = f"in {cache.path}" if cache.enabled else "since LTH_SPARSE_CACHE switches the cache off"
        raise ArgumentError(expected("--export", f"tuned configurations of {device.name}", f"none {where}"))
    about = {"device": device.name, "family": device.family, "date": datetime.date.today().isoformat(), **versions()}
    return tables.written(about, tiles)


def versions() -> dict[str, str]:
    """All that a winner depends on besides the device."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:  # AMD's wheels have names of their own, and come with their torch
        triton = "of torch"
    return {"lth_sparse": __version__, "kernels": _kernels(), "torch": torch.__version__, "triton": triton}


@functools.cache
def _kernels() -> str:
    """Digest of the kernels' sources: a development build changes them and keeps its version."""
    digest = hashlib.sha256()
    for path in sorted(Path(launch.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _read(key: str, value: Any) -> AnyTile:
    if not isinstance(value, Mapping):
        raise ValueError("not a tuned configuration")
    bucket = Bucket.parse(key)
    tile: AnyTile = tables.tile_of(kind_of(bucket.product), value.get("tile"))
    if reason := launch.fault(launch.Problem.of(bucket), tile):
        raise ValueError(reason)
    return tile

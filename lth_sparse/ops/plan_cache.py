"""What the planner has measured, on disk: never measured twice on one machine, and never a reason to fail.

One JSON file for each environment (processor, instruction set and threads, or GPU and Triton; versions of library and
torch), because a time means nothing elsewhere. It lies in ``LTH_SPARSE_CACHE_DIR``, else
``XDG_CACHE_HOME/lth_sparse``, else in the platform's cache directory; ``LTH_SPARSE_CACHE=0`` switches it off. A file is
replaced as a whole, under a lock, so that concurrent processes neither see half of one nor lose each other's entries.
What cannot be read is reported and written anew.

The search for a ticket never looks here: see :func:`lth_sparse.ops.plan.choose_layout`.

The tuner of GPU kernels has files of its own by the same rules, see ``ops.tune_cache``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

import lth_sparse._C as _C
from lth_sparse import kernels
from lth_sparse._files import atomic_write
from lth_sparse._version import __version__
from lth_sparse.errors import RunError

try:
    import fcntl
except (
    ImportError
):  # not POSIX: two processes that write at the same instant may lose entries, which are measured again
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "DiskCache",
    "PlanCache",
    "cache_directory",
    "cache_enabled",
    "cpu_generation",
    "cpu_name",
    "environment",
    "usage",
]

Value = TypeVar("Value")

FORMAT = 1
#: Entries of a file and files of the directory; the oldest go first. An entry is about 400 bytes.
MOST_ENTRIES, MOST_FILES = 2000, 16
#: Whose files are in the directory, and how their names begin.
PREFIXES = {"planner": "plan-", "tuner": "tune-"}


def cache_enabled() -> bool:
    """False when ``LTH_SPARSE_CACHE`` is 0, off, no or false."""
    return os.environ.get("LTH_SPARSE_CACHE", "1").strip().lower() not in ("0", "off", "no", "false")


def cache_directory() -> Path:
    """Where the files are, or would be."""
    if chosen := os.environ.get("LTH_SPARSE_CACHE_DIR"):
        return Path(chosen).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser() / "lth_sparse"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lth_sparse"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "lth_sparse" / "Cache"
    return Path.home() / ".cache" / "lth_sparse"


def usage(owner: str = "planner") -> tuple[int, int]:
    """Files of planner or tuner, and their bytes."""
    sizes = []
    for path in cache_directory().glob(f"{PREFIXES[owner]}*.json"):
        with contextlib.suppress(OSError):  # gone since
            sizes.append(path.stat().st_size)
    return len(sizes), sum(sizes)


def cpu_name() -> str:
    """Model name of the processor, or its architecture where the system does not say."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_generation() -> str:
    """ "family 25, model 17" and the like, since virtual machines often hide the rest of the name; "" if unknown."""
    info = _cpuinfo()
    return f"family {info['cpu family']}, model {info['model']}" if {"cpu family", "model"} <= set(info) else ""


def _cpuinfo() -> dict[str, str]:
    """The lines of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        found.setdefault(name.strip(), value.strip())
    return found


def environment(device: torch.device) -> dict[str, str]:
    """All that a time on ``device`` depends on, apart from the layer."""
    found = {"processor": cpu_name(), "generation": cpu_generation(), "lth_sparse": __version__}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        toolkit = f"CUDA {torch.version.cuda}" if torch.version.hip is None else f"ROCm {torch.version.hip}"
        found["gpu"] = f"{torch.cuda.get_device_name(device)}, {major}.{minor}, {toolkit}"
        found["triton"] = _triton_version()
        found["build"] = _kernel_sources()
    else:
        # A development build keeps its version; the extension's file then tells one build from the next.
        built = Path(_C.__file__).stat() if getattr(_C, "__file__", None) else None
        found["isa"], found["threads"] = _C.isa(), str(torch.get_num_threads())
        found["build"] = f"{built.st_size}-{built.st_mtime_ns}" if built else "none"
    return found | {"torch": torch.__version__}


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


@functools.cache
def _kernel_sources() -> str:
    """A digest of the Triton kernels and their launch tables: a time of others means nothing."""
    folder = Path(str(kernels.__file__)).parent
    digest = hashlib.sha256()
    for path in sorted((*folder.glob("*.py"), *folder.glob("tables/*.json"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class DiskCache:
    """Entries ``key -> JSON value`` of one environment.

    Args:
        surroundings: all that the entries depend on.
        directory: default :func:`cache_directory`; not looked at while the cache is off.
    """

    #: Whose entries they are: a name of ``PREFIXES``.
    OWNER: ClassVar[str]

    def __init__(self, surroundings: Mapping[str, str], directory: Path | None = None) -> None:
        self.surroundings = dict(surroundings)
        digest = hashlib.sha256(json.dumps(self.surroundings, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (directory or cache_directory()) / f"{PREFIXES[self.OWNER]}{digest}.json"
        self.enabled = cache_enabled()

    def get(self, key: str, read: Callable[[Any], Value]) -> Value | None:
        """``read`` of the entry; None when there is none, or when ``read`` raises ValueError over what it is."""
        if not self.enabled:
            return None
        entry = self._load().get(key)
        return None if entry is None else self._read(key, entry, lambda key, value: read(value))

    def items(self, read: Callable[[str, Any], Value]) -> dict[str, Value]:
        """``read(key, value)`` of every entry, by key, but for those over which it raises ValueError."""
        if not self.enabled:
            return {}
        found = {key: self._read(key, entry, read) for key, entry in self._load().items()}
        return {key: value for key, value in found.items() if value is not None}

    def _read(self, key: str, entry: Mapping[str, Any], read: Callable[[str, Any], Value]) -> Value | None:
        try:
            return read(key, entry["value"])
        except ValueError as error:
            _warn(f"{self.path}: ignoring the damaged entry {key!r} ({error})")
            return None

    def put(self, entries: Mapping[str, Any]) -> None:
        """Add or replace entries; a warning, and nothing else, when the disk refuses."""
        if not self.enabled or not entries:
            return
        now = time.time()
        fresh = {key: {"when": now, "value": value} for key, value in entries.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                merged = {**self._load(), **fresh}
                kept = sorted(merged, key=lambda key: merged[key]["when"])[-MOST_ENTRIES:]
                content = {
                    "format": FORMAT,
                    "environment": self.surroundings,
                    "entries": {key: merged[key] for key in sorted(kept)},
                }
                atomic_write(self.path, json.dumps(content, indent=1).encode())
                self._thin()
        except (OSError, RunError) as error:
            _warn(f"the {self.OWNER}'s cache cannot be written: {error} (LTH_SPARSE_CACHE=0 switches it off)")

    def _load(self) -> dict[str, dict[str, Any]]:
        """The entries on disk; none, with a warning, from a file that is not what this writes."""
        try:
            content = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            _warn(f"{self.path}: ignoring a damaged cache of the {self.OWNER} ({' '.join(str(error).split())})")
            return {}
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            _warn(f"{self.path}: ignoring a file that is no cache of the {self.OWNER}, or of another version")
            return {}
        if content.get("environment") != self.surroundings or not isinstance(content.get("entries"), dict):
            _warn(f"{self.path}: ignoring a cache of the {self.OWNER} that belongs to another machine")
            return {}
        return {key: entry for key, entry in content["entries"].items() if _is_entry(entry)}

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time; the system releases the lock of a process that dies."""
        with open(self.path.parent / f"{PREFIXES[self.OWNER]}lock", "a") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _thin(self) -> None:
        """Delete the files that were not written to for longest, beyond ``MOST_FILES``."""
        files = {}
        for path in self.path.parent.glob(f"{PREFIXES[self.OWNER]}*.json"):
            with contextlib.suppress(OSError):
                files[path] = path.stat().st_mtime_ns
        for path in sorted(files, key=lambda path: files[path])[:-MOST_FILES]:
            path.unlink(missing_ok=True)


class PlanCache(DiskCache):
    """What the planner has measured in one :func:`environment`."""

    OWNER = "planner"

    @classmethod
    def of(cls, device: torch.device) -> PlanCache:
        """The cache of this process on ``device``, as its threads and instruction set are now."""
        return cls(environment(device))


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"when", "value"}:
        return False
    return isinstance(entry["when"], (int, float)) and not isinstance(entry["when"], bool)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)

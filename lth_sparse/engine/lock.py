"""One run at a time in a directory: a lock file that names its owner, and is taken over when the owner is gone.

The owner is a process: its id, its start time (ids are used again) and its machine. The operating system's own file
lock guards only the moments of reading and writing the file; it would outlive the owner in the workers that it forked.

A sweep runs each of its searches once at a time, and is itself alone in its directory. So a lock that was left by a
search of the same sweep is that of one that has ended, on another machine too, or that is about to.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lth_sparse._files import remove_leftovers
from lth_sparse.errors import RunError

try:
    import fcntl
except ImportError:  # not POSIX: then two processes that start in the same instant are not told apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["SWEEP", "DirectoryLock"]

#: Environment variable by which a sweep tells its searches whose they are: its directory.
SWEEP = "LTH_SPARSE_SWEEP"
#: Seconds that an earlier search of the same sweep is given to end.
PATIENCE = 10.0


class DirectoryLock:
    """Context manager over one lock file. The file stays, empty, when nobody holds it.

    Taking it removes what a killed owner has left half-written in the directory.

    Raises:
        RunError: a living process holds the lock, or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> DirectoryLock:
        deadline = time.monotonic() + PATIENCE
        while True:
            with self._file() as file:
                owner = _parse(file.read())
                if owner is None or not _alive(owner):
                    _rewrite(file, json.dumps(_myself()))
                    remove_leftovers(self.path.parent)
                    return self
                if not _same_sweep(owner) or time.monotonic() >= deadline:
                    advice = "wait for it, or choose another directory"
                    raise RunError(f"{self.path.parent}: in use by {_words(owner)}; {advice}")
            time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(RunError), self._file() as file:
            if _parse(file.read()) == _myself():
                _rewrite(file, "")

    @contextlib.contextmanager
    def _file(self) -> Iterator[IO[str]]:
        try:
            with open(self.path, "a+", encoding="utf-8") as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)  # closing releases it
                file.seek(0)
                yield file
        except OSError as error:
            raise RunError(f"cannot lock {self.path}: {error.strerror or error}") from error


def _rewrite(file: IO[str], text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()


def _parse(text: str) -> dict[str, Any] | None:
    """The owner that a lock file names; None for an empty or half-written one."""
    try:
        owner = json.loads(text)
        return owner if isinstance(owner["pid"], int) else None
    except (ValueError, KeyError, TypeError):
        return None


def _myself() -> dict[str, Any]:
    myself = {"pid": os.getpid(), "host": socket.gethostname(), "started": _start_time(os.getpid())}
    return myself if SWEEP not in os.environ else {**myself, "sweep": os.environ[SWEEP]}


def _same_sweep(owner: dict[str, Any]) -> bool:
    return "sweep" in owner and owner["sweep"] == os.environ.get(SWEEP) and owner["pid"] != os.getpid()


def _alive(owner: dict[str, Any]) -> bool:
    """Whether the owner still runs. On another machine nobody can tell, so the answer there is yes, except of the
    same sweep.
    """
    if owner.get("host") != socket.gethostname():
        return not _same_sweep(owner)
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return owner.get("started") in (None, _start_time(owner["pid"]))


def _start_time(pid: int) -> str | None:
    """When the process started, in the kernel's ticks; "dead" for a zombie, None where there is no /proc."""
    try:
        # The second field is the program's name in brackets, which may hold anything; the start time is the 22nd.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "dead" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return None


def _words(owner: dict[str, Any]) -> str:
    if owner["pid"] == os.getpid() and owner.get("host") == socket.gethostname():
        return "another search of this process that has not ended (close() its levels() loop)"
    return (
        f"process {owner['pid']} on {owner.get('host')} "
        f"(if that no longer runs, delete the file 'lock' in the directory)"
    )

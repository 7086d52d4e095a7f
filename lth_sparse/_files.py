"""Writing files so that nothing is ever half there.

A file is written under a temporary name in the directory where it belongs, flushed to the disk and renamed: a reader
sees the old file or the new one, whatever happens in between (crash, SIGKILL, full disk).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lth_sparse.errors import RunError

__all__ = ["atomic_path", "atomic_write", "remove_leftovers"]


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends without an exception.

    Raises:
        RunError: the file cannot be written (directory missing or read-only, disk full); ``path`` is then untouched.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _flush(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files; a result is an ordinary one
        os.replace(temporary, target)
        _flush(target.parent)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` completely or not at all. Errors as in :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files of processes that were killed; nobody else may be writing in ``directory``."""
    for leftover in directory.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def _flush(path: Path) -> None:
    """fsync a file, or a directory so that a rename in it survives a power cut (where the system can)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current

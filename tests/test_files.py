"""A file is there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lth_sparse import _files
from lth_sparse.errors import RunError


def test_a_written_file_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    _files.atomic_write(target, b"old")
    _files.atomic_write(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_an_exception_inside_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def interrupted() -> None:
        with _files.atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    target = tmp_path / "a.bin"
    with pytest.raises(RunError, match=r"cannot write .*a\.bin: No space left on device"):
        _files.atomic_write(target, b"data")
    assert not list(tmp_path.iterdir())


def test_a_missing_directory_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*No such file or directory"):
        _files.atomic_write(tmp_path / "none" / "a.bin", b"data")


def test_a_written_file_has_the_permissions_of_an_ordinary_one(tmp_path: Path) -> None:
    ordinary, ours = tmp_path / "ordinary", tmp_path / "ours"
    ordinary.write_bytes(b"")
    _files.atomic_write(ours, b"")
    assert ours.stat().st_mode == ordinary.stat().st_mode

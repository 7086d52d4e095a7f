"""What a directory of `lth-sparse find` or `reproduce` remembers besides its searches; one command at a time uses it.

find.json    what is being trained (reproduce.json): levels trained differently must not be mixed
plan.json    break-even densities that were measured here, with --plan
report.json  among other things, whether the machine was busy before
lock         who is at work
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lth_sparse._files import atomic_write
from lth_sparse.engine.lock import DirectoryLock
from lth_sparse.errors import LTHSparseError, RunError, TicketError
from lth_sparse.nn import plan
from lth_sparse.nn.convert import check_break_even
from lth_sparse.paper import DataSet, Preset, build_model

__all__ = ["break_even", "claim", "crowded_before", "owned"]

FORMAT = 1


@contextlib.contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Make the directory where it is missing, and be the only one at work in it.

    Raises:
        RunError: it cannot be made or written, or another command is at work in it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the run directory {directory}: {error.strerror or error}") from error
    with DirectoryLock(directory / "lock"):
        yield


def claim(directory: Path, preset: Preset, keywords: dict[str, Any], note_name: str = "find.json") -> str | None:
    """Note the settings in the directory, or check that those noted are the same.

    Another number of threads changes the seconds only, so it is no error; a sentence about it is returned.

    Raises:
        RunError: not writable, or other settings. TicketError: the note is damaged.
    """
    note = directory / note_name
    ours = json.loads(json.dumps({"format": FORMAT, **preset.to_dict(), **keywords}))
    threads = torch.get_num_threads()
    advice = "choose another --output, or delete the directory to start over"
    if not note.exists():
        atomic_write(note, (json.dumps({**ours, "threads": threads}, indent=2) + "\n").encode())
        return None
    try:
        theirs = dict(json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TicketError(f"{note}: damaged ({error}); {advice}") from error
    before = theirs.pop("threads", threads)
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            had, wanted = theirs.get(name, "nothing"), ours.get(name, "nothing")
            raise RunError(f"{directory}: holds a run with {name} {had!r}, but {wanted!r} was asked for; {advice}")
    return None if before == threads else f"this run was begun with {before} threads and goes on with {threads}"


def crowded_before(directory: Path) -> str | None:
    """What an earlier part of this run said about other work on the machine; its seconds are in the report too."""
    try:
        said = json.loads((directory / "report.json").read_text(encoding="utf-8"))["crowded"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return said if isinstance(said, str) else None


def break_even(directory: Path, preset: Preset, data: DataSet) -> dict[str, float]:
    """Break-even densities of the network's layers: those in the directory, or measured now and put there.

    Raises:
        TicketError: the file is damaged.
    """
    path = directory / "plan.json"
    if not path.exists():
        model = build_model(preset.model, data, 0, dropout=preset.dropout)
        measured = plan(model, data.train.x[: preset.batch], densities=(0.5,))
        densities = {name: round(density, 3) for name, density in measured.break_evens().items()}
        atomic_write(path, (json.dumps(densities, indent=2) + "\n").encode())
    try:
        return check_break_even(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LTHSparseError) as error:
        raise TicketError(f"{path}: damaged ({error}); delete the directory to start over") from error

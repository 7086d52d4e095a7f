"""The run directory: what a search has finished, so that a killed one goes on where it was.

    run.json                       hyperparameters, model signature, versions, hash: which search this is
    start.safetensors              theta_0, buffers and random states at the start of level 0
    rewind.safetensors             the same at step k, and the attached optimiser's state; unless rewind="init"
    candidate_512.safetensors      the same at a step that rewind="auto" may choose, until it has
    stability_512.json             the errors on the line between two copies that trained on from there
    level_03.safetensors           ticket of level 3: the level is finished exactly when this file exists
    level_03.json                  its wall time and layouts: what differs from run to run stays out of the ticket
    control_03_reinit.safetensors  and .json: a control
    lock                           who is at work here

Every file is written atomically, a ticket after everything that belongs to it. Killed between any two instructions, the
search finds a consistent prefix of itself. In a distributed search rank 0 alone comes here, and the others are told.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lth_sparse._files import atomic_write
from lth_sparse.engine.container import canonical_json
from lth_sparse.engine.distributed import led, shared
from lth_sparse.engine.lock import DirectoryLock
from lth_sparse.engine.snapshot import Snapshot
from lth_sparse.engine.ticket import Ticket, versions
from lth_sparse.errors import ArgumentTypeError, RunError, TicketError, expected

__all__ = ["RunDirectory"]

FORMAT = 1


class RunDirectory:
    """One search's directory; made when missing.

    Args:
        path: the directory.
        hyperparameters: JSON values, as :meth:`Settings.hyperparameters` gives them.
        model: name -> [shape, dtype] of the model's state_dict.
    """

    def __init__(
        self, path: str | os.PathLike[str], hyperparameters: Mapping[str, Any], model: Mapping[str, Any]
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise ArgumentTypeError(expected("directory", "a path", path))
        self.path = Path(path)
        self._identity = {"hyperparameters": dict(hyperparameters), "model": dict(model)}

    @contextlib.contextmanager
    def locked(self) -> Iterator[RunDirectory]:
        """Own the directory for a while, after checking that it belongs to this search.

        Raises:
            RunError: it cannot be made or written, another run is at work in it, or it holds another search; then the
                message names the field that differs and both values.
            TicketError: its run.json is damaged.
        """
        with contextlib.ExitStack() as stack:
            shared(lambda: self._enter(stack))
            yield self

    def _enter(self, stack: contextlib.ExitStack) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the run directory {self.path}: {error.strerror or error}") from error
        stack.enter_context(DirectoryLock(self.path / "lock"))
        self._check_identity()

    @led
    def ticket(self, level: int, control: str | None = None) -> Ticket | None:
        """The finished ticket of a level or control; None when it has not been finished.

        Raises:
            TicketError: the file is damaged, or is not the ticket that its name says.
        """
        path = self._path(level, control)
        if not path.exists():
            return None
        try:
            ticket = Ticket.load(path)
        except TicketError as error:
            raise TicketError(f"{error}. Delete that file to have the level trained again") from error
        if (ticket.level, ticket.control) != (level, control):
            raise TicketError(f"{path}: expected level {level}, control {control}, got {ticket!r}; delete that file")
        return ticket

    @led
    def notes(self, level: int, control: str | None = None) -> dict[str, Any]:
        """Wall time and layouts of a finished level; without its file, seconds are NaN and there are no layouts."""
        try:
            notes = json.loads(self._path(level, control).with_suffix(".json").read_text())
            return {"seconds": float(notes["seconds"]), "layers": list(notes["layers"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {"seconds": math.nan, "layers": []}

    @led
    def keep(self, ticket: Ticket, notes: Mapping[str, Any]) -> None:
        """Store a finished level, the ticket last: with it the level is done.

        Raises:
            RunError: the disk is full or the directory cannot be written.
        """
        path = self._path(ticket.level, ticket.control)
        atomic_write(path.with_suffix(".json"), (json.dumps(notes, indent=1) + "\n").encode())
        ticket.save(path)

    @led
    def snapshot(self, name: str) -> Snapshot | None:
        """The stored snapshot "start", "rewind" or "candidate_<step>", or None."""
        path = self.path / f"{name}.safetensors"
        return Snapshot.load(path) if path.exists() else None

    @led
    def keep_snapshot(self, name: str, snapshot: Snapshot) -> None:
        """Store a snapshot."""
        snapshot.save(self.path / f"{name}.safetensors")

    @led
    def candidates(self) -> dict[int, Snapshot]:
        """The stored candidates for the rewind point, by step."""
        return {step: Snapshot.load(path) for step, path in self._numbered("candidate_*.safetensors").items()}

    @led
    def forget_candidates(self) -> None:
        """Delete the candidates."""
        for path in self._numbered("candidate_*.safetensors").values():
            path.unlink(missing_ok=True)

    @led
    def stability(self) -> dict[int, dict[str, list[float]]]:
        """What was found of each candidate, by step; a damaged file counts as none, its copies are trained again."""
        found = {}
        for step, path in self._numbered("stability_*.json").items():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                content = json.loads(path.read_text())
                found[step] = {key: [float(value) for value in content[key]] for key in ("positions", "errors")}
        return found

    @led
    def keep_stability(self, step: int, content: Mapping[str, Any]) -> None:
        """Store what was found of one candidate."""
        atomic_write(self.path / f"stability_{step}.json", (json.dumps(content) + "\n").encode())

    def _numbered(self, pattern: str) -> dict[int, Path]:
        """Step -> path of the files of ``pattern`` whose star is a number."""
        before, after = pattern.split("*")
        steps = {path.name.removeprefix(before).removesuffix(after): path for path in self.path.glob(pattern)}
        return {int(step): path for step, path in steps.items() if step.isdecimal()}

    def _path(self, level: int, control: str | None) -> Path:
        stem = f"level_{level:02d}" if control is None else f"control_{level:02d}_{control}"
        return self.path / f"{stem}.safetensors"

    def _check_identity(self) -> None:
        path = self.path / "run.json"
        if not path.exists():
            if stray := sorted(self.path.glob("level_*.safetensors")):
                raise RunError(f"{self.path}: holds {stray[0].name} but no run.json; choose another directory")
            content = {"format": FORMAT, **self._identity, "versions": versions(), "hash": _hash(self._identity)}
            atomic_write(path, (json.dumps(content, indent=1) + "\n").encode())
            return
        advice = "choose another directory, or delete this one to start over"
        try:
            found = json.loads(path.read_text())
            theirs = {part: found[part] for part in self._identity}
            if found["format"] != FORMAT:
                raise RunError(f"{path}: expected run format {FORMAT}, got {found['format']!r}; {advice}")
            if found["hash"] != _hash(theirs):
                raise ValueError("its content does not match its hash")
            used = dict(found["versions"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TicketError(f"{path}: damaged ({error}); {advice}") from error
        ours = json.loads(json.dumps(self._identity))
        for part, fields in ours.items():
            for name in [*fields, *(name for name in theirs[part] if name not in fields)]:
                old, new = theirs[part].get(name, "nothing"), fields.get(name, "nothing")
                if old != new:
                    what = name if part == "hyperparameters" else f"model: {name}"
                    raise RunError(f"{self.path}: {what} is {old!r} in this run, but {new!r} was asked for; {advice}")
        for name, version in versions().items():
            if used.get(name) != version:
                change = f"begun with {name} {used.get(name)}, going on with {version}"
                warnings.warn(f"{self.path}: {change}; results may differ in the last bits", UserWarning, stacklevel=2)


def _hash(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()

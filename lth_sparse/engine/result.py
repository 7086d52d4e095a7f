"""What a search found: a record per level and control, the tickets, and the verdict.

Winning ticket (Frankle & Carbin 2018, section 1): a subnetwork that, trained from theta_0, reaches test accuracy
a' >= a in j' <= j iterations, with far fewer weights than the dense network (a, j); and that owes it to its initial
weights and their places, which the controls show. Here j is the early-stop iteration and a the test accuracy at it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lth_sparse.engine.analyses.barrier import Barrier
from lth_sparse.engine.controls import CONTROLS, JUDGES, REQUIRED
from lth_sparse.engine.level import EarlyStop, early_stop_of
from lth_sparse.engine.ticket import Ticket
from lth_sparse.errors import ArgumentError, RunError, expected

__all__ = ["LevelRecord", "TicketResult", "Verdict", "ticket_kind"]


def ticket_kind(accurate: bool, quick: bool | None, compared: Iterable[str], as_good: Iterable[str]) -> str:
    """ "winning", "matching" or "not": the one place where the three are told apart.

    Args:
        accurate: test accuracy is no lower than dense, a' >= a.
        quick: the early stop comes no later than dense's, j' <= j; None where that was not recorded.
        compared: kinds of the controls that were trained at this level; "winning" needs all of ``REQUIRED``.
        as_good: those of them that are as accurate as the ticket; "winning" needs none of ``JUDGES``.
    """
    if not accurate:
        return "not"
    proved = set(REQUIRED) <= set(compared) and not set(as_good) & set(JUDGES)
    return "winning" if quick and proved else "matching"


@dataclass(frozen=True)
class LevelRecord:
    """One training, finished.

    Attributes:
        index, control, density: which one, see :class:`lth_sparse.engine.Level`.
        seconds: wall time of the training alone; NaN when its file in the run directory is gone.
        metrics: final ones; history: rows by step; early_stop: the row with the lowest validation loss, or None.
        counts: weight name -> (kept, all).
        layers: rows of the sparsify report as dicts (name, layout, backend, bytes, ...); empty for a dense level.
        resumed: True when it was read from a run directory instead of trained.
    """

    index: int
    density: float
    seconds: float
    metrics: dict[str, float]
    early_stop: EarlyStop | None
    history: list[dict[str, Any]]
    counts: dict[str, tuple[int, int]]
    layers: list[dict[str, Any]] = field(default_factory=list)
    control: str | None = None
    resumed: bool = False

    @classmethod
    def of(cls, ticket: Ticket, notes: Mapping[str, Any], resumed: bool) -> LevelRecord:
        """From a ticket and what the run directory notes beside it."""
        return cls(
            index=ticket.level,
            density=ticket.density,
            seconds=notes["seconds"],
            metrics=dict(ticket.metrics),
            early_stop=early_stop_of(ticket.history),
            history=list(ticket.history),
            counts={stats.name: (stats.nnz, stats.numel) for stats in ticket.masks.stats()},
            layers=list(notes["layers"]),
            control=ticket.control,
            resumed=resumed,
        )

    def accuracy(self, metric: str = "test_acc") -> float | None:
        """``metric`` at the early stop; at the end where it was not recorded there; None where neither has it."""
        if self.early_stop is not None and metric in self.early_stop.metrics:
            return self.early_stop.metrics[metric]
        return self.metrics.get(metric)


@dataclass(frozen=True)
class Verdict:
    """Judgement over one search.

    Attributes:
        kind: "winning": as accurate as dense, as early, and better than the controls; "matching": as accurate as
            dense, but later, or a required control is missing or one that judges does as well; "not": less accurate
            at every level.
        level, density: the smallest winning level, else the smallest matching one, else the last.
        text: one sentence.
        rows: per level: level, density, kind, step, accuracy, seconds, controls {kind: accuracy}.
    """

    kind: str
    level: int
    density: float
    text: str
    rows: list[dict[str, Any]]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class TicketResult:
    """All of a search.

    Attributes:
        tickets: by level; levels: their records.
        controls, control_tickets: (level, kind) -> record and ticket of each control.
        stability: step -> error barrier, of the candidates that rewind="auto" looked at.
    """

    tickets: list[Ticket]
    levels: list[LevelRecord]
    controls: dict[tuple[int, str], LevelRecord]
    control_tickets: dict[tuple[int, str], Ticket]
    stability: dict[int, Barrier] = field(default_factory=dict)

    @property
    def ticket(self) -> Ticket:
        """The last level's, the sparsest."""
        if not self.tickets:
            raise RunError("result: no level has finished yet")
        return self.tickets[-1]

    def verdict(self, metric: str = "test_acc", tolerance: float = 0.0) -> Verdict:
        """Which is the smallest winning ticket?

        Args:
            metric: the accuracy to compare; higher is better.
            tolerance: how much less than dense still counts as equal, in units of ``metric``; a control that comes
                within it of the ticket does as well as the ticket.

        Raises:
            ArgumentError: ``metric`` was not recorded at every level, or no level was pruned.
        """
        if len(self.levels) < 2:
            got = f"{len(self.levels)} trainings"
            raise ArgumentError(expected("levels", "at least one pruned level to judge", got))
        for record in [*self.levels, *self.controls.values()]:
            if record.accuracy(metric) is None:
                known = {*record.metrics, *(record.early_stop.metrics if record.early_stop else ())}
                what = f"one that train recorded ({', '.join(sorted(known)) or 'nothing'})"
                raise ArgumentError(expected("metric", what, repr(metric)))
        rows = [self._row(record, metric, tolerance) for record in self.levels]
        for kind in ("winning", "matching"):
            chosen = [row for row in rows[1:] if row["kind"] == kind]
            if chosen:
                return self._verdict(kind, chosen[-1], rows, metric)
        return self._verdict("not", rows[-1], rows, metric)

    def _row(self, record: LevelRecord, metric: str, tolerance: float) -> dict[str, Any]:
        dense = self.levels[0]
        accuracy, reference = record.accuracy(metric), dense.accuracy(metric)
        present = [kind for kind in CONTROLS if (record.index, kind) in self.controls]
        controls = {kind: self.controls[record.index, kind].accuracy(metric) for kind in present}
        assert accuracy is not None  # verdict() has checked
        assert reference is not None
        stop, dense_stop = record.early_stop, dense.early_stop
        as_early = stop is not None and dense_stop is not None and stop.step <= dense_stop.step
        as_good = [kind for kind, value in controls.items() if value is None or value >= accuracy - tolerance]
        kind = "dense"
        if record.index > 0:
            kind = ticket_kind(accuracy >= reference - tolerance, as_early, controls, as_good)
        return {
            "level": record.index,
            "density": record.density,
            "kind": kind,
            "step": None if record.early_stop is None else record.early_stop.step,
            "accuracy": accuracy,
            "seconds": record.seconds,
            "controls": controls,
        }

    def _verdict(self, kind: str, row: Mapping[str, Any], rows: list[dict[str, Any]], metric: str) -> Verdict:
        dense = rows[0]
        left = f"{row['density']:.1%} of the weights"
        when = "" if row["step"] is None or dense["step"] is None else f" at step {row['step']} against {dense['step']}"
        figures = f"{metric} {row['accuracy']:.4g} against {dense['accuracy']:.4g} dense{when}"
        if kind == "winning":
            text = f"Level {row['level']}, {left}, is a winning ticket: {figures}, and better than every control."
        elif kind == "matching":
            text = f"Level {row['level']}, {left}, matches the dense network: {figures}; {_doubt(row, dense)}."
        else:
            text = f"No level matches the dense network; the last, {left}, has {figures}."
        return Verdict(kind, row["level"], row["density"], text, rows)


def _doubt(row: Mapping[str, Any], dense: Mapping[str, Any]) -> str:
    """Why a network that is accurate enough is not called a winning ticket."""
    missing = [CONTROLS[kind] for kind in REQUIRED if kind not in row["controls"]]
    if row["step"] is None or dense["step"] is None:
        return "without val_loss in the history nothing is known of its speed"
    if row["step"] > dense["step"]:
        return "it learns later than the dense network"
    if missing:
        return f"not compared with the {' and the '.join(missing)} at this level"
    return "a control does as well"

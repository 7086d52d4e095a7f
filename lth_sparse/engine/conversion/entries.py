"""The rows of a ledger, what they cost, and which of them is the best: plain values and arithmetic, no measurement."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lth_sparse.engine.analyses import Cost
from lth_sparse.engine.conversion.layer import LayerConversion, stored_values
from lth_sparse.engine.conversion.timing import NetworkTime
from lth_sparse.engine.ticket import Ticket
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.nn.base import SparseModule

__all__ = ["AUTO", "CSR", "DENSE", "Best", "Entry", "Ledger", "Work", "work_of"]

#: Names of the entries that conversions are compared with: dense torch; the ticket itself with every pruned layer in
#: CSR; and the ticket with the layout that ``sparsify_`` measures to be the fastest for each layer.
DENSE, CSR, AUTO = "dense", "csr", "auto"
BASELINES = (DENSE, CSR, AUTO)


@dataclass(frozen=True)
class Work:
    """What a network multiplies and stores.

    Attributes:
        flops: of one example's forward pass, 2 for each live weight and position. padded: for each stored value, what
            is in fact computed.
        value_bytes: of weights, padding included. index_bytes: of the index tensors.
    """

    flops: float
    padded: float
    value_bytes: int
    index_bytes: int

    @property
    def bytes(self) -> int:
        """Of weights and index together."""
        return self.value_bytes + self.index_bytes


def work_of(model: nn.Module, cost: Cost) -> Work:
    """Count a network that :meth:`Ticket.apply` has made.

    Args:
        cost: of the ticket's masks, for the positions at which each weight is used.
    """
    flops = padded = 0.0
    values = index = 0
    for layer in cost.layers:
        module = model.get_submodule(layer.name.rpartition(".")[0])
        stored = layer.numel
        if isinstance(module, SparseModule):
            stored = stored_values(module.layout)
            index += module.layout.nbytes
        values += stored * layer.element
        # The dense layout stores live weights alone, and multiplies all.
        multiplied = layer.numel if isinstance(module, SparseModule) and module.layout.kind == "dense" else stored
        flops += 2.0 * layer.nnz * layer.positions
        padded += 2.0 * multiplied * layer.positions
    return Work(flops, padded, values, index)


@dataclass(frozen=True)
class Entry:
    """One row of the ledger: a baseline, a method, or a ticket that the caller compares.

    Attributes:
        name: of the baseline, the method's spelling, or what the caller calls it.
        live, numel: weights kept of all, over all layers.
        kept, added, dropped: against the ticket that is converted; None for another ticket's.
        magnitude: share of sum |w| of the ticket's trained weights that is kept; None for another ticket's.
        stored_before, stored: values that blocks of the ticket's own mask would store, and values stored now, over the
            layers that the method looked at.
        work: multiplications and bytes. time: None where nothing was timed.
        accuracy: of the trained weights as they come out of the conversion; None without ``evaluate``.
        retrained: after retraining from theta_k, one for each repetition.
        layers: a row for each layer that the method looked at. positions: layer -> how often one example's forward pass
            multiplies each of its weights.
        notes: what a reader must know.
        ticket: for the entry that is chosen; not part of the file.
    """

    name: str
    live: int
    numel: int
    kept: int | None
    added: int | None
    dropped: int | None
    magnitude: float | None
    stored_before: int
    stored: int
    work: Work
    time: NetworkTime | None = None
    accuracy: float | None = None
    retrained: tuple[float, ...] = ()
    layers: tuple[LayerConversion, ...] = ()
    positions: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ticket: Ticket | None = field(default=None, repr=False, compare=False)

    @property
    def density(self) -> float:
        """Share of the weights that are kept."""
        return self.live / self.numel if self.numel else 0.0

    @property
    def block_density_before(self) -> float | None:
        """Share of the values in blocks of the ticket's own mask that would be live; None without a block layer."""
        before = sum(row.before for row in self.layers)
        return before / self.stored_before if self.stored_before else None

    @property
    def block_density(self) -> float | None:
        """Share of the stored values that is live."""
        live = sum(row.live for row in self.layers)
        return live / self.stored if self.stored else None

    def padded(self, layer: LayerConversion) -> float:
        """FLOPs of one of ``layers`` in an example's forward pass, padding included; NaN for an unknown layer."""
        return 2.0 * layer.stored * self.positions.get(layer.name, math.nan)

    @property
    def baseline(self) -> bool:
        """Whether it is what conversions are compared with."""
        return self.name in BASELINES

    @property
    def final(self) -> float | None:
        """The accuracy that counts: the mean after retraining, or without any that of the trained weights."""
        return statistics.fmean(self.retrained) if self.retrained else self.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        row = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {
            **row,
            "density": self.density,
            "block_density_before": self.block_density_before,
            "block_density": self.block_density,
            "work": dataclasses.asdict(self.work),
            "time": None if self.time is None else dataclasses.asdict(self.time),
            "positions": dict(self.positions),
            "layers": [layer.to_dict() for layer in self.layers],
            "ticket": None if self.ticket is None else self.ticket.hash,
        }


@dataclass(frozen=True)
class Best:
    """The entry that :meth:`Ledger.best` chooses, and why."""

    entry: Entry
    text: str


@dataclass(frozen=True)
class Ledger:
    """All entries of one ticket on one target.

    Attributes:
        source: hash of the ticket. target: ``"cpu"`` or ``"cuda"``.
        entries: baselines first.
        steps: optimiser steps of each retraining; 0 without any.
        threads: of torch while it was timed.
    """

    source: str
    target: str
    entries: tuple[Entry, ...]
    steps: int = 0
    threads: int = field(default_factory=torch.get_num_threads)

    def __getitem__(self, name: str) -> Entry:
        for entry in self.entries:
            if entry.name == name:
                return entry
        known = ", ".join(entry.name for entry in self.entries)
        raise ArgumentError(expected("entry", f"one of {known}", repr(name)))

    @property
    def choices(self) -> tuple[Entry, ...]:
        """What may be chosen: the ticket in its own layouts, and the conversions."""
        return tuple(entry for entry in self.entries if entry.name != DENSE)

    def loss(self, entry: Entry) -> float | None:
        """Percentage points that an entry is less accurate than the ticket, both retrained or neither; else None."""
        ours, theirs = self[CSR], entry
        if ours.final is None or theirs.final is None or bool(ours.retrained) != bool(theirs.retrained):
            return None
        return 100.0 * (ours.final - theirs.final)

    def pareto(self) -> tuple[Entry, ...]:
        """Entries that no other beats in both accuracy and step time (of those that have both), fastest first."""
        found = [entry for entry in self.choices if entry.time is not None and entry.final is not None]
        found.sort(key=lambda entry: (_seconds(entry), -(entry.final or 0.0)))
        front: list[Entry] = []
        for entry in found:
            if not front or (entry.final or 0.0) > (front[-1].final or 0.0):
                front.append(entry)
        return tuple(front)

    def best(self, budget_loss: float = 0.5) -> Best:
        """The fastest training step among the entries that lose at most ``budget_loss`` points.

        Where nothing was timed it is the one with the fewest multiplications. Without accuracies only entries that
        drop nothing qualify, since a loss that is not known may be any.

        Raises:
            ArgumentError: a budget that is no number of points.
        """
        if isinstance(budget_loss, bool) or not isinstance(budget_loss, (int, float)) or not budget_loss >= 0.0:
            raise ArgumentError(expected("budget_loss", "percentage points, 0 or more", budget_loss))
        within = [entry for entry in self.choices if self._within(entry, budget_loss)]
        timed = all(entry.time is not None for entry in within)
        chosen = min(within, key=lambda entry: _seconds(entry) if timed else entry.work.padded)
        lost = self.loss(chosen)
        price = (
            "accuracy was not measured" if lost is None else f"{abs(lost):.2f} points {'lost' if lost > 0 else 'won'}"
        )
        if chosen.name in (CSR, AUTO):
            text = f"The ticket itself ({chosen.name}) is the best: no conversion within {budget_loss:g} points "
            return Best(chosen, text + ("trains faster." if timed else "multiplies less."))
        if timed and chosen.time is not None:
            ratios = [(name, chosen.time.step_ratios[name]) for name in (CSR, AUTO, DENSE)]
            gain = ", ".join(f"{span.median:.2f}x {name} [{span.low:.2f}, {span.high:.2f}]" for name, span in ratios)
            return Best(chosen, f"{chosen.name}: a training step at {gain}; {price}.")
        share = chosen.work.padded / self[CSR].work.padded if self[CSR].work.padded else math.nan
        how = f"{share:.2f} of the ticket's multiplications, the choice's measure as no time was taken"
        return Best(chosen, f"{chosen.name}: {how}; {price}.")

    def _within(self, entry: Entry, budget: float) -> bool:
        lost = self.loss(entry)
        if lost is None:
            return entry.name in (CSR, AUTO) or entry.dropped == 0
        return lost <= budget + 1e-9  # 0.5 points of a share such as 0.982 are not exact in binary

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "format": 1,
            "source": self.source,
            "target": self.target,
            "steps": self.steps,
            "threads": self.threads,
            "entries": [{**entry.to_dict(), "points_lost": self.loss(entry)} for entry in self.entries],
            "pareto": [entry.name for entry in self.pareto()],
        }


def _seconds(entry: Entry) -> float:
    assert entry.time is not None  # the callers have asked
    return entry.time.step.median

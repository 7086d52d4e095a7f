"""The ledger: every method on one ticket, with what it keeps, what it costs, how fast it is, and how accurate.

    ledger = ls.engine.conversion.ledger(ticket, dense=level_0, model=model, sample=(x, y), train=train,
                                         evaluate=evaluate, steps=500)
    ledger.best(budget_loss=0.5).entry.ticket.save("blocks.safetensors")

Accuracies are compared like with like: the ticket itself is retrained as its conversions are, from theta_k, with the
same random states and the same number of steps. Times are those of whole networks, interleaved (``timing.py``), with
the layers' ReLUs fused as the search trains them.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lth_sparse.engine.analyses import count_cost
from lth_sparse.engine.conversion.conversion import convert, device_of
from lth_sparse.engine.conversion.entries import AUTO, CSR, DENSE, Entry, Ledger, work_of
from lth_sparse.engine.conversion.layer import LayerConversion, moved
from lth_sparse.engine.conversion.methods import Method
from lth_sparse.engine.conversion.timing import Loss, Optimizer, time_networks
from lth_sparse.engine.granularity import Granularity
from lth_sparse.engine.rng import preserved_rng, seed_all
from lth_sparse.engine.ticket import Ticket
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.nn import feature_major_, fuse_relu_
from lth_sparse.ops.measure import BUDGET

__all__ = ["STANDARD", "ledger"]

#: The methods that are tried where none are named.
STANDARD: dict[str, tuple[str, ...]] = {
    "cpu": (
        *("cover:4x1", "cover:4x1:theta", "drop:4x1:zeros", "drop:16x16", "vectors:4x1", "vectors:4x1:growth=1.5"),
        *("vectors:8x1", "regroup:16x1", "refill", "refill:shrink", "refill+:shrink", "refill+:shrink:extra=0.3"),
        *("2:4", "shrink"),
    ),
    "cuda": (
        *("cover:32x32", "drop:32x32", "drop:32x32:zeros", "vectors:16x1", "regroup:32x1"),
        *("refill", "refill:shrink", "refill+:shrink", "refill+:shrink:extra=0.3", "2:4", "shrink"),
    ),
}

Progress = Callable[[float, str], None]


def ledger(
    ticket: Ticket,
    methods: Iterable[str | Method] | None = None,
    *,
    model: nn.Module,
    sample: tuple[Any, Any],
    target: str = "cpu",
    dense: Ticket | Mapping[str, Tensor] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    train: Callable[[nn.Module], Any] | None = None,
    steps: int = 0,
    repeats: int = 1,
    others: Mapping[str, Ticket] | None = None,
    optimizer: Optimizer | None = None,
    loss: Loss = F.cross_entropy,
    feature_major: bool = False,
    seconds: float = 1.0,
    rounds: int = 15,
    seed: int = 0,
    progress: Progress | None = None,
) -> Ledger:
    """Convert ``ticket`` by every method and measure what comes of it.

    A method with which no layer gets faster is carried out on all layers all the same and its entry says so: its price
    is worth knowing. Where some do, the others stay as they are, see :func:`convert`.

    Args:
        ticket, target, dense: as for :func:`convert`. methods: by default ``STANDARD`` of the target.
        model: the plain architecture. sample: a batch of inputs and targets, the size of a training step's.
        evaluate: ``evaluate(model) -> accuracy``, a share in [0, 1]; without it no accuracies.
        train: ``train(model)`` takes ``steps`` optimiser steps; without it nothing is retrained.
        repeats: retrainings of each entry, with random states of their own.
        others: further tickets of the same network by name, such as one found with ``granularity="block:16x16"``; they
            are retrained and timed as conversions are.
        optimizer, loss: of the timed training step; Adam and cross entropy by default.
        feature_major: keep activations feature-major, as ``find_ticket(..., feature_major=True)`` trains.
        seconds, rounds: for each network and pass that is timed, and least number of rounds.
        seed: of the retrainings and the reordering.
        progress: called now and then with the share of the work that is done, and words.

    Raises:
        ArgumentError, ArgumentTypeError: naming the argument.
    """
    _check(model, sample, target, evaluate, train, repeats)
    wanted = [
        one if isinstance(one, Method) else Method.parse(one)
        for one in (STANDARD[target] if methods is None else methods)
    ]
    book = _Book(model, sample, target, feature_major, min(BUDGET, seconds), progress or (lambda done, words: None))
    book.begin(len(wanted) + len(others or {}) + 2)
    book.add_dense(ticket, dense)
    book.add(CSR, ticket, layout="csr")
    book.add(AUTO, ticket, sample_input=book.measured)
    for method in wanted:
        book.say(method.text)
        book.add_method(ticket, method, dense, seed)
    for name, other in (others or {}).items():
        if name in book.entries:
            raise ArgumentError(expected("others", "names of their own", repr(name)))
        book.say(name)
        block = Granularity.parse(other.hyperparameters.get("granularity", "weight")).block
        book.add(name, other, block=block, sample_input=book.measured, converted=False)
    book.judge(ticket, evaluate, train, repeats, seed)
    book.time(optimizer, loss, seconds, rounds)
    return Ledger(ticket.hash, target, tuple(book.entries.values()), steps if train is not None else 0)


class _Book:
    """The entries while they are made, and their networks."""

    def __init__(
        self,
        model: nn.Module,
        sample: tuple[Any, Any],
        target: str,
        feature_major: bool,
        budget: float,
        progress: Progress,
    ) -> None:
        self.target, self.feature_major, self.budget, self.progress = target, feature_major, budget, progress
        self.device = device_of(target)
        place = self.device or torch.device("cpu")
        self.model = copy.deepcopy(model).to(place)
        self.x, self.y = (moved(one, place) for one in sample)
        #: What layouts are measured with: nothing where the target is not here.
        self.measured = None if self.device is None else self.x
        self.entries: dict[str, Entry] = {}
        self.networks: dict[str, Callable[[str], nn.Module]] = {}
        self.notes: dict[str, tuple[str, ...]] = {}
        self.dense_trained = False
        self.numel = self.nnz = 0
        self.done, self.parts = 0, 1

    def begin(self, parts: int) -> None:
        """So many parts of the work will be announced."""
        self.parts = 2 * parts + 1  # each is converted, and then judged; timing is one more

    def say(self, words: str) -> None:
        """Announce a part."""
        self.progress(min(self.done / self.parts, 1.0), words)
        self.done += 1

    def add_dense(self, ticket: Ticket, dense: Ticket | Mapping[str, Tensor] | None) -> None:
        """Dense torch: with the trained weights of level 0 where the caller has given that ticket."""
        work = work_of(self.model, count_cost(self.model, ticket.masks, _one(self.x)))
        work = dataclasses.replace(work, flops=work.padded)
        self.numel, self.nnz = ticket.masks.numel, ticket.masks.nnz
        self.entries[DENSE] = Entry(DENSE, self.numel, self.numel, None, None, None, None, 0, 0, work)
        self.dense_trained = isinstance(dense, Ticket)
        if isinstance(dense, Ticket):
            self.networks[DENSE] = lambda weights: dense.apply(self.model, weights)
        else:
            self.networks[DENSE] = lambda weights: self.model

    def add_method(
        self, ticket: Ticket, method: Method, dense: Ticket | Mapping[str, Tensor] | None, seed: int
    ) -> None:
        """A conversion; in full where no layer gains."""
        common: dict[str, Any] = {"method": method, "dense": dense, "model": self.model, "seed": seed}
        common |= {"sample_input": self.x, "budget": self.budget}
        made = convert(ticket, self.target, **common)
        notes = list(made.notes)
        if not any(row.converted for row in made.layers):
            made = convert(ticket, self.target, **common, only_gains=False)
            notes += [*made.notes, "no layer gets faster; carried out on all layers nevertheless"]
        self.add(made.method.text, made.ticket, rows=made.layers, notes=tuple(notes), sample_input=self.measured)

    def add(
        self,
        name: str,
        ticket: Ticket,
        *,
        rows: tuple[LayerConversion, ...] | None = (),
        notes: tuple[str, ...] = (),
        converted: bool = True,
        **layout: Any,
    ) -> None:
        """An entry without accuracies and times, and how to make its network."""

        template = ticket.apply(self.model, **layout)  # once: with a sample, layouts are measured

        def network(weights: str) -> nn.Module:
            made = copy.deepcopy(template)
            made.load_state_dict(ticket.state_dict(weights))
            fuse_relu_(made)
            if self.feature_major:
                feature_major_(made)
            return made

        if name in self.entries:
            raise ArgumentError(expected("methods", "each method once", repr(name)))
        rows = rows or ()
        whole = sum(int(mask.sum()) for key, mask in ticket.masks.items() if key not in {row.name for row in rows})
        cost = count_cost(ticket.architecture(self.model), ticket.masks, _one(self.x))
        kept = whole + sum(row.kept for row in rows)
        before = math.fsum(row.magnitude_before for row in rows)
        self.networks[name] = network
        self.entries[name] = Entry(
            name=name,
            live=ticket.masks.nnz,
            numel=self.numel,
            kept=kept if converted else None,
            added=sum(row.added for row in rows) if converted else None,
            dropped=self.nnz - kept if converted else None,
            magnitude=(math.fsum(row.magnitude for row in rows) / before if before else 1.0) if converted else None,
            stored_before=sum(row.stored_before for row in rows),
            stored=sum(row.stored for row in rows),
            work=work_of(template, cost),
            layers=rows,
            positions={layer.name: layer.positions for layer in cost.layers},
            notes=notes,
            ticket=ticket,
        )

    def judge(
        self,
        ticket: Ticket,
        evaluate: Callable[[nn.Module], float] | None,
        train: Callable[[nn.Module], Any] | None,
        repeats: int,
        seed: int,
    ) -> None:
        """Accuracies: of the trained weights, and after retraining. ``auto`` is the ticket too and shares ``csr``'s."""
        if evaluate is None:
            return
        known: dict[str, tuple[float, tuple[float, ...]]] = {}
        for name, entry in self.entries.items():
            self.say(f"{name}: accuracy")
            if name == DENSE:
                if self.dense_trained:
                    with preserved_rng():
                        seed_all(seed)
                        accuracy = _accuracy(evaluate, self.networks[name]("trained"))
                    self.entries[name] = dataclasses.replace(entry, accuracy=accuracy)
                continue
            key = ticket.hash if name in (CSR, AUTO) else name
            if key not in known:
                known[key] = self._accuracies(name, evaluate, train, repeats, seed)
            accuracy, retrained = known[key]
            self.entries[name] = dataclasses.replace(entry, accuracy=accuracy, retrained=retrained)

    def _accuracies(
        self,
        name: str,
        evaluate: Callable[[nn.Module], float],
        train: Callable[[nn.Module], Any] | None,
        repeats: int,
        seed: int,
    ) -> tuple[float, tuple[float, ...]]:
        with preserved_rng():
            seed_all(seed)
            accuracy = _accuracy(evaluate, self.networks[name]("trained"))
            retrained = []
            for repeat in range(repeats if train is not None else 0):
                assert train is not None
                model = self.networks[name]("initial")
                seed_all(seed + repeat)
                train(model)
                retrained.append(_accuracy(evaluate, model))
        return accuracy, tuple(retrained)

    def time(self, optimizer: Optimizer | None, loss: Loss, seconds: float, rounds: int) -> None:
        """Whole networks, all of them in turn; nothing where the target is not here."""
        self.say("timing")
        if self.device is None:
            return
        models = {name: network("initial") for name, network in self.networks.items()}
        times = time_networks(
            models,
            self.x,
            self.y,
            device=self.device,
            against=(DENSE, CSR, AUTO),
            optimizer=optimizer,
            loss=loss,
            seconds=seconds,
            rounds=rounds,
        )
        for name, entry in self.entries.items():
            self.entries[name] = dataclasses.replace(entry, time=times[name])


def _check(model: object, sample: object, target: object, evaluate: object, train: object, repeats: object) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(expected("model", "a torch.nn.Module", type(model).__name__))
    if not isinstance(sample, tuple) or len(sample) != 2:
        raise ArgumentTypeError(expected("sample", "a tuple (inputs, targets)", type(sample).__name__))
    if target not in STANDARD:
        raise ArgumentError(expected("target", " or ".join(map(repr, STANDARD)), repr(target)))
    for name, value in (("evaluate", evaluate), ("train", train)):
        if value is not None and not callable(value):
            raise ArgumentTypeError(expected(name, "a callable that takes the model", value))
    if train is not None and evaluate is None:
        raise ArgumentError(expected("evaluate", "a callable, with train", None))
    if type(repeats) is not int or repeats < 1:
        raise ArgumentError(expected("repeats", "1 or more", repeats))


def _accuracy(evaluate: Callable[[nn.Module], float], model: nn.Module) -> float:
    value = evaluate(model)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ArgumentError(expected("evaluate", "an accuracy, a share in [0, 1]", value))
    return float(value)


def _one(x: Any) -> Any:
    """The first example of a batch, to count multiplications with."""
    if isinstance(x, Tensor):
        return x[:1]
    if isinstance(x, tuple):
        return tuple(one[:1] if isinstance(one, torch.Tensor) else one for one in x)
    raise ArgumentTypeError(expected("sample", "inputs that are a tensor or a tuple of tensors", type(x).__name__))

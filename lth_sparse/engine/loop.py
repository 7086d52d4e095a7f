"""The search for winning tickets: iterative magnitude pruning with rewinding (Frankle & Carbin 2018, section 2).

    for each level k = 0 ... n:
        prune     mask_k from the trained weights of level k - 1; level 0 keeps all. (Criteria at initialisation: from
                  theta_0 under mask_{k - 1}, whatever level k - 1 was trained to.)
        rewind    surviving weights, buffers and random states to theta_0 (or theta_k)
        train     the sparse network, with the user's own loop
        record    the ticket

then the controls. Each level is yielded to whoever trains it: ``find_ticket``, or a script's own loop over ``levels``.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.engine.controls import FRESH, REORDERED, altered, control_masks, reinitialise_
from lth_sparse.engine.distributed import check_alike, leads, led, shared, shared_captures, warn
from lth_sparse.engine.granularity import Granularity
from lth_sparse.engine.level import Level, emit
from lth_sparse.engine.pruning import check_depth, prune_level
from lth_sparse.engine.result import LevelRecord, TicketResult
from lth_sparse.engine.rewinding import START, Moment, Rewind
from lth_sparse.engine.rng import derived_seed, preserved_rng, restore_rng, seed_all
from lth_sparse.engine.rundir import RunDirectory
from lth_sparse.engine.selection import check_granularity, check_prunable, layer_rates, types_of, weights_of
from lth_sparse.engine.settings import Settings
from lth_sparse.engine.snapshot import Snapshot, load_tensors
from lth_sparse.engine.stability import Stability, is_no_data_order
from lth_sparse.engine.states import aliases_of, tensors_of
from lth_sparse.engine.strict import Strict
from lth_sparse.engine.ticket import Ticket
from lth_sparse.errors import ArgumentError, RunError, expected
from lth_sparse.formats import Mask
from lth_sparse.nn import dense_state_dict, feature_major_, fuse_relu_, sparsify_

__all__ = ["Search"]


class Search(Iterator[Level]):
    """Iterator over the levels that are still to be trained; ``result()`` has those that are done.

    Levels and controls that a run directory holds already are loaded, not yielded. The time between two turns is the
    level's wall time.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Settings,
        directory: str | os.PathLike[str] | None = None,
        callbacks: Iterable[Any] = (),
    ) -> None:
        weights = weights_of(model)
        self.settings = settings
        self._rates = layer_rates(
            weights,
            rate=settings.rate,
            output_rate=settings.output_rate,
            rates=settings.rates,
            prune=settings.prune,
            freeze=settings.freeze,
            types=types_of(model, weights),
        )
        self._tile = Granularity.parse(settings.granularity)
        rated = [name for name, rate in self._rates.items() if rate]
        check_granularity(model, rated, self._tile)
        if settings.target_density is None:  # else the search ends by itself
            shapes = {name: weight.shape for name, weight in weights.items()}
            check_depth(shapes, self._rates, settings.depth, settings.shared, self._tile)
        check_prunable(model, rated)
        self._rewind = Rewind.parse(settings.rewind)
        self._template = copy.deepcopy(model)  # the user's model is never touched again
        self._aliases = aliases_of(self._template)
        self._everything = Mask({name: torch.ones(w.shape, dtype=torch.bool) for name, w in weights.items()})
        self._callbacks = tuple(callbacks) if leads() else ()
        self._directory = None
        signature = {name: [list(t.shape), str(t.dtype)] for name, t in tensors_of(self._template).items()}
        asked = (settings.hyperparameters(), settings.controls, settings.control_levels, settings.strict, signature)
        self._asked = repr((*asked, directory is None))
        if directory is not None:
            self._directory = RunDirectory(directory, settings.hyperparameters(), signature)
        self._candidates: dict[int, Snapshot] = {}
        self._floored: set[str] = set()
        self._result = TicketResult([], [], {}, {})
        self._levels = self._run()

    def __iter__(self) -> Search:
        return self

    def __next__(self) -> Level:
        return next(self._levels)

    def close(self) -> None:
        """End the search early and release its run directory; what is finished stays finished."""
        self._levels.close()  # type: ignore[attr-defined]  # a generator

    def result(self) -> TicketResult:
        """Everything that has finished so far."""
        return self._result

    def _run(self) -> Iterator[Level]:
        check_alike(self._asked)
        with self._directory.locked() if self._directory else contextlib.nullcontext():
            self._start = self._snapshot("start") or self._begin()
            self._rewound: Snapshot | None = self._start if self._rewind.moment == START else self._snapshot("rewind")
            for k in range(self.settings.depth + 1):
                if k == 1 and self._rewind.moment is None:
                    yield from self._find_rewind_point()
                if not self._recall(k):
                    if k == 0 and not self.settings.dense_baseline:
                        self._keep_untrained()
                    else:
                        masks = self._prune(k)
                        yield from self._train(self._level(k, masks), masks)
                if self._ends(k):
                    break
            for k, control in self.settings.control_runs(len(self._result.tickets) - 1):
                if not self._recall(k, control):
                    masks = self._control_masks(k, control)
                    yield from self._train(self._control_level(k, control, masks), masks)

    # --- the steps of a level, in the order in which they happen ---------------------------------------------------

    @led
    def _begin(self) -> Snapshot:
        """The start of level 0: the model as it came, random states from the seed."""
        with preserved_rng():
            seed_all(self.settings.seed)
            start = Snapshot.take(self._template, 0, {})
        if self._directory:
            self._directory.keep_snapshot("start", start)
        return start

    @led
    def _prune(self, k: int) -> Mask:
        """mask_k from the survivors of level k - 1."""
        if k == 0:
            return self._everything
        pruned = prune_level(
            k, self._result.tickets[k - 1], self._start.tensors, self._dense, self._rates, self.settings
        )
        for name in sorted(set(pruned.floored) - self._floored):
            mask = pruned.masks[name]
            kept, floor = int(mask.sum()), f"min_kept={self.settings.min_kept}"
            floor = f"granularity={self._tile.name!r}" if kept == self._tile.least(mask.shape) else floor
            message = f"{name}: level {k} would prune it below {floor}; it keeps {kept} weights from here on"
            warn(message)
        self._floored.update(pruned.floored)
        return Mask(pruned.masks)

    def _ends(self, k: int) -> bool:
        """Whether level k, which is finished, is the last: sparse enough, or no longer accurate enough.

        Raises:
            ArgumentError: the metric was not recorded. RunError: pruning has come to an end above the target.
        """
        settings, record = self.settings, self._result.levels[k]
        if settings.stop_below is not None and (k > 0 or settings.dense_baseline):
            accuracy = record.accuracy(settings.stop_metric)
            if accuracy is None:
                raise ArgumentError(expected("stop_metric", "one that train records", repr(settings.stop_metric)))
            if accuracy < settings.stop_below:
                return True
        target = settings.target_density
        if target is None or k == 0:
            return False
        if record.density > target and record.density == self._result.levels[k - 1].density:
            got = f"{record.density:.4%} from level {k - 1} on, as layers are frozen or at min_kept"
            raise RunError(expected("target_density", f"a density that pruning reaches, {target:.4%}", got))
        return record.density <= target

    def _level(self, k: int, masks: Mask) -> Level:
        """The network of level k: dense and untouched at 0, then sparse and rewound."""
        rewound = self._start if k == 0 else self._beginning(k)
        model, self._layers = self._build(rewound.tensors, masks)
        restore_rng(rewound.rng)
        return self._make_level(
            model,
            k,
            masks,
            self.settings.seed,
            rewound_to=rewound,
            captures=self._moments() if k == 0 else (),
            finetunes=k > 0 and self._rewind.finetunes,
        )

    def _beginning(self, k: int) -> Snapshot:
        """What level k > 0 begins with."""
        if not self._rewind.keeps_training:
            return self._rewind_point()
        state: Mapping[str, Tensor] = self._result.tickets[k - 1].state_dict("trained")
        rewound = dataclasses.replace(self._start, tensors={**self._start.tensors, **state})
        if self._rewind.finetunes:
            rewound = dataclasses.replace(rewound, attached=self._rewind_point().without_moments().attached)
        return rewound

    def _moments(self) -> list[Moment]:
        """What has to be copied while level 0 trains."""
        if self._rewind.moment is None:
            return [("step", step) for step in self.settings.candidates if step]
        return [self._rewind.moment] if self._rewind.moment != START else []

    def _find_rewind_point(self) -> Iterator[Level]:
        """For rewind="auto": train pairs of copies from the candidates until the smallest stable one is known."""
        stability = Stability({0: self._start} | self._candidates, self._directory)
        if self._rewound is None:
            error = self.settings.rewind_error
            assert error is not None  # the settings have checked
            self._rewound = yield from stability.search(self._template, self._stability_level, error)
            if self._directory:
                self._directory.keep_snapshot("rewind", self._rewound)
        self._result.stability.update(stability.barriers)
        stability.forget()

    def _stability_level(self, rewound: Snapshot, copy_of: int) -> Level:
        """One of two copies that train on from a candidate with random states of their own."""
        seed = derived_seed(self.settings.seed, rewound.step, f"stability {copy_of}")
        model, self._layers = self._build(rewound.tensors, self._everything)
        seed_all(seed)
        return self._make_level(
            model,
            0,
            self._everything,
            seed,
            control="stability",
            rewound_to=rewound,
            restores=is_no_data_order,
            callbacks=(),
        )

    @led
    def _control_masks(self, k: int, control: str) -> Mask:
        generator = torch.Generator().manual_seed(derived_seed(self.settings.seed, k, f"{control} mask"))
        return control_masks(control, self._result.tickets[k].masks, self._start.tensors, self._tile, generator)

    def _control_level(self, k: int, control: str, masks: Mask) -> Level:
        """A control's network: fresh weights under the ticket's mask, or the ticket's network under another mask."""
        seed = derived_seed(self.settings.seed, k, control)
        rewound = self._start if self._rewind.keeps_training else self._rewind_point()
        options: dict[str, Any] = {}
        seed_all(seed)
        if control == REORDERED:
            rewound = self._beginning(k) if k else rewound
            options = {"restores": is_no_data_order, "finetunes": k > 0 and self._rewind.finetunes}
        elif control in FRESH:
            dense, _ = self._build(self._start.tensors, self._everything)
            changed = [name for name, rate in self._rates.items() if rate]
            reset = self.settings.reset_parameters
            rewound = shared(lambda: Snapshot.take(reinitialise_(dense, changed, reset), 0, {}))
        else:
            generator = torch.Generator().manual_seed(derived_seed(self.settings.seed, k, f"{control} weights"))
            own = altered(control, rewound.tensors, self._result.tickets[k].masks, generator)
            rewound = dataclasses.replace(rewound, tensors=own)
        model, self._layers = self._build(rewound.tensors, masks)
        seed_all(seed)
        return self._make_level(model, k, masks, seed, control=control, rewound_to=rewound, **options)

    def _train(self, level: Level, masks: Mask) -> Iterator[Level]:
        """Hand the level out, time its training, and keep what came of it."""
        started_from = dense_state_dict(level.model)
        initial = started_from if self._rewind.keeps_start or level.control else self._start.tensors
        initial = {name: initial[name].detach().cpu().clone() for name in started_from if name not in self._aliases}
        del started_from
        with preserved_rng():  # a progress bar must not change what is trained
            shared(lambda: emit(self._callbacks, "on_level_start", level))
        begin = time.perf_counter()
        yield level
        level.finish(time.perf_counter() - begin)
        for (_, step), captured in shared_captures(level.captured).items():
            name = "rewind" if self._rewind.moment else f"candidate_{step}"
            if self._rewind.moment:
                self._rewound = captured
            else:
                self._candidates[step] = captured
            if self._directory:
                self._directory.keep_snapshot(name, captured)
        notes = {"seconds": level.seconds, "layers": self._layers}
        self._keep(*shared(lambda: (self._ticket(level, masks, initial), notes)))

    def _keep_untrained(self) -> None:
        """Level 0 without training, for criteria that need none and users who want none: trained is theta_0."""
        model, seed = self._dense(self._start.tensors), self.settings.seed
        level = self._make_level(model, 0, self._everything, seed, rewound_to=self._start)
        level.finish(0.0)
        state = dense_state_dict(level.model)
        initial = {name: state[name].detach().cpu().clone() for name in state if name not in self._aliases}
        self._keep(*shared(lambda: (self._ticket(level, self._everything, initial), {"seconds": 0.0, "layers": []})))

    # --- the parts they are made of ----------------------------------------------------------------------------------

    def _dense(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        model = copy.deepcopy(self._template)
        load_tensors(model, tensors)
        return model

    def _build(self, tensors: Mapping[str, Tensor], masks: Mask) -> tuple[nn.Module, list[dict[str, Any]]]:
        """A fresh model with these weights, sparse where the masks prune, and the report of it."""
        model = self._dense(tensors)
        pruned = {name: mask for name, mask in masks.items() if not bool(mask.all())}
        if not pruned:
            return model, []
        settings = self.settings
        report = sparsify_(
            model,
            pruned,
            layout=settings.layout_for(pruned),
            block=settings.block,
            channels_last=settings.channels_last,
            break_even=settings.break_even,
        )
        fuse_relu_(model)
        if settings.feature_major:
            feature_major_(model)
        return model, [dataclasses.asdict(row) for row in report.layers]

    def _make_level(self, model: nn.Module, k: int, masks: Mask, seed: int, **options: Any) -> Level:
        if self.settings.strict:
            control = options.get("control")
            parent = self._result.tickets[k - 1].masks if k and not control else None
            options["strict"] = Strict(masks, parent, options["rewound_to"].tensors)
            options["strict"].begin(model, k)
        return Level(
            model,
            index=k,
            density=masks.density,
            seed=seed,
            directory=self._directory.path if self._directory else None,
            **{"callbacks": self._callbacks, **options},
        )

    def _ticket(self, level: Level, masks: Mask, initial: Mapping[str, Tensor]) -> Ticket:
        trained = dense_state_dict(level.model)
        if set(initial) | set(self._aliases) != set(trained):
            different = sorted((set(initial) | set(self._aliases)) ^ set(trained))
            raise RunError(f"train: expected level.model to keep its parameters and buffers, but not {different[0]!r}")
        own_parent = level.index if level.control else level.index - 1
        return Ticket.of(
            masks,
            initial,
            {name: trained[name] for name in initial},
            level=level.index,
            control=level.control,
            parent=self._result.tickets[own_parent].hash if own_parent >= 0 else None,
            aliases=self._aliases,
            hyperparameters=self.settings.hyperparameters(),
            metrics=dict(level.metrics),
            history=list(level.history),
        )

    def _keep(self, ticket: Ticket, notes: Mapping[str, Any], resumed: bool = False) -> None:
        if self._directory and not resumed:
            self._directory.keep(ticket, notes)
        record = LevelRecord.of(ticket, notes, resumed)
        if ticket.control is None:
            self._result.tickets.append(ticket)
            self._result.levels.append(record)
        else:
            self._result.controls[ticket.level, ticket.control] = record
            self._result.control_tickets[ticket.level, ticket.control] = ticket
        shared(lambda: emit(self._callbacks, "on_level_end", record))

    def _recall(self, k: int, control: str | None = None) -> bool:
        """Take a finished level or control from the run directory, if it is there."""
        ticket = self._directory.ticket(k, control) if self._directory else None
        if ticket is None or self._directory is None:
            return False
        own_parent = k if control else k - 1
        if ticket.parent != (self._result.tickets[own_parent].hash if own_parent >= 0 else None):
            raise RunError(
                f"{self._directory.path}: level {k} does not descend from level {own_parent} as it is there; "
                f"delete the files of level {k} and later ones to have them trained again"
            )
        self._keep(ticket, self._directory.notes(k, control), resumed=True)
        return True

    def _snapshot(self, name: str) -> Snapshot | None:
        return self._directory.snapshot(name) if self._directory else None

    def _rewind_point(self) -> Snapshot:
        if self._rewound is None:
            message = f"the run directory lacks rewind.safetensors for rewind={self._rewind.name!r}"
            raise RunError(f"{message}; delete level_00.safetensors to have level 0 trained again")
        return self._rewound

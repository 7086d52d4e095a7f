"""The two ways to call the search: ``find_ticket`` with a train function, ``levels`` from a script's own loop."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lth_sparse.engine.criteria import Criterion
from lth_sparse.engine.level import Level, checked_metrics
from lth_sparse.engine.loop import Search
from lth_sparse.engine.result import TicketResult
from lth_sparse.engine.rng import preserved_rng
from lth_sparse.engine.settings import Settings
from lth_sparse.engine.stability import CANDIDATES
from lth_sparse.errors import ArgumentTypeError, expected

__all__ = ["find_ticket", "levels"]


def find_ticket(
    model: nn.Module,
    train: Callable[[nn.Module, Level], Mapping[str, Any]],
    *,
    levels: int | None = None,
    rate: float = 0.2,
    output_rate: float | None = None,
    rates: Mapping[str, float] | None = None,
    criterion: str | Criterion = "magnitude",
    scope: str | None = None,
    granularity: str = "weight",
    rewind: str = "init",
    one_shot: bool | None = None,
    min_kept: int = 1,
    prune: str | Iterable[str] | None = None,
    freeze: str | Iterable[str] = (),
    controls: str | Iterable[str] = (),
    control_levels: Iterable[int] | None = None,
    layout: str = "auto",
    directory: str | os.PathLike[str] | None = None,
    seed: int = 0,
    reset_parameters: Callable[[nn.Module], Any] | None = None,
    callbacks: Iterable[Any] = (),
    break_even: Mapping[str, float] | None = None,
    feature_major: bool = False,
    rewind_error: Callable[[nn.Module], float] | None = None,
    rewind_steps: Iterable[int] = CANDIDATES,
    strict: bool = False,
    target_density: float | None = None,
    stop_below: float | None = None,
    stop_metric: str = "test_acc",
    score_batches: Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
    score_loss: Callable[[Any, Any], Tensor] | None = None,
    score_shape: tuple[int, ...] | None = None,
    score_rounds: int | None = None,
    dense_baseline: bool = True,
) -> TicketResult:
    """Search for winning tickets by iterative pruning: train, prune, rewind, and again.

    Args:
        model: a dense model; its weights now are theta_0. It is copied and never changed.
        train: ``train(model, level) -> {"test_acc": ..., ...}``, your own loop. The model is sparse after level 0, so
            build the optimiser inside. ``level.step()`` counts optimiser steps, ``level.record(step=..., val_loss=...,
            test_acc=...)`` notes measurements on the way. Let all randomness come from torch, numpy or random: their
            global states are the same at the start of every level.
        levels: number of prunings (15 unless one_shot); levels + 1 networks are trained.
        target_density: the search ends with the first level of at most this density, whatever ``levels`` says, which
            then need not be given.
        stop_below: it ends with the first level whose ``stop_metric``, at its early stop, is below this; so the level
            before is the sparsest that is good enough.
        rate: share of the surviving weights that each level prunes in each layer.
        output_rate: the same for the last layer; half of ``rate`` by default.
        rates: ``{name, glob or type: rate}`` for layers with a rate of their own, such as ``{"Conv2d": 0.1}``, see
            :func:`lth_sparse.engine.selection.layer_rates` for which wins.
        criterion: what the smallest of are pruned: "magnitude" or another name of
            :data:`lth_sparse.engine.criteria.CRITERIA`, ``criterion(name, weight) -> scores``, or
            ``criterion(context) -> scores`` with a :class:`lth_sparse.engine.ScoringContext`. "snip", "grasp" and
            "synflow" prune the untrained network, by default with one_shot, scope="global" and output_rate=rate as
            their papers do; training level 0 is then only for comparison.
        scope: "layer", "global": layers of equal rate compete, or "erk": they share their total by Erdos-Renyi-Kernel
            densities, see :mod:`lth_sparse.engine.erk`.
        granularity: "weight", "row", "block:RxC", "block:RxC:channels_last", "vector:Rx1", "column", "filter",
            "channel", "kernel" or "N:M", see :mod:`lth_sparse.engine.granularity`.
        rewind: "init", a step such as "500it" or epochs such as "3ep" (attach the optimiser, see
            :meth:`Level.attach`), "auto", "continue", "lr" or "finetune", see :mod:`lth_sparse.engine.rewinding`.
        rewind_error: ``rewind_error(model)`` -> share of wrong answers, from which rewind="auto" takes the barriers
            between copies; rewind_steps: the steps that it chooses from.
        one_shot: prune once; ``rate`` is then the final rate.
        min_kept: every layer keeps at least so many weights; a UserWarning says where that was needed.
        prune, freeze: names, globs or types of the only weights to prune, or of weights never to prune.
        controls: "reinit", "shuffled" and others of :data:`lth_sparse.engine.controls.CONTROLS`, trained after the
            levels; control_levels: at which (the last); "reordered" alone may be trained at level 0.
        layout: of the sparse layers, see :func:`lth_sparse.sparsify_`.
        directory: run directory. A search that was killed goes on from it when called again, and ends with the same
            tickets. Its theta_0 then counts, not that of ``model``.
        seed: of torch, numpy and random at the start of level 0.
        reset_parameters: ``reset_parameters(model)`` for the control "reinit"; the modules' own by default.
        callbacks: objects with any of on_level_start(level), on_step(level), on_record(level, row) and
            on_level_end(record). Finished levels of a run directory are announced by on_level_end alone.
        break_even: densities up to which ``layout="auto"`` makes layers sparse, see :func:`lth_sparse.sparsify_`.
        strict: check while running what must hold in every search, see :mod:`lth_sparse.engine.strict`; costs time.
        feature_major: train sparse networks with feature-major activations, see :func:`lth_sparse.nn.feature_major_`.
        score_batches: for criteria with gradients: an iterable of ``(inputs, targets)`` that can be iterated again and
            again (a list, a DataLoader), or a callable that returns one. Global random states are the same at the start
            of every pass, so a DataLoader may shuffle.
        score_loss: ``score_loss(outputs, targets)`` -> mean loss of a batch; cross entropy by default.
        score_shape: shape of one input without the batch, for "synflow"; taken from ``score_batches`` when those are
            given.
        score_rounds: prune each level in so many rounds and score anew in each; 1, for "synflow" 100 over all levels.
        dense_baseline: False leaves level 0 untrained, for criteria at initialisation, which do not need it.

    Sparse layers compute a ReLU that follows them directly, see :func:`lth_sparse.nn.fuse_relu_`. Under torchrun, with
    a process group, call this on every rank and wrap ``level.model`` in DistributedDataParallel; what is then done
    once and what on each rank, :mod:`lth_sparse.engine.distributed` says.

    Returns:
        The tickets, records and controls; the caller's random states are as before.

    Raises:
        ArgumentError, ArgumentTypeError: naming the argument; also when ``train`` returns no mapping of finite numbers.
        InvariantError: with ``strict``.
        RunError: the run directory holds another search, is in use, or cannot be written; weights became NaN.
        TicketError: a file in the run directory is damaged.
    """
    if not callable(train):
        raise ArgumentTypeError(expected("train", "a callable (model, level) -> metrics", train))
    settings = Settings(
        levels=levels,
        rate=rate,
        output_rate=output_rate,
        rates=rates,
        criterion=criterion,
        scope=scope,
        granularity=granularity,
        rewind=rewind,
        one_shot=one_shot,
        min_kept=min_kept,
        prune=prune,
        freeze=freeze,
        controls=controls,
        control_levels=control_levels,
        layout=layout,
        seed=seed,
        reset_parameters=reset_parameters,
        break_even=break_even,
        feature_major=feature_major,
        rewind_error=rewind_error,
        rewind_steps=rewind_steps,
        strict=strict,
        target_density=target_density,
        stop_below=stop_below,
        stop_metric=stop_metric,
        score_batches=score_batches,
        score_loss=score_loss,
        score_shape=score_shape,
        score_rounds=score_rounds,
        dense_baseline=dense_baseline,
    )
    search = Search(model, settings, directory, callbacks)
    with preserved_rng(), contextlib.closing(search):
        for level in search:
            level.metrics.update(checked_metrics(train(level.model, level)))
    return search.result()


def levels(
    model: nn.Module,
    *,
    directory: str | os.PathLike[str] | None = None,
    callbacks: Iterable[Any] = (),
    **hyperparameters: Any,
) -> Search:
    """The same search for a script that owns its loop.

        search = lth_sparse.levels(model, levels=15, directory="runs/lenet")
        for level in search:
            train(level.model)                      # everything until the next turn counts as the level's time
            level.record(test_acc=evaluate(level.model))
        search.result().verdict()

    Args: as for :func:`find_ticket`, ``train`` excepted. Random states are set at the start of each level and stay
    wherever the loop leaves them.
    """
    known = {field.name for field in dataclasses.fields(Settings)}
    for name in hyperparameters:
        if name not in known:
            raise ArgumentTypeError(expected("levels", f"keywords among {', '.join(sorted(known))}", repr(name)))
    return Search(model, Settings(**hyperparameters), directory, callbacks)

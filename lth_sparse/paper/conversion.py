"""The ledger of a conversion on the paper's networks: their data, their optimiser, their training loop.

preset = PRESETS["lenet"].quick()
ledger = ledger_of(preset, preset.load_data(), ticket, dense=level_0)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lth_sparse.engine import Level, Ticket
from lth_sparse.engine.conversion import Ledger, Method, ledger
from lth_sparse.paper import checks
from lth_sparse.paper.data import DataSet, Split
from lth_sparse.paper.models import CONVS, build_model
from lth_sparse.paper.presets import Preset
from lth_sparse.paper.training import evaluate, make_train

__all__ = ["ledger_of"]


def ledger_of(
    preset: Preset,
    data: DataSet,
    ticket: Ticket,
    methods: Iterable[str | Method] | None = None,
    *,
    steps: int | None = None,
    **options: Any,
) -> Ledger:
    """:func:`lth_sparse.engine.conversion.ledger` with everything that the preset knows.

    Accuracies are shares of the test images, at the end of a retraining with the preset's own batches, optimiser and
    learning rate. A batch of training images is what networks are timed on.

    Args:
        steps: of each retraining; the preset's iterations by default, 0 for none.
        options: ``target``, ``dense``, ``others``, ``repeats``, ``seconds``, ``seed``, ``progress`` ...
    """
    steps = preset.iterations if steps is None else checks.integer("steps", steps, 0)
    model = build_model(preset.model, data, 0, dropout=preset.dropout)

    def train(network: nn.Module) -> None:
        # Validation is measured on the way; a few times are enough, as only the end is looked at.
        loop = make_train(dataclasses.replace(preset, iterations=steps, evaluate_every=max(1, steps)), data)
        loop(network, Level(network, index=ticket.level, density=ticket.density, seed=0))

    def accuracy(network: nn.Module) -> float:
        device = next(network.parameters()).device
        return evaluate(network.eval(), Split(data.test.x.to(device), data.test.y.to(device)))[1]

    return ledger(
        ticket,
        methods,
        model=model,
        sample=(data.train.x[: preset.batch], data.train.y[: preset.batch]),
        evaluate=accuracy,
        train=train if steps else None,
        steps=steps,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=preset.lr, fused=True),
        # As `lth-sparse find` trains them.
        feature_major=bool(CONVS[preset.model]),
        **options,
    )

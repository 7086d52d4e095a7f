"""The training loop of Frankle & Carbin 2018: cross entropy, shuffled batches, Adam or SGD with its schedule.

`make_train(preset, data)` gives the function `train(model, level)` that the engine calls once per level and control.
Optimiser, learning rate schedule and batches are made anew in each; batch normalisation starts from the statistics that
the engine rewinds to. All randomness, that of the augmentation included, comes from torch's global generator, which the
engine restores at every level, so that a level repeats its batches and a resumed run ends as the uninterrupted one.
The loop measures validation and test every `preset.evaluate_every` iterations and always runs its full length; the
early-stop iteration is found afterwards, as the argmin of the validation loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lth_sparse.errors import ArgumentTypeError, RunError, expected
from lth_sparse.paper import checks
from lth_sparse.paper.augmentation import augmented
from lth_sparse.paper.data import DataSet, Split
from lth_sparse.paper.presets import Preset

# One forward pass of this many images bounds the memory of an evaluation: 0.5 GB for the first layer of Conv-2.
EVALUATION_BATCH = 2_000
# Images that criteria with gradients see: every class some hundred times, in a few seconds on two cores.
SCORE_IMAGES = 1_024


class Level(Protocol):
    """What the loop needs of the engine's Level."""

    start_step: int

    def attach(self, **states: Any) -> None: ...
    def step(self) -> Any: ...
    def epoch(self) -> Any: ...
    def record(self, *, step: int, **metrics: float) -> None: ...


def score_batches(preset: Preset, data: DataSet) -> list[tuple[Tensor, Tensor]]:
    """`(x, y)` batches for `find_ticket(..., score_batches=...)`: the same 1,024 training images for every seed."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:SCORE_IMAGES]
    return [(data.train.x[part], data.train.y[part]) for part in order.split(preset.batch)]


class Batches:
    """Endless batches of indices into n examples: each epoch a new permutation, none dropped between two epochs.

    An epoch's end is joined to the next one's start, so that every batch is full and every example comes once an epoch.
    Draws from the global generator; `state_dict` holds the permutation in use, so that a run rewound or resumed in the
    middle of an epoch goes on with the batch it would have had.
    """

    def __init__(self, n: int, batch: int) -> None:
        self.n, self.batch = n, batch
        self.order = torch.empty(0, dtype=torch.int64)
        self.position = 0

    def next(self) -> Tensor:
        """Indices, int64 [batch]."""
        end = self.position + self.batch
        while end > self.order.numel():
            self.order = torch.cat((self.order[self.position :], torch.randperm(self.n)))
            self.position, end = 0, self.batch
        indices = self.order[self.position : end]
        self.position = end
        return indices

    def state_dict(self) -> dict[str, Tensor]:
        return {"remaining": self.order[self.position :].clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.order, self.position = state["remaining"].to(torch.int64).clone(), 0


def make_train(
    preset: Preset, data: DataSet, *, threads: int | None = None
) -> Callable[[nn.Module, Level], dict[str, float]]:
    """The function train(model, level) -> {"val_loss", "val_acc", "test_acc"} of the last iteration.

    Losses are mean cross entropies in nats, accuracies shares in [0, 1]. Records one row per evaluation with
    level.record(step=..., val_loss=..., val_acc=..., test_acc=...). `threads` is torch's number of threads while it
    trains; by default it is left as it is. The returned function raises RunError when the loss stops being finite.

    Raises ArgumentTypeError or ArgumentError for a preset, data set or number of threads that is none.
    """
    if not isinstance(preset, Preset):
        raise ArgumentTypeError(expected("preset", "a Preset", preset))
    if not isinstance(data, DataSet):
        raise ArgumentTypeError(expected("data", "a DataSet", type(data).__name__))
    if threads is not None:
        checks.integer("threads", threads, 1)

    def train(model: nn.Module, level: Level) -> dict[str, float]:
        with _threads(threads):
            return _train(model, level, preset, data)

    return train


def _train(model: nn.Module, level: Level, preset: Preset, data: DataSet) -> dict[str, float]:
    device = next(model.parameters()).device
    train, val, test = (Split(s.x.to(device), s.y.to(device)) for s in (data.train, data.val, data.test))
    optimizer = make_optimizer(model, preset)
    schedule = None
    if preset.scheduled:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: preset.lr_factor(step))
    batches = Batches(len(train), preset.batch)
    level.attach(optimizer=optimizer, batches=batches, **({} if schedule is None else {"schedule": schedule}))
    metrics: dict[str, float] = {}
    model.train()
    for step in range(level.start_step + 1, preset.iterations + 1):
        indices = batches.next().to(device)
        optimizer.zero_grad()
        # index_select: a quarter of the time of x[indices], which counts beside a sparse step of half a millisecond.
        x, y = train.x.index_select(0, indices), train.y.index_select(0, indices)
        F.cross_entropy(model(augmented(x, flip=preset.flip, crop=preset.crop)), y).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        level.step()
        if step * preset.batch // len(train) > (step - 1) * preset.batch // len(train):
            level.epoch()
        if step % preset.evaluate_every == 0 or step == preset.iterations:
            metrics = measure(model, val, test)
            if not math.isfinite(metrics["val_loss"]):
                raise RunError(
                    f"training diverged: validation loss is {metrics['val_loss']} at iteration {step:,} "
                    f"(optimizer {preset.optimizer}, lr {preset.lr}); a smaller lr may help"
                )
            level.record(step=step, **metrics)
    return metrics or measure(model, val, test)


def make_optimizer(model: nn.Module, preset: Preset) -> torch.optim.Optimizer:
    """The preset's optimiser over all parameters of `model` that are trained.

    Of a sparse layer the parameter is its live weights, so neither momentum nor weight decay knows of pruned ones.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    # fused: one call for all parameters; for networks this small the Python of the others takes as long as the update.
    if preset.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=preset.lr, weight_decay=preset.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=preset.lr, momentum=preset.momentum, weight_decay=preset.weight_decay, fused=True
    )


def measure(model: nn.Module, val: Split, test: Split) -> dict[str, float]:
    """{"val_loss", "val_acc", "test_acc"} of `model` in evaluation mode; leaves it in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        val_loss, val_acc = evaluate(model, val)
        _, test_acc = evaluate(model, test)
    finally:
        model.train(was_training)
    return {"val_loss": val_loss, "val_acc": val_acc, "test_acc": test_acc}


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> tuple[float, float]:
    """(mean cross entropy in nats, share of right answers) of `model`, as it stands, on `split`."""
    loss = right = 0.0
    for x, y in zip(split.x.split(EVALUATION_BATCH), split.y.split(EVALUATION_BATCH), strict=True):
        logits = model(x)
        loss += float(F.cross_entropy(logits, y, reduction="sum"))
        right += float((logits.argmax(dim=1) == y).sum())
    return loss / len(split), right / len(split)


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

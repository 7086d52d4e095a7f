"""What a criterion may ask for beside the weight: the mask, theta_0, gradients over the user's batches, a generator.

One :class:`Scoring` belongs to one pruning (or one of its rounds); its layers share what is costly, such as gradients,
which are computed when the first layer asks for them. All that is random descends from the search's seed, the level and
the round, so that a resumed search scores as the uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lth_sparse.engine.rng import derived_seed, seed_all
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected

__all__ = ["ScoreData", "Scoring", "ScoringContext", "add_"]


@dataclass(frozen=True)
class ScoreData:
    """Data for the criteria that need some: ``score_batches``, ``score_loss`` and ``score_shape``.

    Attributes:
        batches: an iterable of ``(inputs, targets)`` that can be iterated again and again (a list, a DataLoader), or a
            callable without arguments that returns one; None without data.
        loss: ``loss(outputs, targets)`` -> scalar, the mean over the batch.
        shape: of one input, without the batch; None: that of the first batch.

    Raises:
        ArgumentError, ArgumentTypeError: naming the keyword.
    """

    batches: Iterable[Any] | Callable[[], Iterable[Any]] | None = None
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        what = "an iterable of (inputs, targets), or a callable that returns one"
        if isinstance(self.batches, (str, bytes, Mapping, Tensor)):
            raise ArgumentTypeError(expected("score_batches", what, type(self.batches).__name__))
        if self.batches is not None and not callable(self.batches):
            if not isinstance(self.batches, Iterable):
                raise ArgumentTypeError(expected("score_batches", what, self.batches))
            if isinstance(self.batches, Iterator):
                again = "batches that can be iterated anew at every level: a list, a DataLoader or a callable"
                raise ArgumentError(expected("score_batches", again, f"a {type(self.batches).__name__}"))
        if not callable(self.loss):
            raise ArgumentTypeError(expected("score_loss", "a callable (outputs, targets) -> scalar loss", self.loss))
        if self.shape is None:
            return
        sizes = "the shape of one input without the batch, such as (1, 28, 28)"
        if not isinstance(self.shape, (tuple, list, torch.Size)):
            raise ArgumentTypeError(expected("score_shape", sizes, self.shape))
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in self.shape):
            raise ArgumentError(expected("score_shape", sizes, list(self.shape)))
        object.__setattr__(self, "shape", tuple(self.shape))

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """The batches, each checked to be a pair.

        Raises:
            ArgumentError, ArgumentTypeError: none were given, there are none, or one is no pair.
        """
        what = "an iterable of (inputs, targets), or a callable that returns one"
        if self.batches is None:
            raise ArgumentError(expected("score_batches", f"{what}, as this criterion needs gradients", "None"))
        batches = self.batches() if callable(self.batches) else self.batches
        if not isinstance(batches, Iterable):
            raise ArgumentTypeError(expected("score_batches", what, f"a callable that returned {batches!r}"))
        count = 0
        for batch in batches:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise ArgumentTypeError(expected("score_batches", "pairs (inputs, targets)", type(batch).__name__))
            count += 1
            yield batch[0], batch[1]
        if not count:
            raise ArgumentError(expected("score_batches", "at least one batch", "none"))

    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input.

        Raises:
            ArgumentError, ArgumentTypeError: neither ``score_shape`` nor batches whose inputs are one tensor.
        """
        if self.shape is not None:
            return self.shape
        what = "the shape of one input without the batch, such as (1, 28, 28), or score_batches to take it from"
        if self.batches is None:
            raise ArgumentError(expected("score_shape", what, "None"))
        inputs, _ = next(self.pairs())
        if not isinstance(inputs, Tensor):
            raise ArgumentTypeError(expected("score_shape", what, f"batches of {type(inputs).__name__}"))
        return tuple(inputs.shape[1:])


class Scoring:
    """Everything one pruning may be decided by.

    Args:
        weights: name -> dense weight on the CPU, zeros where pruned: w_f, or theta_0 for criteria at initialisation.
        masks: name -> bool tensor, the survivors so far.
        initial: name -> theta_0, dense and never masked.
        build: makes a fresh dense model that holds ``weights``; whoever calls it may do as he likes with it.
        data: batches, loss and input shape.
        level, round: of this pruning; seed: the search's.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        initial: Mapping[str, Tensor] | None = None,
        build: Callable[[], nn.Module] | None = None,
        data: ScoreData | None = None,
        *,
        level: int = 1,
        round: int = 1,
        seed: int = 0,
    ) -> None:
        self.weights, self.masks, self.initial = weights, masks, {} if initial is None else initial
        self.data = ScoreData() if data is None else data
        self.level, self.round, self.seed = level, round, seed
        self._build = build
        self._memo: dict[Callable[[Scoring], Any], Any] = {}

    def layer(self, name: str) -> ScoringContext:
        """What the criterion is given for one layer."""
        return ScoringContext(name, self.weights[name], self.masks[name], self.level, self)

    def once(self, compute: Callable[[Scoring], Any]) -> Any:
        """``compute(self)``, for all layers together: the first call computes it, the others find it."""
        if compute not in self._memo:
            with torch.enable_grad():  # whatever the caller of the search has switched off
                self._memo[compute] = compute(self)
        return self._memo[compute]

    def model(self) -> nn.Module:
        """A fresh dense model with these weights, zeros where pruned."""
        if self._build is None:
            raise ArgumentError(expected("criterion", "one that needs no model where there is none", "a need for it"))
        return self._build()

    def begin(self) -> None:
        """Set the global random states to those in which every pass over the data starts."""
        seed_all(derived_seed(self.seed, self.level, f"scores of round {self.round}"))

    def batches(self, model: nn.Module) -> Iterator[tuple[Any, Any]]:
        """One pass over the batches, on the device of ``model``; every pass meets the same ones, dropout included."""
        self.begin()
        device = next(model.parameters()).device
        for inputs, targets in self.data.pairs():
            yield _to(inputs, device), _to(targets, device)

    def loss(self, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
        """The user's loss on one batch.

        Raises:
            ArgumentTypeError, ArgumentError: naming ``score_loss``: no tensor, several values, no graph, not finite.
        """
        loss = self.data.loss(model(inputs), targets)
        if not isinstance(loss, Tensor):
            raise ArgumentTypeError(expected("score_loss", "a scalar tensor as its result", type(loss).__name__))
        if loss.numel() != 1 or not loss.is_floating_point():
            raise ArgumentError(expected("score_loss", "a scalar tensor", f"{loss.dtype} of shape {list(loss.shape)}"))
        if not loss.requires_grad:
            raise ArgumentError(expected("score_loss", "a loss that depends on the weights", "one without gradient"))
        if not math.isfinite(loss.item()):
            raise ArgumentError(expected("score_loss", "a finite loss", loss.item()))
        return loss.reshape(())

    def prepared(self) -> tuple[nn.Module, list[Tensor]]:
        """:meth:`model` in train mode and its parameters behind ``weights``, gradients whatever requires_grad said."""
        model = self.model().train()
        return model, [model.get_parameter(name).requires_grad_(True) for name in self.weights]

    def mean_gradients(self, model: nn.Module, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Mean over the batches of the gradients of the loss, 0 for a parameter that it does not depend on."""
        sums, count = [torch.zeros_like(p) for p in parameters], 0
        for inputs, targets in self.batches(model):
            add_(sums, torch.autograd.grad(self.loss(model, inputs, targets), parameters, allow_unused=True))
            count += 1
        return [total / count for total in sums]

    def on_cpu(self, tensors: Iterable[Tensor]) -> dict[str, Tensor]:
        """Tensors in the order of ``weights``, by name."""
        return {name: tensor.cpu() for name, tensor in zip(self.weights, tensors, strict=True)}

    def generator(self, name: str) -> torch.Generator:
        """Random numbers of one layer: from the seed, the level, the round and the layer's name alone."""
        purpose = f"criterion for {name} in round {self.round}"
        return torch.Generator().manual_seed(derived_seed(self.seed, self.level, purpose))


@dataclass
class ScoringContext:
    """One layer, as a criterion sees it.

    Attributes:
        name: parameter name, such as ``"fc1.weight"``.
        weight: dense, on the CPU, 0 where pruned: after training, or theta_0 for a criterion at initialisation.
        mask: bool, shape of ``weight``: the survivors so far; scores of pruned weights are never looked at.
        level: the level whose mask is being made, 1, 2, ...
        scoring: all layers together.
    """

    name: str
    weight: Tensor
    mask: Tensor
    level: int
    scoring: Scoring

    @property
    def initial(self) -> Tensor:
        """theta_0, the weights the search began with, also where pruned and also when rewinding to a later step.

        Raises:
            ArgumentError: scores are made outside of a search, where there is none.
        """
        if self.name not in self.scoring.initial:
            raise ArgumentError(expected("criterion", "one without theta_0 where no search began with it", self.name))
        return self.scoring.initial[self.name]

    @property
    def gradient(self) -> Tensor:
        """g = dL/dw, the mean over ``score_batches`` of the gradients of ``score_loss``; shape of ``weight``.

        The masked network in train mode, without its buffers' changes. Pruned weights have a gradient too.

        Raises:
            ArgumentError, ArgumentTypeError: naming ``score_batches`` or ``score_loss``.
        """
        gradient: Tensor = self.scoring.once(_gradients)[self.name]
        return gradient

    @cached_property
    def generator(self) -> torch.Generator:
        """A generator for this layer alone, the same when a search is resumed."""
        return self.scoring.generator(self.name)


def add_(sums: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add what ``torch.autograd.grad`` returned; None counts as 0."""
    for total, gradient in zip(sums, gradients, strict=True):
        if gradient is not None:
            total += gradient.detach()


def _gradients(scoring: Scoring) -> dict[str, Tensor]:
    return scoring.on_cpu(scoring.mean_gradients(*scoring.prepared()))


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value

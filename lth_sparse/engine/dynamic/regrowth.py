"""SET and RigL: every so many steps, drop the smallest weights of each layer and grow as many elsewhere.

SET, sparse evolutionary training (Mocanu et al. 2018, 1707.04780), grows at random; RigL (Evci et al. 2020, 1911.11134,
algorithm 1) where the gradient of the loss for the dense weight is largest.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.engine.dynamic.gradients import DenseGradients
from lth_sparse.engine.dynamic.method import DynamicMethod, Place, number
from lth_sparse.engine.scope import lowest
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.nn.dynamic import Entries

__all__ = ["SET", "RigL"]


class _Regrowth(DynamicMethod):
    """Drop and grow; subclasses say where to grow."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        end: float,
        drop: float = 0.3,
        every: int = 100,
        seed: int = 0,
        freeze: str | Iterable[str] = (),
    ) -> None:
        super().__init__(model, optimizer, every, end, freeze)
        self._drop = number("drop", drop, "a share in (0, 1]", lambda share: 0 < share <= 1)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ArgumentError(expected("seed", "an int", seed))
        # On the CPU, whatever the model's device: the same numbers everywhere, and on all ranks.
        self._generator = torch.Generator().manual_seed(seed)
        self._prepare()

    def drop_fraction(self, step: int) -> float:
        """Share of each layer's weights that an update after ``step`` exchanges: ``drop / 2 (1 + cos(pi step / end))``.

        0 from ``end`` on.
        """
        return self._drop / 2 * (1 + math.cos(math.pi * step / self._end)) if step < self._end else 0.0

    def _due(self, step: int) -> bool:
        return step % self._every == 0 and step < self._end

    @torch.no_grad()
    def _update(self) -> bool:
        changed = False
        for place in self.places:
            entries = Entries.of(place.layout)
            count = place.layout.values_shape[0]
            exchanged = int(self.drop_fraction(self.steps) * count)
            if not exchanged or count == entries.size:  # nothing to drop; nowhere else to grow
                continue
            keep = torch.ones(count, dtype=torch.bool, device=place.layout.device)
            keep[lowest(self._norms(place, entries), exchanged)] = False
            positions = entries.positions()
            grown = self._grow(place, entries, positions[keep], exchanged)
            if grown is not None:
                keep |= torch.isin(positions, grown)  # dropped and grown at once: as if nothing had happened
                self._change(place, keep, grown[~torch.isin(grown, positions)])
                changed = True
        return changed

    @abstractmethod
    def _grow(self, place: Place, entries: Entries, kept: Tensor, count: int) -> Tensor | None:
        """``count`` ascending positions outside of ``kept``; None to leave the layer as it is."""

    def _own_state(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(state["generator"].cpu())


class SET(_Regrowth):
    """Sparse evolutionary training: drop the smallest weights, grow as many at random (Mocanu et al. 2018).

        set_ = lth_sparse.SET(model, optimizer, drop=0.3, every=100, end=0.75 * steps)
        for x, y in data:
            ...
            optimizer.step()
            set_.step()                      # True when the masks have changed

    After every ``every``-th step before ``end`` each layer of n live weights drops the ``int(f n)`` smallest by
    magnitude and grows as many, which start at 0, uniformly among all that are not live then. Those just dropped are
    among them; one that is drawn keeps its value and momentum, as in the code of RigL's authors. f decays as
    ``drop / 2 (1 + cos(pi step / end))``; ``end=math.inf`` keeps it at ``drop``, as the paper has it. Counts per layer
    never change. With BSR the same for whole blocks, by their L1 norm.

    Args:
        model: holds sparse layers of layouts ``"csr"``, ``"bsr"`` or ``"dense"`` (:func:`lth_sparse.sparsify_`). Those
            that are fully dense, or do not require gradients, are left alone.
        optimizer: the one that trains them; momentum and the like move with the weights.
        end: step from which on the masks stay.
        drop: share exchanged at first, in (0, 1].
        every: steps between two changes.
        seed: of the method's own random numbers: the same on every device and rank.
        freeze: names or globs of weights whose masks stay.

    Raises:
        ArgumentError, ArgumentTypeError: naming the argument; from :meth:`step`, weights that are not finite.
    """

    def _grow(self, place: Place, entries: Entries, kept: Tensor, count: int) -> Tensor:
        ranks = _sample(entries.size - kept.numel(), count, self._generator).to(kept.device)
        # The rank-th position that is not kept lies behind as many kept ones as have no more than rank others before.
        others_before = kept - torch.arange(kept.numel(), device=kept.device)
        return ranks + torch.searchsorted(others_before, ranks, right=True)


class RigL(_Regrowth):
    """Rigging the lottery: drop the smallest weights, grow where the loss's gradient is largest (Evci et al. 2020).

        rigl = lth_sparse.RigL(model, optimizer, drop=0.3, every=100, end=0.75 * steps)
        for x, y in data:
            ...
            optimizer.step()
            rigl.step()                      # True when the masks have changed

    As :class:`SET`, except that growth takes the largest ``|dL / dW|`` of the dense weight among all positions that are
    not live once the dropped ones are gone; ties go to the lowest position. Only in the one step before a change, hooks
    keep each layer's input and the gradient of its output; the dense gradient is one product of them per layer, made
    and freed layer by layer. Several backward passes before a step add up. In a distributed run (an initialised default
    process group) the gradients are summed over all ranks, so that every rank must call :meth:`step`. A layer whose
    gradient is not finite (a step that a GradScaler skips) keeps its mask until the next change.

    Args, Raises: as for :class:`SET`; ``seed`` changes nothing here. From :meth:`step`, ArgumentError for a layer that
    took no part in the step before a change, and where a tensor it needs was changed in place meanwhile. Compiled
    graphs (``torch.compile``) may ignore the hooks, which is the same error.
    """

    @cached_property
    def _gradients(self) -> DenseGradients:
        return DenseGradients(self.places)

    def _prepare(self) -> None:
        self._gradients.watch(self._due(self.steps + 1))

    def _grow(self, place: Place, entries: Entries, kept: Tensor, count: int) -> Tensor | None:
        gradient = self._gradients.take(place, self.steps)
        if not bool(gradient.isfinite().all()):
            return None
        norms = entries.norms(gradient)
        norms[kept] = -1.0
        grown: Tensor = lowest(norms.neg_(), count).sort().values
        return grown


def _sample(total: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` distinct numbers below ``total``, ascending; every set of them is equally likely.

    Repeated draws of what is missing never prefer a number, and take memory for ``count`` numbers only.
    """
    if 2 * count > total:
        outside = torch.ones(total, dtype=torch.bool)
        outside[_sample(total, total - count, generator)] = False
        return outside.nonzero().view(-1)
    found = torch.zeros(0, dtype=torch.int64)
    while found.numel() < count:
        drawn = torch.randint(total, (count - found.numel(),), generator=generator)
        found = torch.cat((found, drawn)).unique()
    return found

"""Early-bird tickets: the mask that pruning would give settles long before training ends (You et al. 2020, 1909.11957).

After each epoch a mask is drawn from the weights as they are. Once it differs from those of the last few epochs in less
than a tenth of its places, training the dense network further hardly changes the ticket: stop, and prune.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn

from lth_sparse.engine.criteria import Criterion, find_criterion, score
from lth_sparse.engine.granularity import Granularity
from lth_sparse.engine.scope import SCOPES, prune
from lth_sparse.engine.selection import check_granularity, layer_rates, types_of, weights_of
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats import Mask

__all__ = ["EarlyBird"]

NEEDS = {"initial": "theta_0", "batches": "gradients", "shape": "the shape of an input"}


class EarlyBird:
    """Watch the mask of a dense network while it trains.

        early = lth_sparse.EarlyBird(rate=0.7)
        for epoch in range(epochs):
            train_one_epoch(model)
            if early.update(model):
                break                        # early.mask is the ticket's

    Args:
        rate: share of the weights that the ticket will prune, all layers alike unless ``scope`` is "global".
        window: number of earlier masks that the newest is compared with.
        threshold: largest normalised Hamming distance, the share of places that differ, that counts as settled.
        criterion, scope, granularity, prune, freeze: as for :func:`lth_sparse.find_ticket`; criteria of the weights as
            they are only, since there is neither theta_0 nor data here.

    Attributes:
        distances: for each update, the largest distance to the masks in the window; NaN before there is one.
        found_at: number of the update (from 1) at which the mask had settled, or None.
        mask: the newest mask, or None before the first update.
    """

    def __init__(
        self,
        rate: float = 0.7,
        *,
        window: int = 5,
        threshold: float = 0.1,
        criterion: str | Criterion = "magnitude",
        scope: str = "global",
        granularity: str = "weight",
        prune: tuple[str, ...] | list[str] | None = None,
        freeze: tuple[str, ...] | list[str] = (),
    ) -> None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ArgumentError(expected("window", "an int of at least 1", window))
        for name, value in (("rate", rate), ("threshold", threshold)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < 1.0:
                raise ArgumentError(expected(name, "a share in (0, 1)", value))
        if scope not in SCOPES:
            raise ArgumentError(expected("scope", f"one of {', '.join(map(repr, SCOPES))}", repr(scope)))
        self._rate, self._threshold, self._scope = rate, threshold, scope
        self._criterion, self._tile = find_criterion(criterion), Granularity.parse(granularity)
        if self._criterion.needs:
            what = "one of the weights as they are, such as 'magnitude'"
            got = f"{self._criterion.name!r}, which needs {NEEDS[self._criterion.needs]}"
            raise ArgumentError(expected("criterion", what, got))
        self._prune, self._freeze = prune, freeze
        self._earlier: deque[Mask] = deque(maxlen=window)
        self.distances: list[float] = []
        self.found_at: int | None = None
        self.mask: Mask | None = None

    @torch.no_grad()
    def update(self, model: nn.Module) -> bool:
        """Draw the mask of the weights as they are; True once it has settled, and from then on.

        Raises:
            ArgumentError: ``model`` has no layers that can be pruned, or others than before.
        """
        mask = self._draw(model)
        if self._earlier and set(mask) != set(self._earlier[-1]):
            raise ArgumentError(expected("model", "the layers of the update before", "others"))
        distances = [_hamming(mask, other) for other in self._earlier]
        self.distances.append(max(distances, default=float("nan")))
        full = len(self._earlier) == self._earlier.maxlen
        self._earlier.append(mask)
        self.mask = mask
        if self.found_at is None and full and self.distances[-1] < self._threshold:
            self.found_at = len(self.distances)
        return self.found_at is not None

    def _draw(self, model: nn.Module) -> Mask:
        weights = weights_of(model)
        rates = layer_rates(
            weights,
            rate=self._rate,
            output_rate=self._rate,
            prune=self._prune,
            freeze=self._freeze,
            types=types_of(model, weights),
        )
        check_granularity(model, [name for name, rate in rates.items() if rate], self._tile)
        everything = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
        scores = {
            name: score(self._criterion, name, weights[name].detach().cpu(), everything[name])
            for name, rate in rates.items()
            if rate
        }
        pruned = prune(scores, everything, rates, 1, scope=self._scope, granularity=self._tile)
        return Mask({name: mask for name, mask in pruned.masks.items() if rates[name]})


def _hamming(first: Mask, second: Mask) -> float:
    """Share of the places at which two masks differ."""
    different = sum(int((mask != _same(second, name, mask)).sum()) for name, mask in first.items())
    return different / max(first.numel, 1)


def _same(masks: Mask, name: str, like: Tensor) -> Tensor:
    if masks[name].shape != like.shape:
        raise ArgumentError(expected("model", f"{name} of shape {list(masks[name].shape)}", f"{list(like.shape)}"))
    return masks[name]

"""Gradual magnitude pruning: sparsity rises along a cubic curve while the network trains.

Zhu & Gupta 2017, "To prune, or not to prune" (1710.01878), section 3. Fast at first, while there is much to spare, and
slower the fewer weights are left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lth_sparse.engine.dynamic.method import DynamicMethod, Place, number
from lth_sparse.engine.scope import lowest
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.nn.dynamic import Entries

__all__ = ["GradualPruning"]


class GradualPruning(DynamicMethod):
    """Prune each layer while it trains, smallest magnitudes first, up to a final density (Zhu & Gupta 2017).

        pruning = lth_sparse.GradualPruning(model, optimizer, density=0.1, start=1000, end=8000, every=100)
        for x, y in data:
            ...
            optimizer.step()
            pruning.step()                   # True when the masks have changed

    With t0 = ``start``, dt = ``every`` and n = floor((end - start) / dt), the sparsity (1 - density) of each layer
    after steps t = t0 + dt, ..., t0 + n dt is

        s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3

    from s_i, that of the layer when this object is made, to s_f = 1 - ``density``, rounded to the nearest count of
    weights (of blocks with BSR, which go by their L1 norm). What is pruned stays pruned.

    Args:
        model: holds sparse layers, such as ``sparsify_(model, {name: all True}, layout="dense")`` makes of a dense one.
        optimizer: the one that trains them; its state shrinks with the weights.
        density: of every layer at the end, or ``{weight name: density}`` for each; in [0, 1].
        end: last step at which weights are pruned.
        start: step t0. every: steps between two prunings.
        freeze: names or globs of weights whose masks stay.

    Raises:
        ArgumentError, ArgumentTypeError: naming the argument, a density above a layer's own among others; from
            :meth:`step`, weights that are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        density: float | Mapping[str, float],
        end: float,
        start: int = 0,
        every: int = 100,
        freeze: str | Iterable[str] = (),
    ) -> None:
        super().__init__(model, optimizer, every, end, freeze)
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            raise ArgumentError(expected("start", "a step, an int of at least 0", start))
        if math.isinf(end) or end - start < every:
            what = f"a step at least every={every} after start={start}"
            raise ArgumentError(expected("end", what, end))
        self._start, self._count = start, int((end - start) // every)
        self._initial = {place.name: self._entry_density(place) for place in self.places}
        self._final = self._densities(density)

    def sparsity(self, name: str, step: int) -> float:
        """s_t of the weight ``name``, for any step."""
        first, last = 1 - self._initial[name], 1 - self._final[name]
        progress = min(max((step - self._start) / (self._count * self._every), 0.0), 1.0)
        return last + (first - last) * (1 - progress) ** 3

    def _densities(self, density: float | Mapping[str, float]) -> dict[str, float]:
        names = [place.name for place in self.places]
        given = density if isinstance(density, Mapping) else dict.fromkeys(names, density)
        if set(given) != set(names):
            raise ArgumentError(expected("density", f"one for each of {', '.join(names)}", ", ".join(given)))
        for name in names:
            most = self._initial[name]
            what = f"a share in [0, {most:.4g}], the density of {name!r}"
            number("density", given[name], what, lambda share, most=most: 0 <= share <= most)
        return {name: float(given[name]) for name in names}

    @staticmethod
    def _entry_density(place: Place) -> float:
        return place.layout.values_shape[0] / max(Entries.of(place.layout).size, 1)

    def _due(self, step: int) -> bool:
        since = step - self._start
        return since > 0 and since % self._every == 0 and since <= self._count * self._every

    @torch.no_grad()
    def _update(self) -> bool:
        changed = False
        for place in self.places:
            entries = Entries.of(place.layout)
            count = place.layout.values_shape[0]
            goal = round((1 - self.sparsity(place.name, self.steps)) * entries.size)
            if goal >= count:
                continue
            keep = torch.ones(count, dtype=torch.bool, device=place.layout.device)
            keep[lowest(self._norms(place, entries), count - goal)] = False
            self._change(place, keep, torch.zeros(0, dtype=torch.int64, device=keep.device))
            changed = True
        return changed

    def _own_state(self) -> dict[str, Any]:
        return {"initial": dict(self._initial)}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self._initial = dict(state["initial"])

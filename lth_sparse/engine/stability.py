"""The rewind point, found: the smallest step k from which training is stable (Frankle et al. 2020, 1912.05671).

Two copies of the network are trained to the end from theta_k with other random states: other data order, other dropout.
Training is stable at k if the error barrier on the line between the two is under 2 percentage points
(``engine/analyses/barrier.py``). Stability comes once and stays, so candidates are searched by bisection: two trainings
for each of the about log2(n) that are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor, nn

from lth_sparse.engine.analyses.barrier import Barrier, linear_barrier
from lth_sparse.engine.distributed import shared, warn
from lth_sparse.engine.level import Level
from lth_sparse.engine.rng import preserved_rng
from lth_sparse.engine.rundir import RunDirectory
from lth_sparse.engine.snapshot import Snapshot
from lth_sparse.nn import dense_state_dict

__all__ = ["BOUND", "CANDIDATES", "Stability", "is_no_data_order", "smallest_stable"]

#: Steps that are tried unless the user names others; those beyond the end of the training are left out.
CANDIDATES = (0, *(2**power for power in range(4, 18)))

#: Largest barrier that counts as stable, as a share: 2 percentage points.
BOUND = 0.02


class Stability:
    """The search for the rewind point of one run.

    Args:
        candidates: what level 0 was at the steps that may be rewound to, the start among them.
        directory: the run directory: it keeps the candidates until the search is over, and its results for good.

    Attributes:
        barriers: by step, those that were measured.
    """

    def __init__(self, candidates: dict[int, Snapshot], directory: RunDirectory | None) -> None:
        self._directory = directory
        self._candidates = {**candidates, **(directory.candidates() if directory else {})}
        self.barriers: dict[int, Barrier] = {}
        for step, content in (directory.stability() if directory else {}).items():
            self.barriers[step] = Barrier(tuple(content["positions"]), tuple(content["errors"]))

    def search(
        self,
        template: nn.Module,
        make_level: Callable[[Snapshot, int], Level],
        error: Callable[[nn.Module], float],
    ) -> Generator[Level, None, Snapshot]:
        """Yield the copies to train, two for each candidate that is looked at; return the smallest that is stable.

        Killed and begun again, the search goes on after the last pair that was finished.
        """

        def barrier(step: int) -> Generator[Level, None, Barrier]:
            if step not in self.barriers:
                states: list[dict[str, Tensor]] = []
                for number in (1, 2):
                    level = make_level(self._candidates[step], number)
                    yield level
                    level.finish(0.0)
                    states.append({name: tensor.cpu() for name, tensor in dense_state_dict(level.model).items()})
                with preserved_rng():
                    found = shared(lambda: linear_barrier(template, states[0], states[1], error))
                self.barriers[step] = found
                if self._directory:
                    self._directory.keep_stability(step, {"positions": found.positions, "errors": found.errors})
            return self.barriers[step]

        step = yield from smallest_stable(sorted(self._candidates), barrier)
        return self._candidates[step]

    def forget(self) -> None:
        """Remove the candidates from the run directory: the one that was chosen is kept as the rewind point."""
        if self._directory:
            self._directory.forget_candidates()


def is_no_data_order(thing: object) -> bool:
    """Whether a stability copy takes over what was attached at its candidate.

    An optimiser, a schedule and a gradient scaler, yes; anything else, such as a loader's position, starts fresh, for
    the two copies are to see the data in different orders.
    """
    kinds = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler)
    return isinstance(thing, kinds)


def smallest_stable(
    steps: Sequence[int], barrier: Callable[[int], Generator[Level, None, Barrier]], bound: float = BOUND
) -> Generator[Level, None, int]:
    """Bisect ``steps`` (ascending) for the first at which training is stable; a generator that returns it.

    ``barrier(step)`` yields whatever has to be trained, and returns what was found. Without a stable step a UserWarning
    says so, and the last is returned: the best of what was offered.
    """
    low, high = 0, len(steps) - 1
    found = yield from barrier(steps[high])
    if not found.stable(bound):
        warn(
            f"rewind='auto': training is not stable at any candidate up to step {steps[high]}, where the barrier is "
            f"{100 * found.height:.1f} percentage points; levels rewind to that step"
        )
        return steps[high]
    while low < high:
        middle = (low + high) // 2
        found = yield from barrier(steps[middle])
        low, high = (low, middle) if found.stable(bound) else (middle + 1, high)
    return steps[high]

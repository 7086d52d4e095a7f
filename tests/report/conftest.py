"""Records of an imagined search, made of the engine's own classes, with figures that a test can compute in its head."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lth_sparse.engine import EarlyStop, LevelRecord
from lth_sparse.report import Training, trainings_of

MakeRecord = Callable[..., LevelRecord]
MakeSearch = Callable[..., list[Training]]


@pytest.fixture
def record() -> MakeRecord:
    """record(index, accuracy=..., step=..., seconds=..., control=...) with density 0.8 ** index."""

    def make(
        index: int,
        accuracy: float | None = 0.9,
        step: int | None = 100,
        seconds: float = 2.0,
        control: str | None = None,
    ) -> LevelRecord:
        metrics = {} if accuracy is None else {"test_acc": accuracy}
        stop = None if step is None else EarlyStop(step, {"val_loss": 0.5, **metrics})
        layers = [{"layout": "csr"}, {"layout": "csr"}, {"layout": "dense"}] if index else []
        return LevelRecord(index, 0.8**index, seconds, metrics, stop, [], {}, layers, control)

    return make


@pytest.fixture
def search(record: MakeRecord) -> MakeSearch:
    """search(accuracies per level, controls={"reinit": accuracy}, ...): the accuracies of the seeds lie 0.001 apart."""

    def make(
        accuracies: list[float],
        controls: dict[str, float] | None = None,
        steps: list[int] | None = None,
        seeds: int = 3,
        seconds: list[float] | None = None,
    ) -> list[Training]:
        trainings: list[Training] = []
        last = len(accuracies) - 1
        for seed in range(seeds):
            shift = 0.001 * (seed - (seeds - 1) / 2)
            records = [
                record(
                    index,
                    accuracy + shift,
                    step=steps[index] if steps else 100 - index,
                    seconds=seconds[index] if seconds else 2.0 * 0.8**index,
                )
                for index, accuracy in enumerate(accuracies)
            ]
            kinds = {
                (last, kind): record(last, accuracy + shift, step=200, seconds=1.0, control=kind)
                for kind, accuracy in (controls or {}).items()
            }
            trainings += trainings_of(seed, records, kinds)
        return trainings

    return make

"""A search that runs alike in one process and in data parallel; run as a script, this is one of two ranks.

    python parallel_search.py RANK STORE OUT begin|resume

`begin` does everything that `tests/engine/test_distributed.py` looks at, writes the facts into OUT/RANK.json, and is
killed by itself in the middle of a search; `resume` goes on with that.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import lth_sparse as ls
from lth_sparse.engine.distributed import reduced_bytes, world
from lth_sparse.errors import LTHSparseError

RANKS = 2
STEPS = 8
OPTIONS: dict[str, Any] = {
    "levels": 2,
    "rate": 0.5,
    "output_rate": 0.25,
    "rewind": "3it",
    "layout": "csr",
    "controls": ["reinit", "shuffled"],
    "strict": True,
    "min_kept": 600,  # of the output layer's 960; which is said at level 2
}


#: Searches that prune once, to these shares; the ticket of a single process at several densities.
ONE_SHOT = (0.5, 0.8, 0.9, 0.95)


def one_shot(rate: float) -> dict[str, Any]:
    return {"one_shot": True, "rate": rate, "output_rate": rate, "rewind": "3it", "layout": "csr", "strict": True}


def network(seed: int = 0) -> nn.Module:
    """[n, 64] -> [n, 10], in float64: the order of a sum must not decide which weights are pruned."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)).double()


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(80) % 10
    return torch.randn(80, 64, generator=generator, dtype=torch.float64) + F.one_hot(y, 64), y


class Trainer:
    """SGD with momentum on batches of 32, of which each rank takes every RANKS-th image of one permutation."""

    def __init__(self, rank: int = 0, at_step: Callable[[ls.engine.Level], None] | None = None) -> None:
        self.rank, self.at_step = rank, at_step
        self.reduced: list[tuple[float, float]] = []  # density, and share of dense bytes
        self.trained: list[str] = []

    def __call__(self, model: nn.Module, level: ls.engine.Level) -> dict[str, float]:
        self.trained.append(repr(level))
        x, y = images()
        parallel = nn.parallel.DistributedDataParallel(model) if world() > 1 else model
        count = reduced_bytes(parallel) if isinstance(parallel, nn.parallel.DistributedDataParallel) else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        level.attach(optimizer=optimizer)
        for _ in range(level.start_step, STEPS):
            batch = torch.randperm(len(x))[:32][self.rank :: world()]
            optimizer.zero_grad()
            loss = F.cross_entropy(parallel(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            level.step()
            if self.at_step is not None:
                self.at_step(level)
        if count is not None:
            assert count.steps == STEPS - level.start_step
            self.reduced.append((level.density, count.share))
        level.record(step=STEPS, val_loss=float(self.rank))
        return {"test_acc": float(self.rank)}


class Counter:
    """Counts what a callback is told."""

    def __init__(self) -> None:
        self.events: dict[str, int] = {}

    def __getattr__(self, event: str) -> Callable[..., None]:
        if not event.startswith("on_"):
            raise AttributeError(event)

        def count(*_: Any) -> None:
            self.events[event] = self.events.get(event, 0) + 1

        return count


def facts_of(result: ls.engine.TicketResult) -> dict[str, Any]:
    """What must be the same on all ranks."""
    tickets = [*result.tickets, *result.control_tickets.values()]
    records = [*result.levels, *result.controls.values()]
    return {
        "hashes": [ticket.hash for ticket in tickets],
        "metrics": [[record.metrics, record.history, record.seconds] for record in records],
        "layers": [record.layers for record in records],
    }


def failure(call: Callable[[], Any]) -> str | None:
    try:
        call()
    except LTHSparseError as error:
        return f"{type(error).__name__}: {error}"
    return None


def die(level: ls.engine.Level) -> None:
    if level.index == 1 and level.steps == 5:
        os.kill(os.getpid(), signal.SIGKILL)


class BadCallback:
    def on_level_start(self, level: ls.engine.Level) -> None:
        raise KeyError("of the callback")


def begin(rank: int, out: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    train, counter = Trainer(rank), Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # theta_0 is that of rank 0: the other ranks' networks differ
        result = ls.find_ticket(network(rank), train, directory=out / "whole", callbacks=[counter], **OPTIONS)
    facts["whole"] = facts_of(result)
    facts["warnings"] = [str(one.message) for one in caught if "min_kept" in str(one.message)]
    facts["events"], facts["reduced"] = counter.events, train.reduced

    for rate in ONE_SHOT:
        ls.find_ticket(network(rank), Trainer(rank), directory=out / f"rate_{rate}", **one_shot(rate))

    if rank == 0:
        shutil.copytree(out / "whole", out / "damaged")
        damaged = out / "damaged" / "level_01.safetensors"
        damaged.write_bytes(damaged.read_bytes()[:-9])
        (out / "file").write_text("")
    torch.distributed.barrier()

    def fails(**keywords: Any) -> str | None:
        return failure(lambda: ls.find_ticket(network(), train, **{**OPTIONS, **keywords}))

    facts["damaged"] = fails(directory=out / "damaged")
    facts["no directory"] = fails(directory=out / "file" / "run")
    facts["other settings"] = fails(levels=rank + 1)
    try:
        ls.find_ticket(network(), train, callbacks=[BadCallback()], **OPTIONS)
    except KeyError as error:
        facts["callback"] = repr(error)

    asked: list[int] = []

    def error_of(model: nn.Module) -> float:
        asked.append(rank)
        return 0.25 * rank

    options = {**OPTIONS, "rewind": "auto", "rewind_steps": [0, 4], "rewind_error": error_of, "controls": ["rescaled"]}
    auto = ls.find_ticket(network(rank), Trainer(rank), **options)
    facts["auto"] = {**facts_of(auto), "stability": {step: one.errors for step, one in auto.stability.items()}}
    facts["asked"] = sorted(set(asked))
    return facts


def main(rank: int, store: Path, out: Path, task: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=100)
    )
    try:
        train = Trainer(rank, die if task == "begin" else None)
        if task == "begin":
            (out / f"{rank}.json").write_text(json.dumps(begin(rank, out)))
            torch.distributed.barrier()
        result = ls.find_ticket(network(rank), train, directory=out / "killed", **OPTIONS)
        facts = {**facts_of(result), "trained": train.trained}
        (out / f"resumed_{rank}.json").write_text(json.dumps(facts))
    finally:
        gc.collect()  # DistributedDataParallel before its process group, see tests/nn/test_compile.py
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])

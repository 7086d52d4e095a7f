"""What `kill_points.py` kills: searches of every kind, dynamic sparse training, `find`, `sweep`; and their fuse."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import lth_sparse as ls
from lth_sparse import _files
from lth_sparse.cli import find, sweeping
from lth_sparse.engine import container, lock
from lth_sparse.engine.trees import decode, encode
from lth_sparse.nn import masks_of
from lth_sparse.report import html

STEPS = 3
#: Marks points that a process meets for the second time.
AGAIN = ", time "


class Fuse:
    """Notes what happens in this process, and kills it at ``point``.

    Args:
        root: directory under which writes count.
        point: one of ``seen`` of an undisturbed run; None for none.
        archive: directory that gets a copy of each file as it was written; None for none.
    """

    def __init__(self, root: Path, point: str | None = None, archive: Path | None = None) -> None:
        self.root, self.point, self.archive = root, point, archive
        self.seen: list[str] = []

    def __call__(self, point: str, torn: Path | None = None) -> None:
        """Something happens; ``torn`` is a file of which only half is there when it is the end."""
        times = sum(one.partition(AGAIN)[0] == point for one in self.seen)
        point += f"{AGAIN}{times + 1}" if times else ""
        self.seen.append(point)
        if point == self.point:
            if torn is not None:
                os.truncate(torn, torn.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def lit(self) -> Iterator[None]:
        """Watch the writes of the library."""
        replace, unlink, rewrite = os.replace, Path.unlink, lock._rewrite

        def replacing(source: Path, target: Path) -> None:
            name = str(Path(target).relative_to(self.root))
            self(f"write {name}", torn=Path(source))
            replace(source, target)
            if self.archive is not None:
                copy = self.archive / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(target, copy)
            self(f"written {name}")

        def unlinking(path: Path, missing_ok: bool = False) -> None:
            counts = path.suffix != ".tmp"
            if counts:
                self(f"delete {path.relative_to(self.root)}")
            unlink(path, missing_ok)
            if counts:
                self(f"deleted {path.relative_to(self.root)}")

        def rewriting(file: Any, text: str) -> None:
            what = "take" if text else "release"
            name = Path(file.name).relative_to(self.root)
            file.truncate(0)
            file.write(text[: len(text) // 2])
            file.flush()
            self(f"{what} {name}")
            rewrite(file, text)
            self(f"{what}n {name}")

        _files.os.replace, Path.unlink, lock._rewrite = replacing, unlinking, rewriting  # type: ignore[method-assign]
        try:
            yield
        finally:
            _files.os.replace, Path.unlink, lock._rewrite = replace, unlink, rewrite  # type: ignore[method-assign]


def network(seed: int = 0) -> nn.Module:
    """[n, 6] -> [n, 3], with BatchNorm and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.2), nn.Linear(10, 3))


def images(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(24) % 3
    return torch.randn(24, 6, generator=torch.Generator().manual_seed(7), dtype=dtype) + F.one_hot(y, 6), y


class Order:
    """A loader with a place in the data that it can go back to."""

    def __init__(self) -> None:
        self.order, self.place = torch.randperm(24).tolist(), 0

    def batch(self) -> list[int]:
        self.place = (self.place + 12) % 36 or 12
        return self.order[self.place - 12 : self.place]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.place = state["order"], state["place"]


def training(fuse: Fuse, rank: int = 0, ranks: int = 1) -> Callable[..., dict[str, float]]:
    """Momentum SGD with a schedule; draws from all three sources of random numbers."""

    def train(model: nn.Module, level: ls.engine.Level) -> dict[str, float]:
        x, y = images(next(model.parameters()).dtype)
        parallel = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], 0.5)
        order = Order()
        level.attach(optimizer=optimizer, scheduler=scheduler, order=order)
        for step in range(level.start_step + 1, STEPS + 1):
            batch = order.batch() if step < 3 else torch.randperm(24)[:12].tolist()
            inputs = x[batch] + 0.01 * random.random() + 0.01 * float(np.random.rand())
            optimizer.zero_grad()
            loss = F.cross_entropy(parallel(inputs[rank::ranks]), y[batch][rank::ranks])
            loss.backward()
            optimizer.step()
            scheduler.step()
            level.step()
            if step % 2 == 0:
                level.epoch()
            level.record(step=step, val_loss=0.0 if ranks > 1 else loss.item(), test_acc=0.5 - 0.125 * level.index)
            fuse(f"rank {rank}: step {step} of level {level.index}, control {level.control}, seed {level.seed}")
        return {"test_acc": 0.5 - 0.125 * level.index}

    return train


def error_of(model: nn.Module) -> float:
    x, y = images()
    return float((model(x).argmax(1) != y).float().mean())


SEARCHES: dict[str, dict[str, Any]] = {
    "init": {"levels": 2, "strict": True},
    "controls": {"levels": 1, "controls": ["random", "dm_reinit", "prune_at_0", "noise_1", "rescaled"]},
    "step": {"levels": 2, "rewind": "2it", "controls": ["reinit", "shuffled"]},
    "epoch": {"levels": 1, "rewind": "1ep", "scope": "global"},
    "auto": {"levels": 1, "rewind": "auto", "rewind_steps": [0, 1, 2], "rewind_error": error_of},
    "continue": {"levels": 2, "rewind": "continue"},
    "lr": {"levels": 2, "rewind": "lr"},
    "finetune": {"levels": 2, "rewind": "finetune"},
    "one-shot": {"rate": 0.8, "one_shot": True, "granularity": "row"},
    "stop_below": {"levels": 5, "stop_below": 0.3},
    "target_density": {"target_density": 0.5, "scope": "erk"},
    "snip": {"criterion": "snip", "rate": 0.6, "score_batches": [images()], "dense_baseline": False},
    "synflow": {"criterion": "synflow", "rate": 0.6, "score_shape": (6,), "score_rounds": 3},
    "2:4": {"levels": 1, "granularity": "2:4", "output_rate": 0.0, "rate": 0.5, "prune": "0.weight"},
}
RANKS = 2
PARALLEL: dict[str, Any] = {"levels": 1, "rewind": "2it", "controls": ["shuffled"], "strict": True, "layout": "csr"}


def search(name: str) -> Callable[[Path, Fuse], None]:
    def run(directory: Path, fuse: Fuse) -> None:
        # theta_0 is the directory's: another seed, as in a program that does not fix its own
        model = network(len(fuse.point or ""))
        ls.find_ticket(
            model if (directory / "start.safetensors").exists() else network(),
            training(fuse),
            directory=directory,
            **{"rate": 0.4, "min_kept": 2, **SEARCHES[name]},
        )

    return run


def dynamic(make: Callable[..., Any], layout: str) -> Callable[[Path, Fuse], None]:
    """A user's own loop over a method that changes masks, with a checkpoint after every step."""

    def run(directory: Path, fuse: Fuse) -> None:
        directory.mkdir(exist_ok=True)
        _files.remove_leftovers(directory)
        model = network()
        generator = torch.Generator().manual_seed(5)
        masks = {name: torch.rand(model.get_parameter(name).shape, generator=generator) < 0.5 for name in ("0.weight",)}
        ls.sparsify_(model, masks, layout=layout)
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        method = make(model, optimizer)
        done = sorted(int(path.stem.rpartition("_")[2]) for path in directory.glob("checkpoint_*"))
        torch.manual_seed(1)
        if done:
            tensors, content, _ = container.read(directory / f"checkpoint_{done[-1]}.safetensors", "checkpoint")
            saved = decode(content, tensors)
            method.load_state_dict(saved["method"])  # first: it gives the model the masks of then
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            torch.set_rng_state(saved["rng"])
        x, y = images()
        for step in range(done[-1] if done else 0, 9):
            batch = torch.randperm(24)[:12]
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            method.step()
            state = {"method": method.state_dict(), "model": dict(model.state_dict())}
            state |= {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
            fuse(f"step {step + 1}")
            tensors = {}
            content = encode(state, "state", tensors)
            container.write(directory / f"checkpoint_{step + 1}.safetensors", "checkpoint", tensors, content)
        assert not torch.equal(masks["0.weight"], masks_of(model)["0.weight"])

    return run


DYNAMIC: dict[str, Callable[[Path, Fuse], None]] = {
    f"{name} {layout}": dynamic(make, layout)
    for name, make in {
        "SET": lambda model, optimizer: ls.SET(model, optimizer, end=8, every=2, drop=0.5, seed=3),
        "RigL": lambda model, optimizer: ls.RigL(model, optimizer, end=8, every=2, drop=0.5),
        "GradualPruning": lambda model, optimizer: ls.GradualPruning(model, optimizer, density=0.1, end=8, every=2),
    }.items()
    for layout in (("csr", "dense") if name == "RigL" else ("csr",))
}


#: In place of `find` in a sweep: a ticket and a report, in a directory that it tidies first, as find does.
STAND_IN = """
import json, pathlib, sys
where = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
for leftover in where.glob(".*.tmp"):
    leftover.unlink()
(where / "level_01.safetensors").write_text(str(sys.argv))
level = {"level": 0, "early_accuracy": None, "accuracy": {"mean": 0.5}}
verdict = {"kind": "none", "title": "No winning ticket", "level": None, "density": None}
(where / "report.json").write_text(json.dumps({"verdict": verdict, "levels": [level], "trainings": [{"seconds": 1.0}]}))
"""


def one_find(directory: Path, fuse: Fuse) -> None:
    """`lth-sparse find` with pages that are quickly made."""
    html.render_html = lambda report: "a page"
    find.Study.analyses = lambda study, level: ()  # type: ignore[method-assign]
    options = find.Options(quick=True, iterations=2, levels=1, seeds=1, controls=False, threads=1, output=directory)
    assert find.run(options) == 0


def one_sweep(directory: Path, fuse: Fuse) -> None:
    """`lth-sparse sweep` over two combinations, one at a time."""
    sweeping.CHILD = (sys.executable, "-S", "-c", STAND_IN)
    options = find.Options(quick=True, iterations=2, levels=1, controls=False)
    assert sweeping.sweep(options, {"rate": [0.1, 0.2]}, output=directory, jobs=1) == 0

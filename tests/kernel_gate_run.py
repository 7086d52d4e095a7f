"""``make gpu-compile``: compile every configuration of the gate, print the table, and name what breaks a rule.

Compiles in worker processes, in a mixed order, so that what a stopped run has seen is a fair sample of all. What became
of a kernel is kept in a file and not compiled again until the kernel, its configuration or Triton changes; the rules
are applied to everything in every run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import kernel_gate
import kernel_gate_csr
import kernel_gate_facts
import triton
from kernel_gate_facts import Facts

#: What is known of earlier runs, a JSON line for each kernel.
RECORD = Path(__file__).resolve().parents[1] / "build" / "kernel-gate.jsonl"


class Section(NamedTuple):
    """A part of the table: its configurations, and what is done with one of them."""

    title: str
    configurations: Callable[[], Iterator[tuple[Any, ...]]]
    compile_one: Callable[..., Any]
    faults: Callable[[Any], list[str]]
    row: Callable[[Any], str]


WIDE = (
    f"{'device':<7} {'kernel':<25} {'memory':<13} {'dtype':<8} {'block':>7} {'M':>4}  {'tile':<20} regs spills  shared"
)
UNSTRUCTURED = f"{'device':<7} {'kernel':<22} {'dtype':<8} {'idx':<3} {'M':>4}  regs spills  shared"
SECTIONS = {
    "small": Section(
        WIDE,
        kernel_gate.small_configurations,
        kernel_gate.compile_small,
        kernel_gate.small_faults,
        kernel_gate.small_row,
    ),
    "blocks": Section(
        f"{WIDE}  {'mma':<28} asynchronous copies",
        kernel_gate.configurations,
        kernel_gate.compile_one,
        kernel_gate.faults,
        kernel_gate.row,
    ),
    "unstructured": Section(
        f"{UNSTRUCTURED}  {'loads of one thread':<34} tile",
        kernel_gate_csr.configurations,
        kernel_gate_csr.compile_one,
        kernel_gate_csr.faults,
        kernel_gate_csr.row,
    ),
}

Job = tuple[str, tuple[Any, ...]]


def jobs() -> list[Job]:
    """Every configuration of every section, in the order of the table."""
    return [(name, about) for name, section in SECTIONS.items() for about in section.configurations()]


def read_record(path: Path) -> None:
    """Add to ``kernel_gate_facts.KNOWN`` what a file holds, but for a line that a stopped run left unfinished."""
    if not path.exists():
        return
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            key, facts = json.loads(line)
            lists = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
            kernel_gate_facts.KNOWN[key] = Facts(**lists)


def work(job: Job) -> tuple[Any, dict[str, Facts]]:
    """In a worker: the configuration with what became of it, or why it does not compile; what was learnt for that."""
    name, about = job
    before = set(kernel_gate_facts.KNOWN)
    # Triton keeps all stages of a compilation, which for the whole gate would be gigabytes.
    with tempfile.TemporaryDirectory(prefix="kernel-gate-") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            made = SECTIONS[name].compile_one(*about)
        except Exception as error:  # a fault of this configuration, reported as all others
            made = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return made, {key: facts for key, facts in kernel_gate_facts.KNOWN.items() if key not in before}


def compile_all(chosen: Sequence[Job], workers: int, record: Path) -> dict[int, Any]:
    """What became of each job, by its number; in ``workers`` processes, with a line of progress on stderr."""
    order = random.Random(0).sample(range(len(chosen)), len(chosen))
    made: dict[int, Any] = {}
    begun, shown = time.monotonic(), 0.0
    record.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=read_record, initargs=(record,))
    with record.open("a") as file:
        file.write("" if record.stat().st_size == 0 or record.read_bytes().endswith(b"\n") else "\n")
        waiting: dict[Future[Any], int] = {pool.submit(work, chosen[number]): number for number in order}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    number = waiting.pop(future)
                    made[number], learnt = future.result()
                    for fault in faults_of(chosen[number], made[number]):
                        print(f"{chosen[number]}: {fault}", file=sys.stderr, flush=True)
                    for key, facts in learnt.items():
                        file.write(json.dumps([key, asdict(facts)]) + "\n")
                    file.flush()
                if (spent := time.monotonic() - begun) >= shown or not waiting:
                    shown = spent + 10
                    left = spent / len(made) * len(waiting)
                    broken = sum(bool(faults_of(chosen[done], one)) for done, one in made.items())
                    text = f"{len(made)} of {len(chosen)}, {broken} with faults, {left / 60:.0f} minutes left"
                    print(text, file=sys.stderr, flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    return made


def faults_of(job: Job, made: Any) -> list[str]:
    """The rules that a job breaks."""
    return [f"does not compile: {made}"] if isinstance(made, str) else SECTIONS[job[0]].faults(made)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print the table; 1 if a configuration breaks a rule."""
    parser = argparse.ArgumentParser(prog="make gpu-compile", description=__doc__)
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="worker processes (all cores)")
    parser.add_argument("--sample", type=int, help="compile so many configurations, drawn at random, instead of all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--match", action="append", default=[], help="only configurations that name this; repeatable")
    parser.add_argument("--record", type=Path, default=RECORD, help="file of what is known from earlier runs")
    options = parser.parse_args(arguments)
    chosen = [job for job in jobs() if all(text in repr(job) for text in options.match)]
    if options.sample is not None and options.sample < len(chosen):
        numbers = sorted(random.Random(options.seed).sample(range(len(chosen)), options.sample))
        chosen = [chosen[number] for number in numbers]
    print(f"Triton {triton.__version__}; compiled ahead of time, not run")
    try:
        made = compile_all(chosen, max(options.jobs, 1), options.record)
    except KeyboardInterrupt:
        print(f"stopped; what was compiled is kept in {options.record}", file=sys.stderr)
        return 130
    broken, section = [], None
    for number, job in enumerate(chosen):
        if job[0] != section:
            section = job[0]
            print(f"\n{SECTIONS[section].title}")
        wrong = faults_of(job, made[number])
        line = f"{job}" if isinstance(made[number], str) else SECTIONS[section].row(made[number])
        print("\n        FAULT: ".join([line, *wrong]))
        broken += ["\n        FAULT: ".join([line, *wrong])] if wrong else []
    if broken:
        print(f"\n{len(broken)} of {len(chosen)} configurations break a rule", *broken, sep="\n")
        return 1
    print(f"\nall {len(chosen)} configurations keep every rule")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The suite: workers measure, this outlives whatever kills them, and writes what came.

First several workers at once run every case without timing it, so that kernels are compiled by all processors; then
one worker alone measures. When it dies, or says nothing for too long, a new one goes on: what was last under way gets a
row with the reason, the other providers of that case are measured again. Rows reach the CSV case by case.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..measure import write_csv
from .cases import Case
from .measuring import COLUMNS, failure
from .rates import Rates
from .table import HEADER, lines

__all__ = ["WORKER", "Suite"]

WORKER = (sys.executable, "-m", f"{__package__}.worker")
#: Seconds without a message after which a worker is taken for hung; a first message takes imports and probes.
STEP_SECONDS, START_SECONDS = 60.0, 150.0
#: How often a case is begun anew, and how often in a row a worker may die before it reaches a case.
ATTEMPTS, STARTS = 4, 3
#: Seconds that a case may go on after the time is up.
GRACE = 30.0
#: Seconds for each comparison; share of the time and most seconds for compiling beforehand; most workers for that.
SECONDS, WARM_SHARE, WARM_SECONDS, WARMERS = 0.15, 0.3, 100.0, 12

Row = dict[str, Any]


@dataclass
class Suite:
    """One run over cases.

    Attributes:
        csv: file to append to, or None.
        minutes: no case is begun after so long.
        rows: all rows so far. left: cases that were not begun, or not finished.
        problems: what went wrong apart from rows.
    """

    cases: Sequence[Case]
    csv: Path | None = None
    minutes: float = 5.0
    device: str = "cuda"
    warm: bool = True
    seconds: float = SECONDS
    command: Sequence[str] = WORKER
    say: Callable[[str], None] = print
    step_seconds: float = STEP_SECONDS
    start_seconds: float = START_SECONDS
    probe: Sequence[int] = ()
    rates: Rates | None = None
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    left: list[Case] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether anything went wrong: what was skipped, or not begun, did not."""
        return bool(self.problems) or any(str(row["status"]).startswith(("failed", "wrong")) for row in self.rows)

    def run(self) -> None:
        """Measure; returns when all is measured or the time is up. Raises nothing that a case may cause."""
        begin = time.monotonic()
        end = begin + 60 * self.minutes
        if self.warm:
            limit = min(WARM_SECONDS, WARM_SHARE * 60 * self.minutes)
            self._compile(begin + limit)
            self.say(f"kernels compiled beforehand for {time.monotonic() - begin:.0f} s")
        self.say(HEADER)
        self.left = list(self.cases)
        known: dict[str, dict[str, str]] = {}
        attempts: dict[str, int] = {}
        starts = 0
        while self.left and time.monotonic() < end:
            before = len(self.left)
            death = self._measure(known, end)
            starts = starts if len(self.left) == before else 0
            if death is None:
                continue
            case, provider, mode, reason, capture = death
            if case is None:
                starts += 1
                self.problems.append(f"a worker died before it measured anything: {reason}")
                self.say(self.problems[-1])
                if starts == STARTS:
                    return
                self.rates = self.rates or Rates()  # without probes the next time
                continue
            starts = 0
            attempts[case.name] = attempts.get(case.name, 0) + 1
            mine = known.setdefault(case.name, {})
            status = "eager" if capture and mine.get(provider) != "eager" else f"failed: {reason}"
            self.say(f"  {case.name}: {provider}, {mode}: {reason}; a new worker goes on")
            if provider in ("all", "inputs") or attempts[case.name] >= ATTEMPTS:
                self._finish(case, [*self._held, failure(case, mode, provider, f"failed: {reason}")])
            else:
                mine[provider] = status

    def _measure(
        self, known: Mapping[str, Mapping[str, str]], end: float
    ) -> tuple[Case | None, str, str, str, bool] | None:
        """One worker's life; how it died, or None when it ended well (or its time was up)."""
        task = {
            "task": "measure", "device": self.device, "cases": [case.to_dict() for case in self.left], "known": known,
            "rates": None if self.rates is None else self.rates.to_dict(), "seconds": self.seconds,
            "until": time.time() + end - time.monotonic(), "probe": list(self.probe),
        }  # fmt: skip
        by_name = {case.name: case for case in self.cases}
        case, provider, mode, reason, capture = None, "start", "", "", False
        self._held: list[Row] = []
        with Worker(self.command, task) as worker:
            wait = self.start_seconds
            while True:
                try:
                    message = worker.get(min(wait, max(end + GRACE - time.monotonic(), 0.0)))
                except queue.Empty:
                    if time.monotonic() >= end + GRACE:
                        return None
                    return case, provider, mode, f"no answer within {wait:.0f} s", False
                if message is None:
                    break
                wait = self.step_seconds
                if "at" in message:
                    name, provider, mode = message["at"]
                    case = by_name.get(name)
                    wait = self.step_seconds if case is not None else self.start_seconds
                elif "row" in message:
                    self._held.append(message["row"])
                elif "done" in message:
                    self._finish(by_name[message["done"]], self._held)
                    case, provider, mode, self._held = None, "start", "", []
                elif "load" in message or "facts" in message:
                    self.facts.update(message.get("load") or message.get("facts") or {})
                elif "rates" in message:
                    self._found_rates(message)
                elif "dead" in message:
                    reason, capture = message["dead"], message["capture"]
            code = worker.code()
        if not self.left:
            return None
        if code == 0:
            early = self.left and time.monotonic() < end - 1
            return (None, "start", "", f"it ended with {len(self.left)} cases left", False) if early else None
        return case, provider, mode, reason or f"the process died with exit code {code}", capture

    def _found_rates(self, message: Mapping[str, Any]) -> None:
        self.rates = Rates(**message["rates"])
        self.say("  ".join(f"{name} {value}" for name, value in self.facts.items()))
        self.say(f"probed: {self.rates}")
        for name, reason in message["errors"].items():
            self.problems.append(f"the probe of {name} failed: {reason}")
            self.say(self.problems[-1])

    def _finish(self, case: Case, rows: Sequence[Row]) -> None:
        """Rows of a case that is done with, to the CSV and to the table."""
        self.left = [one for one in self.left if one.name != case.name]
        complete = [{name: row.get(name, self.facts.get(name, "")) for name in COLUMNS} for row in rows]
        self.rows += complete
        if self.csv is not None:
            write_csv(self.csv, complete, COLUMNS)
        for line in lines(complete):
            self.say(line)

    def _compile(self, end: float) -> None:
        """Several workers run all cases once; who is not done by ``end`` is stopped."""
        count = max(1, min(WARMERS, (os.cpu_count() or 1) - 1, len(self.cases)))
        with contextlib.ExitStack() as stack:
            workers = []
            for i in range(count):
                task = {"task": "warm", "device": self.device, "cases": [one.to_dict() for one in self.cases[i::count]]}
                workers.append(stack.enter_context(Worker(self.command, task)))
            for worker in workers:
                with contextlib.suppress(queue.Empty):
                    while worker.get(max(end - time.monotonic(), 0.0)) is not None:
                        pass


class Worker:
    """A process that does one task; messages come through a pipe of their own, so that prints do not mix in."""

    def __init__(self, command: Sequence[str], task: Mapping[str, Any]) -> None:
        reading, writing = os.pipe()
        try:
            self.process = subprocess.Popen([*command, str(writing)], stdin=subprocess.PIPE, pass_fds=(writing,))
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self.messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, args=(reading,), daemon=True).start()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died already, which its exit code tells
            self.process.stdin.write(json.dumps(task).encode())
            self.process.stdin.close()

    def _read(self, reading: int) -> None:
        with os.fdopen(reading) as pipe:
            for line in pipe:
                with contextlib.suppress(ValueError):  # half a line of a process that died
                    self.messages.put(json.loads(line))
        self.messages.put(None)

    def get(self, seconds: float) -> dict[str, Any] | None:
        """The next message; None when there will be none.

        Raises:
            queue.Empty: none came in time.
        """
        return self.messages.get(timeout=seconds)

    def code(self) -> int:
        """Exit code; of one that closed its pipe but does not end, that of being killed."""
        try:
            return self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

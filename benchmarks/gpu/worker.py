"""A process that measures cases and reports every step at once: ``python -m lth_sparse.benchmarks.gpu.worker FD``.

An illegal access leaves a CUDA process without its device, a kernel may hang, a compiler may crash: the process is
then replaced, and whoever started it (``suite``) knows from the last message what to leave out. The task comes as JSON
on stdin, messages go as lines of JSON to file descriptor FD:

    {"facts": {...}}  {"rates": {...}, "errors": {...}}          once, of a worker that measures
    {"at": [case, provider, mode]}                               before each step
    {"row": {...}}  {"done": case}                               after it
    {"dead": reason, "capture": bool}                            the process ends itself
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from .cases import Case
from .clock import CaptureError, Clock, clock_for, first_line
from .facts import facts, load
from .measuring import DeadDeviceError, measure_case, warm_case
from .rates import Rates, probe

__all__ = ["serve"]

Tell = Callable[[Mapping[str, Any]], None]


def serve(task: Mapping[str, Any], tell: Tell, clock: Clock | None = None) -> int:
    """Do a task; 0, or 3 when the process must be replaced.

    Args:
        task: ``{"task": "warm" or "measure", "device", "cases", "known": {case: {provider: status}}, "rates": None to
            probe, "seconds": for each comparison, "until": the time at which no further case is begun}``.
        tell: sends a message.
    """
    device = task["device"]
    cases = [Case.from_dict(values) for values in task["cases"]]
    try:
        clock = clock or clock_for(device)
        if task["task"] == "warm":
            for case in cases:
                warm_case(case, device, clock)
            return 0
        tell({"at": [None, "probe", ""]})
        if task["rates"] is None:
            rates, errors = probe(clock, device, *task.get("probe", ()))
            tell({"facts": facts(device)})
            tell({"rates": rates.to_dict(), "errors": errors})
        else:
            rates = Rates(**task["rates"])
        for case in cases:
            if time.time() > task["until"]:
                return 0

            def at(provider: str, mode: str, name: str = case.name) -> None:
                tell({"at": [name, provider, mode]})

            for row in measure_case(case, device, clock, rates, at, task["known"].get(case.name), task["seconds"]):
                tell({"row": row})
            tell({"load": load(device)})
            tell({"done": case.name})
    except (DeadDeviceError, CaptureError) as error:
        tell({"dead": first_line(error.__cause__ or error), "capture": isinstance(error, CaptureError)})
        return 3
    return 0


def main() -> int:
    # The planner is measured as on a fresh machine, and leaves nothing behind.
    os.environ["LTH_SPARSE_CACHE"] = "0"
    with os.fdopen(int(sys.argv[1]), "w") as pipe:

        def tell(message: Mapping[str, Any]) -> None:
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()

        task = json.load(sys.stdin)
        if task["device"] == "cuda":
            import torch

            torch.backends.cudnn.benchmark = True
        code = serve(task, tell)
    if code:
        sys.stderr.flush()
        os._exit(code)  # without cleaning up: a lost device would hang there
    return code


if __name__ == "__main__":
    sys.exit(main())

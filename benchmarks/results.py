"""What was measured in one session of `pytest benchmarks`, as a table and as CSV."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch

import lth_sparse as ls
from benchmarks.cases import Case
from benchmarks.providers import DENSE, OURS
from benchmarks.timing import quantile

COLUMNS = ("case", "mode", "density", "dense us", "masked us", "torch CSR us", "ours us", "dense / ours", "20% .. 80%")
CSV_COLUMNS = (
    *("case", "op", "weight", "image", "batch", "density", "mode", "provider"),
    *("median_us", "p20_us", "p80_us", "rounds"),
    *("threads", "backend", "processor", "system", "python", "torch", "lth_sparse", "date"),
)


@dataclass(frozen=True)
class Measurement:
    """The samples, in seconds, of one provider in one comparison."""

    case: Case
    mode: str
    density: float
    provider: str
    samples: list[float]

    def microseconds(self, share: float = 0.5) -> float:
        return quantile(self.samples, share) * 1e6


def processor() -> str:
    """The name of the processor as the system gives it, "unknown" if it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def backend() -> str:
    """What runs a CSR layer in float32 on this machine, for instance "cpu-avx2"."""
    from lth_sparse.ops import backend_of

    return backend_of("csr", "cpu", torch.float32)


def machine() -> dict[str, str]:
    """Everything about the machine and the versions that a figure means nothing without."""
    return {
        "threads": str(torch.get_num_threads()),
        "backend": backend(),
        "processor": processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lth_sparse": ls.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@dataclass
class Results:
    """Measurements in the order in which they were made; `seconds` is the time given to each candidate."""

    seconds: float
    measurements: list[Measurement] = field(default_factory=list)

    def add(self, measurement: Measurement) -> None:
        self.measurements.append(measurement)

    def comparisons(self) -> Iterator[dict[str, Measurement]]:
        """provider -> measurement for each case, mode and density."""
        groups: dict[tuple[str, float, str], dict[str, Measurement]] = {}
        for one in self.measurements:
            groups.setdefault((one.case.name, one.density, one.mode), {})[one.provider] = one
        yield from groups.values()

    def table(self) -> list[str]:
        """Lines of the table: times are medians, the ratio is the median of the rounds' ratios to the better dense."""
        rows = [COLUMNS]
        for group in self.comparisons():
            dense = min((group[name] for name in DENSE if name in group), key=Measurement.microseconds, default=None)
            ours = group.get(OURS)
            if dense is None or ours is None:
                continue
            ratios = [
                ours_time and dense_time / ours_time
                for dense_time, ours_time in zip(dense.samples, ours.samples, strict=True)
            ]
            others = [
                f"{group[name].microseconds():.0f}" if name in group else "-" for name in ("masked dense", "torch CSR")
            ]
            rows.append(
                (
                    *(str(ours.case), ours.mode, f"{ours.density:g}", f"{dense.microseconds():.0f}", *others),
                    *(f"{ours.microseconds():.0f}", f"{quantile(ratios, 0.5):.2f}"),
                    f"{quantile(ratios, 0.2):.2f} .. {quantile(ratios, 0.8):.2f}",
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        return [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]

    def write_csv(self, path: Path) -> None:
        """One row for each measurement, appended to `path`; the header is written into a new or empty file."""
        about = machine()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, CSV_COLUMNS)
            if os.fstat(file.fileno()).st_size == 0:
                writer.writeheader()
            for one in self.measurements:
                writer.writerow(
                    {
                        "case": one.case.name,
                        "op": one.case.op,
                        "weight": "x".join(map(str, one.case.weight)),
                        "image": "x".join(map(str, one.case.image)) if one.case.op == "conv2d" else "",
                        "batch": one.case.batch,
                        "density": one.density,
                        "mode": one.mode,
                        "provider": one.provider,
                        "median_us": f"{one.microseconds():.2f}",
                        "p20_us": f"{one.microseconds(0.2):.2f}",
                        "p80_us": f"{one.microseconds(0.8):.2f}",
                        "rounds": len(one.samples),
                        **about,
                    }
                )

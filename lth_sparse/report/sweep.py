"""What a sweep found: a row for each combination of options, read from its own report, as JSON and as one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lth_sparse._files import atomic_write
from lth_sparse.errors import TicketError
from lth_sparse.report import facts
from lth_sparse.report.html import now, template
from lth_sparse.report.tables import MISSING, Grid, percent_cell, seconds_cell

__all__ = ["Row", "row_of", "sweep_grid", "write_sweep"]

FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One combination.

    Attributes:
        name: of its directory; options: option -> value, as text.
        status: "finished", "failed" or "not finished"; a failed one has the last lines of its log as ``error``.
        verdict, title: kind and line of the verdict; level, density: what it names.
        dense_accuracy, accuracy: test accuracy of the dense network and of that level, at the early stop where there
            is one, means over the seeds.
        seconds: of all its trainings together; None where some were not noted.
        report: its page, relative to the sweep's directory.
    """

    name: str
    options: dict[str, str]
    status: str
    verdict: str | None = None
    title: str | None = None
    level: int | None = None
    density: float | None = None
    dense_accuracy: float | None = None
    accuracy: float | None = None
    seconds: float | None = None
    report: str | None = None
    error: str | None = None


def row_of(directory: Path, options: Mapping[str, str]) -> Row:
    """The row of a finished combination, from the report.json in its directory.

    Raises:
        TicketError: that file is missing or damaged.
    """
    path = directory / "report.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        verdict = found["verdict"]
        accuracies = {level["level"]: _accuracy(level) for level in found["levels"]}
        seconds = [training["seconds"] for training in found["trainings"]]
        return Row(
            name=directory.name,
            options=dict(options),
            status="finished",
            verdict=str(verdict["kind"]),
            title=str(verdict["title"]),
            level=verdict["level"],
            density=verdict["density"],
            dense_accuracy=accuracies.get(0),
            accuracy=accuracies.get(verdict["level"]),
            seconds=None if None in seconds else float(sum(seconds)),
            report=f"{directory.name}/report.html",
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TicketError(f"{path}: damaged ({error}); delete it to have the combination looked at again") from error


def _accuracy(level: Mapping[str, Any]) -> float | None:
    found = level["early_accuracy"] or level["accuracy"]
    return None if found is None else float(found["mean"])


def sweep_grid(rows: Sequence[Row], title: str, linked: bool = False) -> Grid:
    """One row for each combination; ``linked`` makes its verdict a link to its own page, for HTML alone."""
    names = list(dict.fromkeys(name for row in rows for name in row.options))
    headers = (*names, "verdict", "weights left", "test acc. of dense", "test acc. there", "training seconds")
    lines = tuple(
        (
            *(row.options.get(name, MISSING) for name in names),
            _linked(row) if linked else row.verdict or row.status,
            percent_cell(row.density),
            percent_cell(row.dense_accuracy, 2),
            percent_cell(row.accuracy, 2),
            seconds_cell(row.seconds),
        )
        for row in rows
    )
    return Grid(title, headers, lines, left=len(names) + 1)


def _linked(row: Row) -> str:
    from markupsafe import Markup

    if row.report is None:
        return row.status
    return Markup('<a href="{}">{}</a>').format(quote(row.report), row.verdict)


def write_sweep(directory: Path, rows: Sequence[Row], command: str) -> Path:
    """Write sweep.json and sweep.html, each completely or not at all; return the page.

    Raises:
        RunError: the directory is not writable or the disk is full.
    """
    about = {
        "created": now(),
        "command": command,
        "versions": facts.versions(),
        "machine": {**facts.machine(), **facts.kernels(), **facts.environment()},
    }
    content = {"format": FORMAT, **about, "combinations": [asdict(row) for row in rows]}
    atomic_write(directory / "sweep.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    page = template("sweep.html.j2").render(**about, rows=rows, grid=sweep_grid(rows, "", linked=True))
    atomic_write(directory / "sweep.html", page.encode())
    return directory / "sweep.html"

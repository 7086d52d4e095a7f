"""One self-contained HTML page, and the same facts as JSON, for a finished or partly finished search.

The page loads nothing: style and SVG plots are inside it. Jinja2 escapes every value; only the SVG that `plots` made
goes in as markup.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_sparse._files import atomic_write
from lth_sparse.report.analyses import Section
from lth_sparse.report.summary import LevelSummary, Summary
from lth_sparse.report.tables import Grid, seed_grid, summary_grid, verdict_grid
from lth_sparse.report.verdict import Verdict

__all__ = ["Report", "now", "render_html", "render_json", "template", "write_report"]

if TYPE_CHECKING:
    from jinja2 import Template

FORMAT = 1


@dataclass(frozen=True)
class Report:
    """Everything the page says, in plain values.

    Attributes:
        name, data: what was pruned, on which images.
        command: the command line that repeats the run.
        summary, verdict: the figures and their judgement.
        hyperparameters, versions, machine: name -> value, shown as tables.
        tickets: paths of the ticket files, best first; controls are not listed.
        crowded: None, or why the seconds are unreliable, such as other work on the machine.
        analyses: further sections, about the ticket that the verdict names.
        created: when it was written.
    """

    name: str
    data: str
    command: str
    summary: Summary
    verdict: Verdict
    hyperparameters: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    tickets: tuple[str, ...]
    crowded: str | None = None
    analyses: tuple[Section, ...] = ()
    created: str = field(default_factory=lambda: now())


def write_report(directory: Path, report: Report) -> tuple[Path, Path]:
    """Write report.json and report.html into `directory`, each completely or not at all; return both paths.

    Raises:
        RunError: the directory is not writable or the disk is full.
    """
    page, facts = directory / "report.html", directory / "report.json"
    atomic_write(facts, render_json(report).encode())
    atomic_write(page, render_html(report).encode())
    return page, facts


def render_json(report: Report) -> str:
    """All facts as JSON, accuracies and densities as shares in [0, 1]; figures that are not finite become null."""
    summary, verdict = report.summary, report.verdict
    facts = {
        "format": FORMAT,
        "created": report.created,
        "name": report.name,
        "data": report.data,
        "command": report.command,
        "verdict": {
            "kind": verdict.kind,
            "title": verdict.title,
            "text": verdict.text,
            "level": verdict.level,
            "density": verdict.density,
            "margin": verdict.margin,
        },
        "seeds": list(summary.seeds),
        "levels": [_level(level) for level in summary.levels],
        "controls": [_level(level) for level in summary.controls],
        "floor_seconds": summary.floor,
        "trainings": [{**asdict(t), "layouts": dict(t.layouts), "speedup": t.speedup} for t in summary.trainings],
        "hyperparameters": dict(report.hyperparameters),
        "versions": dict(report.versions),
        "machine": dict(report.machine),
        "tickets": list(report.tickets),
        "crowded": report.crowded,
        "analyses": {
            section.title: [{"headers": grid.headers, "rows": grid.rows} for grid in section.grids]
            for section in report.analyses
        },
    }
    return json.dumps(_finite(facts), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def render_html(report: Report) -> str:
    """The page as text; it refers to nothing outside itself."""
    from markupsafe import Markup

    from lth_sparse.report import plots

    summary = report.summary
    figures = [
        (
            Markup(plots.accuracy_plot(summary)),
            "Test accuracy at the early-stop iteration. A winning ticket stays on or above the dashed line while the "
            "controls fall below it.",
        ),
        (
            Markup(plots.early_stop_plot(summary)),
            "Iteration at which the validation loss is lowest, found after the fact. Lower is faster learning.",
        ),
        (Markup(plots.seconds_plot(summary)), _seconds_caption(report)),
    ]
    return template("report.html.j2").render(
        report=report,
        figures=figures,
        verdict_grid=verdict_grid(report.verdict, ""),
        summary_grid=summary_grid(summary, ""),
        seed_grids=_seed_grids(summary),
        sections=[
            (section, [(Markup(svg), caption) for svg, caption in section.figures]) for section in report.analyses
        ],
        seeds=len(summary.seeds),
    )


def template(name: str) -> Template:
    """A page of `templates`, in which every value is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lth_sparse.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)


def now() -> str:
    """The time of a report, "2026-01-31 12:00 UTC"."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _seconds_caption(report: Report) -> str:
    text = "Wall time of training one level, evaluations included; all levels run the same number of iterations."
    if report.summary.floor is not None:
        text += (
            f" The dotted line is the floor, {report.summary.floor:.2f} s: what a level would take with no weights "
            "left, from a straight line through seconds against density. Data, loss, optimiser and evaluation stay."
        )
    return text if report.crowded is None else f"{text} Careful: {report.crowded}."


def _seed_grids(summary: Summary) -> list[Grid]:
    return [seed_grid([t for t in summary.trainings if t.seed == seed], f"Seed {seed}") for seed in summary.seeds]


def _level(level: LevelSummary) -> dict[str, Any]:
    return asdict(level)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value

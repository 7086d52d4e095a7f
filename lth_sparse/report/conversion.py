"""The ledger of a conversion as tables, as a Pareto plot, and as a page with the facts beside it in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lth_sparse._files import atomic_write
from lth_sparse.engine.conversion import Best, Entry, LayerConversion, Ledger
from lth_sparse.nn.report import size
from lth_sparse.ops.measure import Timing
from lth_sparse.report.analyses import Section
from lth_sparse.report.figures import COLOURS, as_svg, figure_style, new_figure, tidy
from lth_sparse.report.html import now, template
from lth_sparse.report.tables import MISSING, Grid, percent_cell

__all__ = [
    "ConversionReport",
    "conversion_section",
    "layers_grid",
    "ledger_grid",
    "notes_of",
    "pareto_plot",
    "write_conversion",
]

T = TypeVar("T")

HEADERS = (
    "method",
    "weights left",
    "kept",
    "added",
    "dropped",
    "magnitude",
    "blocks before",
    "blocks after",
    "padded MFLOP",
    "bytes",
    "forward",
    "step",
    "vs dense",
    "vs csr",
    "converted",
    "retrained",
    "points lost",
)
LAYER_HEADERS = (
    "layer",
    "layout",
    "live before",
    "kept",
    "added",
    "dropped",
    "magnitude",
    "blocks before",
    "blocks after",
    "padded MFLOP",
    "values",
    "index",
    "step, csr",
    "step, here",
    "note",
)


def ledger_grid(ledger: Ledger, title: str = "") -> Grid:
    """One row for each entry. Times are medians with the middle 80% of the samples in brackets."""
    return Grid(title, HEADERS, tuple(_row(ledger, entry) for entry in ledger.entries))


def layers_grid(entry: Entry) -> Grid:
    """One row for each layer that a method has looked at."""
    return Grid(entry.name, LAYER_HEADERS, tuple(_layer_row(entry, row) for row in entry.layers), left=2)


def notes_of(ledger: Ledger) -> list[str]:
    """Sentences that belong below the table."""
    lines = [f"{entry.name}: {note}." for entry in ledger.entries for note in entry.notes]
    if any(entry.time is None for entry in ledger.entries):
        lines.append(f"Times were not measured: there is no {ledger.target} device here.")
    return lines


def pareto_plot(ledger: Ledger) -> str | None:
    """Accuracy against the speed of a training step, the ticket in CSR being 1; None where nothing has both."""
    points = [entry for entry in ledger.choices if entry.time is not None and entry.final is not None]
    if not points:
        return None
    front = {entry.name for entry in ledger.pareto()}
    with figure_style("pareto"):
        figure = new_figure((6.6, 4.4))
        axes = figure.add_subplot()
        corner = []
        for number, entry in enumerate(points):
            assert entry.time is not None
            assert entry.final is not None
            speed, accuracy = entry.time.step_ratios["csr"], 100.0 * entry.final
            colour = COLOURS[0] if entry.baseline else COLOURS[1] if entry.name in front else COLOURS[5]
            bars = [[speed.median - speed.low], [speed.high - speed.median]]
            marker = "s" if entry.baseline else "o"
            axes.errorbar(
                speed.median, accuracy, xerr=bars, color=colour, marker=marker, capsize=2, linewidth=0.8, zorder=3
            )
            above = 5 if number % 2 else -11
            axes.annotate(
                entry.name, (speed.median, accuracy), (4, above), textcoords="offset points", fontsize=7.5, color=colour
            )
            if entry.name in front:
                corner.append((speed.median, accuracy))
        corner.sort()
        axes.plot(*zip(*corner, strict=True), color=COLOURS[1], linewidth=1.2, linestyle="--", zorder=2, label="front")
        axes.set_xlabel("Speed of a training step, the ticket in CSR = 1")
        axes.set_ylabel("Test accuracy (%)")
        tidy(axes)
        return as_svg(figure, "pareto", "Test accuracy against the speed of a training step")


def conversion_section(ledger: Ledger) -> Section:
    """The ledger as a part of a page."""
    figure = pareto_plot(ledger)
    caption = (
        "Further right is faster, further up more accurate. Squares are the ticket itself; on the dashed line nothing "
        "is better in both. Bars hold the middle 80% of the rounds."
    )
    steps = f"{ledger.steps:,} steps of retraining from the initial weights"
    before = f"Accuracies after {steps}. " if ledger.steps else ""
    text = (
        f"{before}Every method on the same ticket, for {ledger.target}, {ledger.threads} thread(s). Blocks: share "
        "of the stored values that is live, before in the method's blocks as the ticket came, after as it is stored. "
        "MFLOP: of one example's forward pass with all that is stored. Speeds are time of the other over this one's, "
        "round by round."
    )
    grids = tuple(layers_grid(entry) for entry in ledger.entries if entry.layers)
    return Section("From mask to blocks", text, ((figure, caption),) if figure else (), (ledger_grid(ledger), *grids))


@dataclass(frozen=True)
class ConversionReport:
    """Everything the page of a conversion says.

    Attributes:
        name: of the ticket. command: what repeats the run. ledger, best: the figures and the choice.
        facts, versions, machine: name -> value, shown as tables.
        crowded: None, or why the times are unreliable. created: when it was written.
    """

    name: str
    command: str
    ledger: Ledger
    best: Best
    facts: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    crowded: str | None = None
    created: str = field(default_factory=now)


def write_conversion(directory: Path, report: ConversionReport) -> tuple[Path, Path]:
    """Write report.html and ledger.json into ``directory``, each completely or not at all; return both paths.

    Raises:
        RunError: the directory is not writable or the disk is full.
    """
    from markupsafe import Markup

    section = conversion_section(report.ledger)
    page, facts = directory / "report.html", directory / "ledger.json"
    text = template("conversion.html.j2").render(
        report=report,
        section=section,
        figures=[(Markup(svg), caption) for svg, caption in section.figures],
        notes=notes_of(report.ledger),
    )
    content = {
        **report.ledger.to_dict(),
        "created": report.created,
        "name": report.name,
        "command": report.command,
        "best": {"name": report.best.entry.name, "text": report.best.text},
        "facts": dict(report.facts),
        "versions": dict(report.versions),
        "machine": dict(report.machine),
        "crowded": report.crowded,
    }
    atomic_write(facts, (json.dumps(content, indent=2, allow_nan=False, default=str) + "\n").encode())
    atomic_write(page, text.encode())
    return page, facts


def _row(ledger: Ledger, entry: Entry) -> tuple[str, ...]:
    time = entry.time
    lost = ledger.loss(entry)
    return (
        entry.name,
        percent_cell(entry.density, 2),
        _shown(entry.kept, lambda count: f"{count:,}"),
        _shown(entry.added, lambda count: f"{count:,}"),
        _shown(entry.dropped, lambda count: f"{count:,}"),
        percent_cell(entry.magnitude),
        percent_cell(entry.block_density_before),
        percent_cell(entry.block_density),
        f"{entry.work.padded / 1e6:.3g}",
        size(entry.work.bytes),
        MISSING if time is None else _seconds(time.forward.median),
        MISSING if time is None else _seconds(time.step.median),
        *(_shown(time, _ratio(other)) for other in ("dense", "csr")),
        percent_cell(entry.accuracy),
        _retrained(entry.retrained),
        MISSING if lost is None else f"{lost:+.2f}",
    )


def _layer_row(entry: Entry, row: LayerConversion) -> tuple[str, ...]:
    layout = row.layout + (f" {row.block[0]}x{row.block[1]}" if row.block else "")
    if not row.converted:
        layout = "as it was"
    return (
        row.name,
        layout + " channels_last" * row.channels_last,
        f"{row.before:,}",
        f"{row.kept:,}",
        f"{row.added:,}",
        f"{row.dropped:,}",
        percent_cell(row.magnitude / row.magnitude_before if row.magnitude_before else None),
        percent_cell(row.block_density_before),
        percent_cell(row.block_density),
        f"{entry.padded(row) / 1e6:.3g}",
        size(row.value_bytes),
        size(row.index_bytes),
        *(_shown(row.timings, _layer_step(kind)) for kind in ("csr", "converted")),
        row.note or MISSING,
    )


def _layer_step(kind: str) -> Callable[[Mapping[str, Timing]], str]:
    return lambda timings: _seconds(timings[kind].training)


def _ratio(other: str) -> Callable[[Any], str]:
    def show(time: Any) -> str:
        span = time.step_ratios[other]
        return f"{span.median:.2f}x [{span.low:.2f}, {span.high:.2f}]"

    return show


def _retrained(values: tuple[float, ...]) -> str:
    if not values:
        return MISSING
    mean = f"{100.0 * sum(values) / len(values):.2f}%"
    return mean if len(values) == 1 else f"{mean} [{100.0 * min(values):.2f}, {100.0 * max(values):.2f}]"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def _shown(value: T | None, show: Callable[[T], str]) -> str:
    return MISSING if value is None else show(value)

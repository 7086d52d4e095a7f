"""`lth-sparse reproduce`: the paper's experiment on a network, and what of its claims these runs show.

Several searches run for each seed, all into one directory, all resumable: iterative pruning with its controls, and what
its claims compare it with (`studies.py`): one-shot pruning, other rates and no resetting for LeNet, dropout for the
conv nets, other learning rates for ResNet-20 and VGG-19. With MNIST or CIFAR-10 at hand and ``--budget full`` this is
the paper's own experiment; on the digits of scikit-learn it is a study of a smaller problem, which says so, and whose
claims may well be out of reach of its data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lth_sparse._files import atomic_write
from lth_sparse._version import __version__
from lth_sparse.cli.directory import claim, owned
from lth_sparse.cli.presets import budgeted, scaled_down, title, wants_feature_major
from lth_sparse.cli.progress import duration
from lth_sparse.cli.studies import NETWORKS, Study, main_preset, studies_of
from lth_sparse.engine import TicketResult, find_ticket
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.ops.memory import keep_memory
from lth_sparse.paper import PRESETS, DataSet, Preset, build_model, load_dataset, make_train
from lth_sparse.paper.ladder import printed_ladder
from lth_sparse.report import facts, judge, summarise, trainings_of
from lth_sparse.report.analyses import Section, analysis_sections
from lth_sparse.report.claims import Claim, Finding, claims_grid, claims_of, examine, ladder_claim
from lth_sparse.report.html import Report, write_report
from lth_sparse.report.studies import studies_section
from lth_sparse.report.tables import show

__all__ = ["BUDGETS", "Options", "preset_for", "run"]

BUDGETS = ("quick", "full")
FORMAT = 1
CLAIMS = (
    "Differences are taken seed by seed, mean [minimum, maximum]. A claim holds, or is contradicted, if its difference "
    "lies on one side by more than the half-width of the one-sided 95% confidence interval; else these runs do not "
    "show it."
)


@dataclass(frozen=True)
class Options:
    """The command line."""

    network: str = "lenet"
    budget: str = "quick"
    figure: int | None = None
    seeds: int = 5
    data: Path | None = None
    output: Path | None = None
    threads: int | None = None
    iterations: int | None = None
    levels: int | None = None


def run(options: Options, console: Console | None = None) -> int:
    """Train what the claims need, judge them, print and store the outcome; 1 if a claim is contradicted, else 0.

    Raises:
        LTHSparseError: any of the user's mistakes.
    """
    console = Console() if console is None else console
    _check(options)
    preset = main_preset(options.network, lambda name: preset_for(name, options))
    data = load_dataset(preset.dataset, options.data, side=preset.side if preset.dataset == "digits" else None)
    directory = options.output or Path("runs") / f"reproduce-{options.network}-{preset.dataset}-{options.budget}"
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_memory()
    reproduction = Reproduction(options, preset, data, directory, console)
    announcement = reproduction.announcement()  # refuses an unknown figure, before the directory is made
    with owned(directory):
        warning = claim(directory, preset, {}, "reproduce.json")
        reproduction.say(*announcement, *([warning] if warning else []), "")
        reproduction.train()
        return reproduction.conclude()


@dataclass
class Reproduction:
    """The searches of one command, and their judgement."""

    options: Options
    preset: Preset
    data: DataSet
    directory: Path
    console: Console
    studies: dict[str, dict[int, TicketResult]] = field(default_factory=dict)

    @cached_property
    def all_studies(self) -> list[Study]:
        """The searches that the claims need, the main one first."""
        return studies_of(self.options.network, lambda name: preset_for(name, self.options), self.data)

    @cached_property
    def plan(self) -> list[Study]:
        """Those of them that are run: all, or what the claims of one figure need.

        Raises:
            ArgumentError: there are no claims of that figure.
        """
        figure, studies = self.options.figure, self.all_studies
        known = sorted({number for study in studies for number in study.figures})
        if figure is not None and figure not in known:
            wanted = f"one of {', '.join(map(str, known))} for {self.options.network}"
            raise ArgumentError(expected("figure", wanted, figure))
        return [study for study in studies if figure is None or figure in study.figures]

    def announcement(self) -> list[str]:
        """What is going to happen, and on what."""
        name, seeds = title(self.preset), self.options.seeds
        lines = [f"{name} on {self.data}, {seeds} seed(s), {self.preset.iterations:,} iterations a training"]
        if self.preset.dataset == "digits":
            lines.append(
                "digits is 1,797 small images: a scaled-down study. Where these data are too easy or too few to tell "
                "networks apart, a claim is 'not shown', which is neither for it nor against it."
            )
        lines += scaled_down(self.preset)
        return [*lines, *(f"  {study.name}: {title(study.preset)}, {_size(study)}" for study in self.plan)]

    def train(self) -> None:
        """Every search of every seed; what the directory holds already is read from there."""
        for seed in range(self.options.seeds):
            for study in self.plan:
                self._search(study, seed)

    def claims(self) -> list[Claim]:
        """All claims about the network; those of one figure where that was asked for."""
        dense = [result.levels[0].accuracy() or 0.0 for result in self.studies["iterative"].values()]
        densities = {study.name: study.densities(self.data) for study in self.all_studies}
        printed, margin = printed_ladder(self.preset, build_model(self.preset.model, self.data, 0))
        claims = [ladder_claim(printed, margin)] if printed else []
        claims += claims_of(self.options.network, densities, len(self.data.test), sum(dense) / len(dense))
        return [claim for claim in claims if self.options.figure in (None, claim.figure)]

    def findings(self) -> list[Finding]:
        """The claims, judged."""
        return [examine(claim, self.studies) for claim in self.claims()]

    def conclude(self) -> int:
        """Print the table, store it as JSON, and say in a line what came out."""
        findings = self.findings()
        show(self.console, claims_grid(findings, f"What {self.options.seeds} seed(s) show"))
        counts = {name: sum(f.outcome == name for f in findings) for name in ("holds", "contradicted", "not shown")}
        self.say("; ".join(f"{count} {name}" for name, count in counts.items()) + ".")
        stored = {
            "format": FORMAT,
            "network": self.options.network,
            "budget": self.options.budget,
            "data": str(self.data),
            "lth_sparse": __version__,
            "preset": self.preset.to_dict(),
            "seeds": self.options.seeds,
            "claims": [_plain(finding) for finding in findings],
        }
        path = self.directory / "claims.json"
        atomic_write(path, (json.dumps(stored, indent=2, allow_nan=False) + "\n").encode())
        self.say(f"Figures: {path}", f"Report: {self.report(findings)}")
        return 1 if counts["contradicted"] else 0

    def report(self, findings: list[Finding]) -> Path:
        """report.html: the claims, then all that `lth-sparse find` would say of the iterative search."""
        results = self.studies["iterative"]
        trainings = [t for seed, r in results.items() for t in trainings_of(seed, r.levels, r.controls)]
        summary = summarise(trainings)
        verdict = judge(summary, images=len(self.data.test))
        level = self.preset.levels if verdict.level is None else verdict.level
        claims = Section("Claims of the paper", CLAIMS, (), (claims_grid(findings, ""),))
        words = [f"--{name} {value}" for name, value in vars(self.options).items() if name != "network" and value]
        report = Report(
            name=f"{title(self.preset)} on {self.preset.dataset}",
            data=f"{self.data} (training / validation / test)",
            command=" ".join(["lth-sparse reproduce", self.options.network, *words]),
            summary=summary,
            verdict=verdict,
            hyperparameters={**self.preset.to_dict(), "seeds": len(results), "threads": torch.get_num_threads()},
            versions=facts.versions(),
            machine={**facts.machine(), **facts.kernels(), **facts.environment()},
            tickets=tuple(str(self._folder("iterative", seed) / f"level_{level:02d}.safetensors") for seed in results),
            analyses=(claims, studies_section(self.studies), *analysis_sections(results, level)),
        )
        return write_report(self.directory, report)[0]

    def say(self, *lines: str) -> None:
        """Print lines as they are, never wrapped."""
        self.console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)

    def _folder(self, study: str, seed: int) -> Path:
        return self.directory / study.replace(" ", "_") / f"seed_{seed}"

    def _search(self, study: Study, seed: int) -> TicketResult:
        result = find_ticket(
            build_model(study.preset.model, self.data, seed, dropout=study.preset.dropout),
            make_train(study.preset, self.data),
            **study.keywords,
            feature_major=wants_feature_major(study.preset),
            directory=self._folder(study.name, seed),
            seed=seed,
        )
        self.studies.setdefault(study.name, {})[seed] = result
        trained = [record for record in (*result.levels, *result.controls.values()) if not record.resumed]
        if trained:
            seconds = sum(record.seconds for record in trained)
            self.say(
                f"{self.options.network}, {study.name}, seed {seed}: {len(trained)} trainings in {duration(seconds)}"
            )
        return result


def _size(study: Study) -> str:
    trainings = study.preset.levels + 1 + len(study.controls) * len(study.control_levels)
    return f"{trainings} trainings of {study.preset.iterations:,} iterations"


def _check(options: Options) -> None:
    if options.network not in NETWORKS:
        raise ArgumentError(expected("network", f"one of {', '.join(NETWORKS)}", repr(options.network)))
    if options.budget not in BUDGETS:
        raise ArgumentError(expected("budget", f"one of {', '.join(BUDGETS)}", repr(options.budget)))


def preset_for(name: str, options: Options) -> Preset:
    """The preset ``name`` with the budget and the data of the command."""
    preset = PRESETS[name].quick() if options.budget == "quick" else PRESETS[name]
    dataset = "digits" if options.data is None else PRESETS[name].dataset
    return budgeted(preset, dataset=dataset, iterations=options.iterations, levels=options.levels)


def _plain(finding: Finding) -> dict[str, Any]:
    """A finding as JSON values; null for figures that there are none of."""
    figures = {"mean": finding.mean, "minimum": finding.minimum, "maximum": finding.maximum, "bound": finding.bound}
    return {
        "claim": finding.claim.text,
        "figure": finding.claim.figure,
        "kind": finding.claim.kind,
        "margin": finding.claim.margin,
        "unit": finding.claim.unit,
        "outcome": finding.outcome,
        "seeds": finding.seeds,
        **{name: value if finding.seeds else None for name, value in figures.items()},
    }

"""Options of `pytest benchmarks`, and the tables at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

from lth_sparse.errors import ArgumentError
from lth_sparse.report.tables import plain_text

from .cases import DENSITIES, select
from .machine import about
from .measure import COLUMNS, STATES, Run, Settings, write_csv
from .options import floats, integers, words
from .providers import LAYOUTS, PEERS
from .tables import layer_grid, network_grid, peer_grid, rates_line

RUN = pytest.StashKey[Run]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lth_sparse benchmarks")
    group.addoption("--cases", default="headline", help="names, globs and tags (headline, vgg19, all ...) with commas")
    group.addoption("--densities", help=f"shares of weights kept; by default {', '.join(map(str, DENSITIES))}")
    group.addoption("--threads", default="1", help="numbers of threads with commas in between")
    group.addoption("--modes", default="forward,step", help="some of forward, forward+dx, step")
    group.addoption("--layouts", default=",".join(LAYOUTS), help=f"some of {', '.join(LAYOUTS)}")
    group.addoption("--peers", default=",".join(PEERS), help=f"none, or some of {', '.join(PEERS)}")
    group.addoption("--seconds", type=float, default=0.2, help="time given to each candidate of a comparison")
    group.addoption("--state", default="steady", help=f"{' or '.join(STATES)}: how a call finds caches and memory")
    group.addoption("--csv", type=Path, help="append every measurement to this file, with machine and versions")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # One wide table for each comparison would bury the one at the end; -v or --benchmark-verbose shows them.
    if config.getoption("verbose") <= 0:
        config.option.benchmark_quiet = True
    option = config.getoption
    try:
        settings = Settings(
            select(option("--cases")),
            floats("densities", option("--densities")) if option("--densities") else DENSITIES,
            integers("threads", option("--threads")),
            words(option("--modes")),
            words(option("--layouts")),
            words(option("--peers")),
            option("--seconds"),
            option("--state"),
        )
    except ArgumentError as error:
        raise pytest.UsageError(f"--{error}") from error
    config.stash[RUN] = Run(settings)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each comparison and candidate; all candidates of a comparison follow each other."""
    if "comparison" not in metafunc.fixturenames:
        return
    rows = [
        pytest.param(comparison, key, id=f"{comparison}-{key[0]}-{key[1]:g}")
        for comparison in metafunc.config.stash[RUN].settings.comparisons()
        for key in comparison.candidates()
    ]
    metafunc.parametrize(("comparison", "key"), rows)


@pytest.fixture
def results(request: pytest.FixtureRequest) -> Run:
    """Where measurements of this session are collected."""
    return request.config.stash[RUN]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    run = config.stash[RUN]
    if not run.measurements:
        return
    machine = about()
    terminalreporter.section("lth_sparse against dense torch")
    terminalreporter.line(
        f"{machine['processor']}, {machine['isa']}, torch {machine['torch']}, float32; {rates_line(run)}; medians; "
        "f: forward without gradients; step: forward and gradients of input, weight and bias; "
        "ratio: the better of dense contiguous and channels_last over ours, within a round"
    )
    for sentence in run.settings.skipped():
        terminalreporter.line(sentence)
    for grid in (layer_grid(run), peer_grid(run), network_grid(run)):
        for line in plain_text(grid).splitlines() if grid else ():
            terminalreporter.line(line)
    if path := config.getoption("--csv"):
        write_csv(path, run.rows(), COLUMNS)
        terminalreporter.line(f"written to {path}")

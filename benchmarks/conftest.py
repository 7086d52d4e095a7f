"""Options of `pytest benchmarks`, and the table at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

from benchmarks.cases import CASES
from benchmarks.providers import PROVIDERS
from benchmarks.results import Results, machine

RESULTS = pytest.StashKey[Results]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lth_sparse benchmarks")
    group.addoption("--cases", default="headline", help="headline (the default), all, or names with commas in between")
    group.addoption("--densities", help="shares of weights kept, with commas in between; by default those of the case")
    group.addoption("--seconds", type=float, default=0.5, help="time given to each candidate of a comparison")
    group.addoption("--csv", type=Path, help="append every measurement to this file, with machine and versions")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # One wide table for each comparison would bury the one at the end; -v or --benchmark-verbose shows them.
    if config.getoption("verbose") <= 0:
        config.option.benchmark_quiet = True
    config.stash[RESULTS] = Results(config.getoption("--seconds"))


def chosen_cases(text: str) -> list[str]:
    """The names meant by --cases."""
    if text == "all":
        return list(CASES)
    if text == "headline":
        return [name for name, case in CASES.items() if case.headline]
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in CASES]:
        raise pytest.UsageError(
            f"--cases: expected headline, all or some of {', '.join(CASES)}, got {', '.join(unknown)}"
        )
    return names


def chosen_densities(text: str) -> tuple[float, ...]:
    """The numbers meant by --densities."""
    try:
        densities = tuple(float(part) for part in text.split(","))
    except ValueError:
        densities = (-1.0,)
    if not all(0 < density <= 1 for density in densities):
        raise pytest.UsageError(f"--densities: expected numbers above 0 and up to 1 with commas in between, got {text}")
    return densities


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case, density, mode and provider; all providers of a comparison follow each other."""
    if "provider" not in metafunc.fixturenames:
        return
    given = metafunc.config.getoption("--densities")
    rows = [
        pytest.param(CASES[name], density, mode, provider, id=f"{name}-{density:g}-{mode}-{provider}")
        for name in chosen_cases(metafunc.config.getoption("--cases"))
        for density in (chosen_densities(given) if given else CASES[name].densities)
        for mode in ("forward", "step")
        for provider in PROVIDERS[CASES[name].op]
    ]
    metafunc.parametrize(("case", "density", "mode", "provider"), rows)


@pytest.fixture
def results(request: pytest.FixtureRequest) -> Results:
    """Where measurements of this session are collected."""
    return request.config.stash[RESULTS]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if not results.measurements:
        return
    about = machine()
    terminalreporter.section("lth_sparse against dense torch")
    terminalreporter.line(
        f"{about['processor']}, {about['threads']} threads, {about['backend']}, torch {about['torch']}, float32; "
        "medians; forward: no gradients; step: forward and gradients of input, weight and bias;"
    )
    terminalreporter.line(
        "dense: the better of contiguous and channels_last; dense / ours: median and quantiles over interleaved rounds"
    )
    for line in results.table():
        terminalreporter.line(line)
    if path := config.getoption("--csv"):
        results.write_csv(path)
        terminalreporter.line(f"written to {path}")

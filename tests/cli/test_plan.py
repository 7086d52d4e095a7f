"""`lth-sparse plan`: which network, what is printed and written, and its errors. Timings are made up."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from lth_sparse.cli import plan as command
from lth_sparse.errors import ArgumentError
from lth_sparse.nn import LayerPlan, PlanTable
from lth_sparse.ops.measure import Timing

Run = Callable[..., Any]

BUILDER = """
import torch
def build():
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
def broken():
    raise RuntimeError("no\\nluck")
def number():
    return 3
model = build()
"""


def timing(seconds: float) -> Timing:
    return Timing(seconds, 3 * seconds, seconds, seconds)


def made_up(
    model: nn.Module,
    x: Tensor,
    *,
    densities: tuple,
    block: Any,
    measure: bool,
    progress: Callable[..., None],
    channels_last: bool = False,
) -> PlanTable:
    """A table for the model's layers: break-even at 50%."""
    progress(0.5, "half")
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            kinds = ("csr", "bsr") if block else ("csr",)
            times = {kind: {density: timing(2 * density) for density in (*densities, 0.95)} for kind in kinds}
            rivals = {kind: dict.fromkeys(found, timing(1.0)) for kind, found in times.items()}
            shape = tuple(module.weight.shape)
            layers.append(
                LayerPlan(
                    name, type(module).__name__, shape, module.weight.numel(), 1, timing(1), timing(2), times, rivals
                )
            )
    threads = torch.get_num_threads()
    made_up.seen = {"x": x, "measure": measure, "threads": threads, "channels_last": channels_last}  # type: ignore[attr-defined]
    places = {"processor": "Some CPU", "isa": "avx512", "threads": "1"}
    step = 3.0 * len(layers) + 1.0
    return PlanTable(layers, densities, ("csr", "bsr") if block else ("csr",), block, step, measure, places)


def command_table() -> PlanTable:
    """What the command shows of LeNet."""
    model, size = command.network("lenet", None)
    return made_up(
        model, torch.randn(size), densities=(0.5, 0.2, 0.1, 0.05), block=None, measure=True, progress=lambda *_: None
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(command.sparse_nn, "plan", made_up)
    return made_up


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory with a module `my_nets_for_plan`, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    monkeypatch.delitem(__import__("sys").modules, "my_nets_for_plan", raising=False)
    (tmp_path / "my_nets_for_plan.py").write_text(BUILDER)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "size", "layers"),
    [
        (["lenet"], (60, 784), ["fc1", "fc2", "output"]),
        (["lenet", "--input", "7x1x28x28"], (7, 1, 28, 28), ["fc1", "fc2", "output"]),
        (["conv2", "--input", "4x3x16x16"], (4, 3, 16, 16), ["conv1", "conv2", "fc1", "fc2", "output"]),
    ],
)
def test_a_preset_is_planned(run: Run, fake: Any, words: list[str], size: tuple[int, ...], layers: list[str]) -> None:
    outcome = run("plan", *words)
    assert (outcome.code, outcome.err) == (0, "")
    assert tuple(fake.seen["x"].shape) == size
    for layer in layers:
        assert f"\n{layer} " in outcome.out
    assert "network, auto" in outcome.out
    assert "Some CPU, avx512, 1 threads" in outcome.out


def test_a_row_tells_where_the_layer_breaks_even_and_what_it_gains(run: Run, fake: Any) -> None:
    text = run("plan", "lenet").out
    (row,) = [line for line in text.splitlines() if line.startswith("fc1 ")]
    assert row.split() == [
        "fc1",
        "300x784",
        "235,200",
        "30%",
        "50%",
        "50%",
        "50%",
        "50%",
        "50%",
        "1.00x",
        "2.50x",
        "5.00x",
        "10.00x",
    ]


def test_options_reach_the_planner(run: Run, fake: Any) -> None:
    threads = torch.get_num_threads()
    text = run("plan", "lenet", "--density", "30%,.04", "--block", "4x1", "--threads", 1, "--predict").out
    assert "bsr 4x1: " in text
    assert "30%" in text
    assert "4%" in text
    assert (fake.seen["measure"], fake.seen["threads"], fake.seen["channels_last"]) == (False, 1, False)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("name", "batch"), [("resnet-warmup", 128), ("vgg", 64), ("conv2-dropout", 60)])
def test_a_network_of_the_paper_has_its_batch_and_images(name: str, batch: int) -> None:
    model, size = command.network(name, None)
    assert size == (batch, 3, 32, 32)
    assert model[0].in_channels == 3


def test_channels_last_reaches_the_planner_with_images_that_lie_so(
    run: Run, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "parse_device", lambda text: torch.device("meta"))  # anything but a CPU
    outcome = run("plan", "conv2", "--device", "cuda", "--block", "8x8", "--channels-last")
    assert (outcome.code, outcome.err) == (0, "")
    assert fake.seen["channels_last"]
    assert fake.seen["x"].is_contiguous(memory_format=torch.channels_last)


def test_a_function_of_the_current_directory_builds_the_network(run: Run, fake: Any, here: Path) -> None:
    for name in ("build", "model"):
        outcome = run("plan", f"my_nets_for_plan:{name}", "--input", "3x6")
        assert (outcome.code, outcome.err) == (0, "")
        assert "5x6" in outcome.out


def test_all_figures_are_written_as_json(run: Run, fake: Any, tmp_path: Path) -> None:
    assert run("plan", "lenet", "--json", tmp_path / "plan.json").code == 0
    values = json.loads((tmp_path / "plan.json").read_text())
    assert (values["model"], values["input"]) == ("lenet", [60, 784])
    assert values["layers"][0]["break_even_density"]["csr"]["training"] == 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lenot"], "MODEL: expected one of lenet, conv2"),
        (["net.pt2"], "modules in files are not loaded"),
        (["my_nets_for_plan:build"], "--input: expected the shape of an input"),
        (["no_such_module:build", "--input", "2x6"], "cannot find no_such_module:build"),
        (["my_nets_for_plan:nothing", "--input", "2x6"], "cannot find my_nets_for_plan:nothing"),
        (["my_nets_for_plan:broken", "--input", "2x6"], "broken() raised RuntimeError: no luck"),
        (["my_nets_for_plan:number", "--input", "2x6"], "expected a torch.nn.Module"),
        (["my_nets_for_plan:__name__", "--input", "2x6"], "expected a function"),
        (["my_nets_for_plan:build", "--input", "2x7"], "sample_input: expected an input that the model takes"),
        (["torch.nn:Identity", "--input", "2x7"], "none that can become sparse"),
        (["lenet", "--input", "60"], "--input: expected sizes joined by x"),
        (["lenet", "--input", "0x784"], "--input: expected sizes joined by x"),
        (["conv2", "--input", "60x784"], "--input: expected NxCxHxW for conv2"),
        (["conv2", "--input", "60x3x1x1"], "images of at least"),
        (["lenet", "--density", "0"], "--density: expected shares in (0, 1)"),
        (["lenet", "--density", "half"], "--density: expected shares in (0, 1)"),
        (["lenet", "--block", "4"], "--block: expected rows x columns"),
        (["lenet", "--threads", "0"], "--threads"),
        (["lenet", "--json", "no_such_directory/plan.json"], "--json: expected a file in a directory that exists"),
    ],
)
def test_a_mistake_is_one_line_and_exit_1(run: Run, here: Path, words: list[str], said: str) -> None:
    outcome = run("plan", *words)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("lth-sparse: error: ")
    assert outcome.err.count("\n") == 1
    assert said in outcome.err


def test_a_module_that_cannot_be_imported_is_named(run: Run, here: Path) -> None:
    (here / "my_broken_for_plan.py").write_text("1 / 0")
    outcome = run("plan", "my_broken_for_plan:build", "--input", "2x6")
    assert (
        outcome.err
        == "lth-sparse: error: MODEL: importing my_broken_for_plan raised ZeroDivisionError: division by zero\n"
    )


@pytest.mark.parametrize(("width", "tables"), [(160, 1), (80, 2)])
def test_a_narrow_terminal_gets_two_tables_and_loses_no_figure(width: int, tables: int) -> None:
    out = io.StringIO()
    command.show(Console(file=out, force_terminal=True, width=width, color_system=None), command_table())
    text = out.getvalue()
    assert text.count("fc1") == tables
    assert "10.00x" in text
    assert "…" not in text
    assert max(map(len, text.partition("Dense step")[0].splitlines())) <= width


def test_the_bar_shows_what_is_left() -> None:
    out = io.StringIO()
    with command.Bar(Console(file=out, force_terminal=True, width=100)) as bar:
        bar.started -= 10.0
        bar.update(0.0, "network")
        bar.update(0.5, "fc1")
    assert "measuring fc1" in out.getvalue()
    assert "about 10 s left" in out.getvalue()


def test_help_names_every_option(run: Run) -> None:
    text = run("plan", "--help").out
    for option in ("input", "density", "block", "threads", "predict", "device", "channels-last", "json"):
        assert f"--{option}" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "tpu"], "--device: expected cpu, cuda, or cuda:N, got tpu"),
        (["--channels-last"], "--channels-last: expected --block beside it: the order of blocks, got none"),
        (
            ["--channels-last", "--block", "8x8"],
            "--channels-last: expected --device cuda beside it: CPUs have no kernels for such blocks, got cpu",
        ),
        (["--device", "cuda"], "--device: expected cpu, since torch finds no CUDA device here, got cuda"),
        (["--device", "cuda:7"], "--device: expected cpu, since torch finds no CUDA device here, got cuda:7"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(
    words: list[str], said: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = run("plan", "lenet", *words)
    assert (outcome.code, outcome.err) == (1, f"lth-sparse: error: {said}\n")


def test_a_device_is_taken_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert command.parse_device("cuda") == torch.device("cuda")
    assert command.parse_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ArgumentError, match=r"expected one of the 2 CUDA device\(s\) here, got cuda:2"):
        command.parse_device("cuda:2")


def test_the_cost_model_is_not_asked_for_a_gpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "parse_device", lambda text: torch.device("cuda"))
    outcome = run("plan", "lenet", "--device", "cuda", "--predict")
    assert outcome.code == 1
    assert "--predict: expected --device cpu beside it: the cost model is for CPUs, got cuda" in outcome.err


@pytest.mark.gpu
def test_a_network_is_planned_on_a_gpu(run: Run) -> None:
    outcome = run("plan", "lenet", "--device", "cuda", "--block", "16x16", "--density", "0.2")
    assert outcome.code == 0, outcome.err
    assert "bsr 16x16" in outcome.out

"""`lth-sparse export`: the files it writes, what it checks about them, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lth_sparse as ls
from lth_sparse.engine import Ticket
from lth_sparse.integrations import export_program
from lth_sparse.paper import build_model

Run = Callable[..., Any]


def trained(ticket: Path) -> nn.Module:
    """The dense network with the ticket's trained weights."""
    model = build_model("lenet", (1, 28, 28))
    model.load_state_dict(Ticket.load(ticket).state_dict("trained"), strict=True)
    return model.eval()


def images(n: int) -> torch.Tensor:
    return torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(n))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:google.*")
def test_onnx_of_any_batch_computes_what_the_ticket_computes(run: Run, ticket: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "m.onnx"
    options = ("--model", "lenet", "--input", "1x1x28x28", "--dynamic-batch", "--sparse", "-o", path)
    outcome = run("export", ticket, "--to", "onnx", *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"by onnxruntime {runtime.__version__} on 2x1x28x28 and 1x1x28x28: largest difference" in outcome.out
    assert f"{path.stat().st_size:,} on disk" in outcome.out
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": images(5).numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), trained(ticket)(images(5)), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11, when it loads any program
def test_a_sparse_program_has_the_librarys_operators(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(2)
    state = build_model("lenet", (1, 28, 28), seed=3).state_dict()
    masks = {name: torch.rand(tensor.shape) < 0.1 for name, tensor in state.items() if tensor.dim() > 1}
    Ticket.of(masks, state, state).save(tmp_path / "sparse.safetensors")
    path = tmp_path / "m.pt2"
    options = ("--to", "pt2", "--sparse", "--model", "lenet", "-o", path)
    outcome = run("export", tmp_path / "sparse.safetensors", *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert "by torch on 1x784: largest difference" in outcome.out
    program = torch.export.load(path)
    assert "lth_sparse.linear_csr.default" in {str(node.target) for node in program.graph.nodes}


def test_safetensors_loads_strictly_in_the_dtype_asked_for(run: Run, ticket: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    outcome = run("export", ticket, "--to", "safetensors", "--dtype", "bf16", "-o", path)
    assert (outcome.code, outcome.err) == (0, "")
    state = load_file(path)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    model = build_model("lenet", (1, 28, 28)).to(torch.bfloat16)
    model.load_state_dict(state, strict=True)
    right = trained(ticket).to(torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, right[name]) for name, tensor in state.items())


@pytest.mark.parametrize("weights", ["trained", "initial"])
def test_a_ticket_file_with_one_set_of_weights(run: Run, ticket: Path, tmp_path: Path, weights: str) -> None:
    path = tmp_path / "t.safetensors"
    outcome = run("export", ticket, "--to", "ticket", "--weights", weights, "--dtype", "fp16", "-o", path)
    assert (outcome.code, outcome.err) == (0, "")
    assert Ticket.load(path) == Ticket.load(ticket).reduced(weights, torch.float16)
    assert path.stat().st_size < ticket.stat().st_size / 2


def test_a_program_that_computes_something_else_is_an_error(
    run: Run, ticket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: nn.Module, *rest: Any, **options: Any) -> Any:
        ls.densify_(model)
        with torch.no_grad():
            model.get_parameter("output.bias").add_(0.1)
        return export_program(model, *rest, **options)

    monkeypatch.setattr("lth_sparse.cli.exporting.export_program", broken)
    monkeypatch.setattr("lth_sparse.cli.exporting.inference_copy", lambda model, dtype: trained(ticket))
    outcome = run("export", ticket, "--to", "pt2", "--model", "lenet", "-o", tmp_path / "m.pt2")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "torch computes other outputs than the ticket, by up to 0.1" in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "tflite", "-o", "m.onnx"], "--to: expected one of onnx, pt2, safetensors, ticket, got tflite"),
        (["--weights", "best", "-o", "m.onnx"], "--weights: expected one of trained, initial"),
        (["--dtype", "int8", "-o", "m.onnx"], "--dtype: expected one of fp32, fp16, bf16"),
        (["-o", "m.pt2"], "--output: expected a file name that ends in .onnx with --to onnx"),
        (["-o", "m.onnx"], "--model: expected the network to put the ticket into, with --to onnx, got none"),
        (["--to", "ticket", "--sparse", "-o", "t.safetensors"], "--sparse: expected --to onnx or pt2 beside it"),
        (["--to", "ticket", "--model", "lenet", "-o", "t.safetensors"], "--model: expected --to onnx or pt2"),
        (["--model", "conv2", "-o", "m.onnx"], "model: expected the architecture that the ticket was found in"),
        (["--model", "lenet", "--input", "x", "-o", "m.onnx"], "--input: expected sizes joined by x"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, ticket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("export", ticket, *words)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert said in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_the_ticket_itself_is_not_overwritten(run: Run, ticket: Path) -> None:
    before = ticket.read_bytes()
    outcome = run("export", ticket, "--to", "ticket", "-o", ticket)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert ticket.read_bytes() == before

"""Exported programs: loaded in another process, with and without the library, on its kernels and not its reference."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lth_sparse as ls
from lth_sparse.errors import ArgumentError, RunError
from lth_sparse.integrations import export_program, inference_copy

Images = Callable[..., Tensor]

#: Loads the programs after argv[3], runs each on all inputs of argv[1], writes the outputs to argv[2]. With the library
#: its reference is out of order, so that whatever computes is a kernel.
RUN = """
import sys
import torch
from safetensors.torch import load_file, save_file
inputs, outputs, how, *programs = sys.argv[1:]
torch.set_num_threads(1)
if how == "with":
    import lth_sparse
    from lth_sparse.ops import reference
    reference.linear = reference.conv2d = None
found = {}
for program in programs:
    module = torch.export.load(program).module()
    with torch.no_grad():
        found.update({f"{program}/{name}": module(x) for name, x in load_file(inputs).items()})
    save_file(found, outputs)
"""


def run_elsewhere(
    folder: Path, inputs: dict[str, Tensor], how: str, names: list[str]
) -> tuple[subprocess.CompletedProcess[str], dict[str, Tensor]]:
    """The finished process, and the outputs of the programs that it could run."""
    save_file(inputs, folder / "inputs")
    files = ["inputs", "outputs", how, *names]
    result = subprocess.run(
        [sys.executable, "-c", RUN, *files], capture_output=True, text=True, check=False, cwd=folder
    )
    return result, load_file(folder / "outputs")


def test_sparse_programs_run_on_the_kernels_in_another_process(sparse_net: Any, images: Images, tmp_path: Path) -> None:
    inputs = {str(n): images(n) for n in (1, 2, 7)}
    right = {}
    for layout in ("csr", "bsr"):
        model = sparse_net(layout)
        program = export_program(model, images(2), tmp_path / f"{layout}.pt2", sparse=True, dynamic_batch=True)
        targets = {str(node.target) for node in program.graph.nodes}
        assert {f"lth_sparse.linear_{layout}.default", f"lth_sparse.conv2d_{layout}.default"} <= targets
        assert model.training  # a copy was exported
        with torch.no_grad():
            right.update({f"{layout}.pt2/{name}": model.eval()(x) for name, x in inputs.items()})
    result, found = run_elsewhere(tmp_path, inputs, "with", ["csr.pt2", "bsr.pt2"])
    assert result.returncode == 0, result.stderr
    assert set(found) == set(right)
    for name, y in right.items():
        torch.testing.assert_close(found[name], y, atol=1e-6, rtol=1e-6)


def test_without_the_library_a_dense_program_runs_and_of_a_sparse_one_torch_says_what_to_import(
    sparse_net: Any, images: Images, tmp_path: Path
) -> None:
    model, x = sparse_net("csr"), images(5)
    export_program(model, images(2), tmp_path / "dense.pt2", dynamic_batch=True)
    export_program(model, images(2), tmp_path / "sparse.pt2", sparse=True)
    result, found = run_elsewhere(tmp_path, {"5": x}, "without", ["dense.pt2", "sparse.pt2"])
    with torch.no_grad():
        torch.testing.assert_close(found["dense.pt2/5"], model.eval()(x), atol=1e-5, rtol=1e-5)
    assert result.returncode != 0
    assert set(found) == {"dense.pt2/5"}
    assert "failed to resolve torch.ops.lth_sparse" in result.stderr
    assert "import the custom op to register it" in result.stderr


@pytest.mark.parametrize("sparse", [False, True])
def test_a_program_in_bfloat16_computes_in_it(sparse_net: Any, images: Images, sparse: bool) -> None:
    model = sparse_net("csr")
    x = images(3, torch.bfloat16)
    y = export_program(model, x, sparse=sparse, dtype=torch.bfloat16).module()(x)
    assert y.dtype == torch.bfloat16
    assert not y.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(y.float(), model.eval()(images(3)), atol=0.05, rtol=0.05)


def test_fused_and_feature_major_models_export_as_plain_ones(sparse_net: Any, images: Images) -> None:
    model = sparse_net("csr").eval()
    with torch.no_grad():
        expected = model(images(3))
        ls.nn.fuse_activations_(model)
        ls.nn.feature_major_(model)
        program = export_program(model, images(2), sparse=True, dynamic_batch=True).module()
        torch.testing.assert_close(program(images(3)), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(model(images(3)), expected, atol=1e-6, rtol=1e-6)  # as it was


def test_a_single_sparse_layer_exports(tmp_path: Path) -> None:
    layer = ls.nn.SparseLinear.from_dense(torch.nn.Linear(6, 4), torch.rand(4, 6) < 0.5)
    x = torch.randn(3, 6)
    with torch.no_grad():
        for sparse in (False, True):
            found = export_program(layer, x, sparse=sparse).module()(x)
            torch.testing.assert_close(found, layer(x), atol=1e-6, rtol=1e-6)


def test_the_file_names_no_source_of_this_machine(sparse_net: Any, images: Images, tmp_path: Path) -> None:
    export_program(sparse_net("csr"), images(2), tmp_path / "m.pt2", sparse=True)
    assert b".py" not in (tmp_path / "m.pt2").read_bytes()


def test_what_cannot_be_exported_is_refused(sparse_net: Any, images: Images, tmp_path: Path) -> None:
    model = sparse_net("csr")
    with pytest.raises(ArgumentError, match=r"path: expected a file name that ends in \.pt2"):
        export_program(model, images(2), tmp_path / "m.onnx")
    with pytest.raises(ArgumentError, match="model: expected one with sparse layers, for a sparse export, got none"):
        export_program(inference_copy(model), images(2), sparse=True)
    with pytest.raises(ArgumentError, match="sample_input: expected an input that the model takes, but it raised"):
        export_program(model, torch.randn(2, 7))
    with pytest.raises(ArgumentError, match="for a dynamic batch, got 1"):
        export_program(model, images(1), dynamic_batch=True)
    with pytest.raises(RunError, match="cannot write"):
        export_program(model, images(2), tmp_path / "no" / "m.pt2")
    assert list(tmp_path.iterdir()) == []


AOT = """
import sys
import torch
if sys.argv[3] == "with":
    import lth_sparse
run = torch._inductor.aoti_load_package(sys.argv[1])
from safetensors.torch import load_file
x, y = load_file(sys.argv[2]).values()
torch.testing.assert_close(run(x), y, atol=1e-6, rtol=1e-6)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_package_runs_where_the_library_is_imported(tmp_path: Path) -> None:
    """AOTInductor: torch compiles all but the sparse operators, which it calls through Python."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU()).eval()
    ls.sparsify_(model, {"0.weight": torch.rand(4, 6) < 0.5}, layout="csr")
    x = torch.randn(3, 6)
    program = export_program(model, x, sparse=True)
    options = {"aot_inductor.compile_wrapper_opt_level": "O0"}  # g++ is what takes the time
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "m.pt2"), inductor_configs=options
    )
    with torch.no_grad():
        save_file({"x": x, "y": model(x)}, tmp_path / "data")
    for how, code in (("with", 0), ("without", 1)):
        command = [sys.executable, "-c", AOT, package, str(tmp_path / "data"), how]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == code, result.stderr
    assert "Could not find schema for lth_sparse::" in result.stderr

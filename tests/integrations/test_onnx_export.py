"""ONNX files: what onnxruntime and onnx's reference evaluator compute from them, their size, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.errors import ArgumentError, ArgumentTypeError, BackendError, RunError
from lth_sparse.integrations import export_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
# Protocol buffers warn of their own C types.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:google.*")

Images = Callable[..., Tensor]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3}


def run(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def right(model: nn.Module, x: Tensor) -> Tensor:
    """What the model computes in eval mode, in double precision."""
    with torch.no_grad():
        return ls.densify_(copy.deepcopy(model)).double().eval()(x.double())


@pytest.mark.parametrize("layout", ["csr", "bsr"])
def test_onnxruntime_computes_what_the_sparse_model_computes(
    sparse_net: Any, images: Images, tmp_path: Path, layout: str
) -> None:
    model = sparse_net(layout)
    export_onnx(model, images(4), tmp_path / "m.onnx")
    x = images(4)
    torch.testing.assert_close(run(tmp_path / "m.onnx", x).double(), right(model, x), atol=1e-5, rtol=1e-5)
    assert model.training
    assert len(list(ls.nn.sparse_modules(model))) == 3  # a copy was exported


@pytest.mark.parametrize(("dtype", "sparse"), [(torch.float32, True), (torch.float16, False)])
def test_a_dynamic_batch_takes_any_size(
    sparse_net: Any, images: Images, tmp_path: Path, dtype: torch.dtype, sparse: bool
) -> None:
    model = sparse_net("csr")
    path = tmp_path / "m.onnx"
    export_onnx(model, images(2, dtype), path, dynamic_batch=True, dtype=dtype, sparse=sparse)
    for n in (1, 2, 7):
        found = run(path, images(n, dtype))
        assert (found.dtype, found.shape) == (dtype, (n, 5))
        bound = TOLERANCE[dtype]
        torch.testing.assert_close(found.double(), right(model, images(n)), atol=bound, rtol=bound)


def test_the_reference_evaluator_agrees(sparse_net: Any, images: Images, tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    model, x = sparse_net("csr"), images(3)
    proto = export_onnx(model, x, tmp_path / "m.onnx")
    (found,) = ReferenceEvaluator(proto).run(None, {"input": x.numpy()})
    np.testing.assert_allclose(found, right(model, x).numpy(), atol=1e-5, rtol=1e-5)


def test_pruned_weights_are_exact_zeros_and_live_ones_exact(sparse_net: Any, images: Images, tmp_path: Path) -> None:
    model = sparse_net("csr")
    proto = export_onnx(model, images(2), tmp_path / "m.onnx")
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in proto.graph.initializer}
    for name in ("5.weight", "8.weight"):  # the convolution's has its BatchNorm folded in
        assert np.array_equal(arrays[name], ls.dense_state_dict(model)[name].numpy())
    assert np.array_equal(arrays["0.weight"] != 0, ls.nn.masks_of(model)["0.weight"].numpy())


def test_a_sparse_file_shrinks_with_the_density(images: Images, tmp_path: Path) -> None:
    """12 bytes for each live weight, and never more than the dense file."""
    model = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 80))
    ls.sparsify_(model, {"0.weight": torch.rand(100, 200) < 0.05, "1.weight": torch.rand(80, 100) < 0.6})
    x = torch.randn(3, 200)
    export_onnx(model, x, tmp_path / "dense.onnx")
    proto = export_onnx(model, x, tmp_path / "sparse.onnx", sparse=True)
    assert [item.values.name for item in proto.graph.sparse_initializer] == ["0.weight"]
    saved = (tmp_path / "dense.onnx").stat().st_size - (tmp_path / "sparse.onnx").stat().st_size
    live = int(ls.nn.masks_of(model)["0.weight"].sum())
    assert saved == pytest.approx(4 * 20_000 - 12 * live, abs=200)
    torch.testing.assert_close(run(tmp_path / "sparse.onnx", x).double(), right(model, x), atol=1e-5, rtol=1e-5)


def test_keyword_arguments_name_the_inputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.fc(left) - right

    model = Two()
    ls.sparsify_(model, {"fc.weight": torch.rand(3, 4) < 0.5})
    inputs = {"left": torch.randn(3, 4), "right": torch.randn(3, 3)}
    export_onnx(model, inputs, tmp_path / "m.onnx", dynamic_batch=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    more = {"left": torch.randn(6, 4), "right": torch.randn(6, 3)}
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in more.items()})
    torch.testing.assert_close(torch.from_numpy(found), model(**more).detach(), atol=1e-5, rtol=1e-5)


def test_fused_and_feature_major_models_export_as_plain_ones(sparse_net: Any, images: Images, tmp_path: Path) -> None:
    model = sparse_net("csr").eval()
    expected = right(model, images(3))
    assert ls.nn.fuse_activations_(model) == 1
    ls.nn.feature_major_(model)
    export_onnx(model, images(2), tmp_path / "m.onnx", dynamic_batch=True)
    torch.testing.assert_close(run(tmp_path / "m.onnx", images(3)).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(images(3)).double(), expected, atol=1e-5, rtol=1e-5)  # as it was
    assert any(module.activation == "relu" for _, module in ls.nn.sparse_modules(model))


def test_the_file_names_no_path_of_this_machine(sparse_net: Any, images: Images, tmp_path: Path) -> None:
    export_onnx(sparse_net("csr"), images(2), tmp_path / "m.onnx")
    assert b".py" not in (tmp_path / "m.onnx").read_bytes()


def test_what_cannot_be_exported_is_refused(sparse_net: Any, images: Images, tmp_path: Path) -> None:
    model, path = sparse_net("csr"), tmp_path / "m.onnx"
    with pytest.raises(ArgumentError, match=r"path: expected a file name that ends in \.onnx"):
        export_onnx(model, images(2), tmp_path / "m.pt2")
    with pytest.raises(ArgumentError, match=r"dtype: expected float32, float64 or float16.*, got torch\.bfloat16"):
        export_onnx(model, images(2), path, dtype=torch.bfloat16)
    with pytest.raises(ArgumentError, match=r"dtype: expected None or a floating-point torch\.dtype, got torch\.int8"):
        export_onnx(model, images(2), path, dtype=torch.int8)
    with pytest.raises(ArgumentError, match="sample_input: expected an input that the model takes, but it raised"):
        export_onnx(model, torch.randn(2, 7), path)
    with pytest.raises(ArgumentError, match=r"batch size, 2 or more, for a dynamic batch, got 1"):
        export_onnx(model, images(1), path, dynamic_batch=True)
    with pytest.raises(ArgumentTypeError, match="sample_input: expected a tensor"):
        export_onnx(model, [images(2)], path)
    with pytest.raises(ArgumentTypeError, match=r"model: expected a torch\.nn\.Module, got dict"):
        export_onnx({}, images(2), path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_one_clear_error(sparse_net: Any, images: Images, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        export_onnx(sparse_net("csr"), images(2), tmp_path / "no" / "m.onnx")


def test_without_onnx_the_message_says_what_to_install(
    sparse_net: Any, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(BackendError, match=r"pip install 'lth_sparse\[onnx\]'"):
        export_onnx(sparse_net("csr"), images(2), tmp_path / "m.onnx")

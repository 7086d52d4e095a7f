"""Sparse models under torch.compile, torch.export and DistributedDataParallel."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lth_sparse as ls

#: Dynamo itself instantiates every autograd.Function that it traces, and torch warns about that.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

OPTIONS: dict[str, dict[str, Any]] = {
    "csr": {"layout": "csr"},
    "bsr": {"layout": "bsr", "block": (2, 2), "cover": "zeros"},
    "reordered": {"layout": "reordered", "block": (2, 2), "cover": "zeros"},
    "dense": {"layout": "dense"},
}


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS)
def sparse(request: Any, net: nn.Module, masks_for: Any) -> nn.Module:
    ls.sparsify_(net, masks_for(net), **request.param)
    return net.eval()


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def test_a_model_compiles_as_one_graph_with_the_same_result_and_gradients(sparse: nn.Module, images: Tensor) -> None:
    right = sparse(images)
    right.sum().backward()
    grads = [parameter.grad for parameter in sparse.parameters()]
    sparse.zero_grad()
    y = torch.compile(sparse, fullgraph=True, backend="aot_eager")(images)
    y.sum().backward()
    torch.testing.assert_close(y, right)
    for parameter, grad in zip(sparse.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_a_compiled_model_notices_new_index_buffers(sparse: nn.Module, images: Tensor) -> None:
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    right = compiled(images)
    for _, module in ls.nn.sparse_modules(sparse):
        module._buffers.update({name: tensor.clone() for name, tensor in module.named_buffers()})
    torch.testing.assert_close(compiled(images), right)


@pytest.mark.parametrize("strict", [False, True])
def test_a_model_exports_with_its_index_tensors_as_buffers(sparse: nn.Module, images: Tensor, strict: bool) -> None:
    right = sparse(images)
    program = torch.export.export(sparse, (images,), strict=strict)
    torch.testing.assert_close(program.module()(images), right)
    found = [pair for name, module in ls.nn.sparse_modules(sparse) for pair in module.named_buffers(prefix=name)]
    kept = ("_order", "_place")  # empty where a reordered axis keeps its order, and then read by no operator
    buffers = {name for name, tensor in found if tensor.numel() or not name.endswith(kept)}
    assert buffers <= set(program.graph_signature.buffers)
    torch.testing.assert_close(sparse(images), right)  # tracing left nothing behind


def test_a_model_trains_under_distributed_data_parallel(
    sparse: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform == "linux":
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # rather than ask the network for this machine's own name
    right = sparse(images)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(sparse)
        y = parallel(images)
        y.sum().backward()
        found = y.detach()
        # Whoever lets go of the process group last joins its threads. DistributedDataParallel would do so with the GIL
        # held, which a thread may still need to end its work: a deadlock, rarely. destroy_process_group releases it.
        del parallel, y
        gc.collect()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, right)
    assert all(parameter.grad is not None for parameter in sparse.parameters())

"""The candidates of a comparison: for one case and density, each way to compute the layer and its gradients.

A provider returns `{mode: function}`. "forward" is one call without gradients, as in inference; "step" is one call with
the gradients of input, weight and bias, as in training. What happens once per training run (conversion, transposition
of the index) is done beforehand and not timed; what a training step repeats is timed, Python included.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lth_sparse as ls
from benchmarks.cases import Case

Modes = dict[str, Callable[[], object]]

DENSE = ("dense", "dense channels_last")
OURS = "lth_sparse"


def _modes(call: Callable[[], Tensor], inputs: list[Tensor]) -> Modes:
    """Both modes of a differentiable call; the incoming gradient has the strides that the call's output has."""
    gradient = torch.randn_like(call().detach())

    def forward() -> object:
        with torch.no_grad():
            return call()

    def step() -> object:
        return torch.autograd.grad(call(), inputs, gradient)

    return {"forward": forward, "step": step}


def _operands(case: Case, module: nn.Module) -> tuple[Tensor, list[Tensor]]:
    x = case.input().requires_grad_()
    return x, [x, *module.parameters()]


def dense(case: Case, mask: Tensor) -> Modes:
    """torch's own layer: what a user has today."""
    module = case.module()
    x, inputs = _operands(case, module)
    return _modes(lambda: module(x), inputs)


def dense_channels_last(case: Case, mask: Tensor) -> Modes:
    """The same in the memory format that is faster for many convolutions."""
    module = case.module().to(memory_format=torch.channels_last)
    x = case.input().to(memory_format=torch.channels_last).requires_grad_()
    return _modes(lambda: module(x), [x, *module.parameters()])


def masked_dense(case: Case, mask: Tensor) -> Modes:
    """The weight is multiplied by its mask in each forward: how pruning is usually simulated."""
    module = case.module()
    x, inputs = _operands(case, module)
    keep = mask.float()
    if isinstance(module, nn.Linear):
        return _modes(lambda: F.linear(x, module.weight * keep, module.bias), inputs)
    stride, padding, groups = module.stride, module.padding, module.groups
    return _modes(
        lambda: F.conv2d(x, module.weight * keep, module.bias, stride, padding, groups=groups),  # type: ignore[arg-type]
        inputs,
    )


def torch_csr(case: Case, mask: Tensor) -> Modes:
    """torch's sparse CSR products, put together as well as they can be.

    `y^T = W x^T + b`, `dx^T = W^T dy^T` with an index made once, and `dW` by `sampled_addmm` at the live weights alone.
    torch's own autograd for a CSR weight makes a dense gradient instead and is several times slower.
    """
    module = case.module()
    x, bias = case.input(), module.bias.detach()[:, None]
    gradient = torch.randn(case.batch, case.weight[0])

    def csr(index: Tensor, values: Tensor) -> Tensor:
        # int32 is what MKL takes; with int64 torch converts the index in each call.
        crow, col = index.crow_indices().int(), index.col_indices().int()
        return torch.sparse_csr_tensor(crow, col, values, index.shape, check_invariants=False)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
        # Numbered from 1, since a dense tensor made sparse loses its zeros.
        numbers = torch.zeros(case.weight, dtype=torch.int64)
        numbers[mask] = torch.arange(1, int(mask.sum()) + 1)
        index, transposed_index = numbers.to_sparse_csr(), numbers.t().to_sparse_csr()
        weight = csr(index, module.weight.detach()[mask])
        zeros = csr(index, torch.zeros(index.values().shape))
        transposition = transposed_index.values() - 1

    def forward() -> Tensor:
        return torch.addmm(bias, weight, x.t()).t()

    def step() -> object:
        y = forward()
        # The weights change in every step, and so does their transpose.
        transposed = csr(transposed_index, weight.values()[transposition])
        dx = (transposed @ gradient.t()).t()
        dweight = torch.sparse.sampled_addmm(zeros, gradient.t(), x, beta=0.0)
        return y, dx, dweight, gradient.sum(0)

    return {"forward": forward, "step": step}


def lth_sparse(case: Case, mask: Tensor) -> Modes:
    """This library's layer, in the layout that its CPU kernels serve."""
    module = case.module()
    kind = ls.nn.SparseLinear if case.op == "linear" else ls.nn.SparseConv2d
    sparse = kind.from_dense(module, mask, layout="csr")
    x = case.input().requires_grad_()
    return _modes(lambda: sparse(x), [x, *sparse.parameters()])


PROVIDERS: dict[str, dict[str, Callable[[Case, Tensor], Modes]]] = {
    "linear": {"dense": dense, "masked dense": masked_dense, "torch CSR": torch_csr, OURS: lth_sparse},
    "conv2d": {
        "dense": dense,
        "dense channels_last": dense_channels_last,
        "masked dense": masked_dense,
        OURS: lth_sparse,
    },
}

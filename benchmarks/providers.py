"""What is measured on a case: this library's layouts, and everything that a user could take instead.

A provider makes, from one problem (a case with its tensors) and one mask, a call for each mode that it has:

    forward       y = x W^T + b, without gradients
    forward+dx    y, and the gradient of x: what the layers below a frozen layer need
    step          y and the gradients of x, W and b, as in training

A call returns y ("forward") or the gradients (dx,) or (dx, dW, db), so that tests can compare them. What happens once
per training run (conversion, transposition of an index) is done beforehand and not timed; what each training step
repeats is timed, Python included. To add a peer, write its function and add one line to `PROVIDERS`.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, expected
from lth_sparse.nn import SparseConv2d, SparseLinear
from lth_sparse.ops import backend_of

from .cases import Block, Case
from .masked import Masked

MODES = ("forward", "forward+dx", "step")

Modes = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Problem:
    """The tensors that all candidates of a case share: weight, bias, input and the gradient of the output."""

    case: Case
    module: nn.Linear | nn.Conv2d
    x: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, case: Case, seed: int = 0) -> Problem:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module, x = case.module(), case.input()
            return cls(case, module, x, torch.randn_like(module(x).detach()))

    @property
    def weight(self) -> Tensor:
        return self.module.weight.detach()

    @property
    def bias(self) -> Tensor:
        assert self.module.bias is not None
        return self.module.bias.detach()

    def copy(self, memory_format: torch.memory_format = torch.contiguous_format) -> nn.Linear | nn.Conv2d:
        """The dense layer with parameters of its own."""
        return copy.deepcopy(self.module).to(memory_format=memory_format)  # type: ignore[call-overload]


def _modes(call: Callable[[Tensor], Tensor], problem: Problem, x: Tensor, parameters: Iterable[Tensor]) -> Modes:
    """The three modes of a differentiable call; the incoming gradient has the strides that the call's output has."""
    parameters = list(parameters)
    x = x.detach().clone().requires_grad_()
    gradient = torch.empty_like(call(x).detach()).copy_(problem.gradient)

    def forward() -> Tensor:
        with torch.no_grad():
            return call(x)

    def forward_dx() -> tuple[Tensor, ...]:
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            return torch.autograd.grad(call(x), [x], gradient)
        finally:
            for parameter in parameters:
                parameter.requires_grad_()

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(x), [x, *parameters], gradient)

    return {"forward": forward, "forward+dx": forward_dx, "step": step}


def dense(problem: Problem, mask: Tensor) -> Modes:
    """torch's own layer: what a user has today."""
    module = problem.copy()
    return _modes(module, problem, problem.x, module.parameters())


def dense_channels_last(problem: Problem, mask: Tensor) -> Modes:
    """The same in the memory format that is faster for many convolutions."""
    module = problem.copy(torch.channels_last)
    x = problem.x.to(memory_format=torch.channels_last)
    return _modes(module, problem, x, module.parameters())


def masked_dense(problem: Problem, mask: Tensor) -> Modes:
    """The weight is multiplied by its mask in each forward: how pruning is usually simulated."""
    module = Masked(problem.copy(), mask)
    return _modes(module, problem, problem.x, module.parameters())


def torch_csr(problem: Problem, mask: Tensor) -> Modes:
    """torch's sparse CSR products (MKL), put together as well as they can be.

    `y^T = W x^T + b`, `dx^T = W^T dy^T` with an index made once, and `dW` by `sampled_addmm` at the live weights alone.
    torch's own autograd for a CSR weight makes a dense gradient instead and is several times slower.
    """
    x, bias, gradient = problem.x, problem.bias[:, None], problem.gradient

    def csr(index: Tensor, values: Tensor) -> Tensor:
        # int32 is what MKL takes; with int64 torch converts the index in each call.
        crow, col = index.crow_indices().int(), index.col_indices().int()
        return torch.sparse_csr_tensor(crow, col, values, index.shape, check_invariants=False)

    with _no_sparse_warnings():
        # Numbered from 1, since a dense tensor made sparse loses its zeros.
        numbers = torch.zeros(mask.shape, dtype=torch.int64)
        numbers[mask] = torch.arange(1, int(mask.sum()) + 1)
        index, transposed_index = numbers.to_sparse_csr(), numbers.t().to_sparse_csr()
        weight = csr(index, problem.weight[mask])
        zeros = csr(index, torch.zeros(index.values().shape))
        transposition = transposed_index.values() - 1
        frozen = csr(transposed_index, weight.values()[transposition])

    def forward() -> Tensor:
        return torch.addmm(bias, weight, x.t()).t()

    def forward_dx() -> tuple[Tensor, ...]:
        forward()
        return ((frozen @ gradient.t()).t(),)

    def step() -> tuple[Tensor, ...]:
        forward()
        # The weights change in every step, and so does their transpose.
        transposed = csr(transposed_index, weight.values()[transposition])
        dx = (transposed @ gradient.t()).t()
        dweight = torch.sparse.sampled_addmm(zeros, gradient.t(), x, beta=0.0)
        return dx, dweight.values(), gradient.sum(0)

    return {"forward": forward, "forward+dx": forward_dx, "step": step}


def torch_bsr(problem: Problem, mask: Tensor) -> Modes:
    """torch's block-sparse product, `F.linear` with a BSR weight; it has no backward pass."""
    with _no_sparse_warnings():
        weight = (problem.weight * mask).to_sparse_bsr((16, 16))
    x, bias = problem.x, problem.bias

    def forward() -> Tensor:
        with torch.no_grad():
            return F.linear(x, weight, bias)

    return {"forward": forward}


def scipy_csr(problem: Problem, mask: Tensor) -> Modes:
    """scipy's `csr @ dense` on one thread, whatever torch uses; the input's gradient by the transpose in CSR too."""
    from scipy.sparse import csr_matrix

    weight = csr_matrix((problem.weight * mask).numpy())
    transposed = csr_matrix(weight.T)
    x, bias, gradient = problem.x.numpy(), problem.bias.numpy(), problem.gradient.numpy()

    def forward() -> Any:
        return (weight @ x.T).T + bias

    def forward_dx() -> tuple[Any, ...]:
        forward()
        return ((transposed @ gradient.T).T,)

    return {"forward": forward, "forward+dx": forward_dx}


def onnxruntime_dense(problem: Problem, mask: Tensor) -> Modes:
    """onnxruntime's dense layer, forward alone; its threads wait asleep, since others need the cores here."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    case, x = problem.case, problem.x.numpy()
    if case.op == "linear":
        node = helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)
    else:
        sides: Any = {"strides": [case.stride] * 2, "pads": [case.pad] * 4, "group": case.groups}
        node = helper.make_node("Conv", ["x", "weight", "bias"], ["y"], **sides)
    graph = helper.make_graph(
        [node],
        case.name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, problem.gradient.shape)],
        [numpy_helper.from_array(getattr(problem, name).numpy(), name) for name in ("weight", "bias")],
    )
    # An opset and a format that every onnxruntime of the last years reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {"forward": lambda: session.run(None, {"x": x})[0]}


def _sparse(layout: str, block: Block | None) -> Callable[[Problem, Tensor], Modes]:
    """This library's layer in one layout."""

    def make(problem: Problem, mask: Tensor) -> Modes:
        kind = SparseLinear if problem.case.op == "linear" else SparseConv2d
        module = kind.from_dense(problem.module, mask, layout=layout, block=block)
        return _modes(module, problem, problem.x, module.parameters())

    return make


@contextlib.contextmanager
def _no_sparse_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|BSR) tensor support|Sparse invariant checks")
        yield


@dataclass(frozen=True)
class Provider:
    """One line of a comparison.

    Attributes:
        make: (problem, mask) -> calls by mode.
        ops: the operators that it has.
        modes: the modes that it has.
        layout: of this library's layers, else None.
        block: its masks are of whole blocks.
        sparse: measured at every density; False for what multiplies all weights, whose time no density changes.
        needs: packages to import that lth_sparse does not depend on.
    """

    name: str
    make: Callable[[Problem, Tensor], Modes]
    ops: tuple[str, ...] = ("linear", "conv2d")
    modes: tuple[str, ...] = MODES
    layout: str | None = None
    block: Block | None = None
    sparse: bool = True
    needs: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        return self.layout is not None

    def refusal(self, case: Case) -> str | None:
        """Why a case cannot be measured although the operator fits; None when it can."""
        for package in self.needs:
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed"
        if self.layout is not None and backend_of(self.layout, "cpu", torch.float32, len(case.weight)) == "reference":
            return f"no CPU kernel for layout {self.layout} and {case.op}: the reference would run"
        if self.name == TORCH_BSR and any(size % 16 for size in case.weight):
            return "torch takes whole blocks only"
        return None

    def backend(self, case: Case) -> str:
        """What computes: "cpu-avx512" and the like for this library, else the peer's name."""
        if self.layout is None:
            return self.name
        return backend_of(self.layout, "cpu", torch.float32, len(case.weight))


DENSE = ("dense", "dense channels_last")
TORCH_BSR = "torch BSR 16x16"
LINEAR = ("linear",)

PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider("dense", dense, sparse=False),
        Provider("dense channels_last", dense_channels_last, ("conv2d",), sparse=False),
        Provider("masked dense", masked_dense, sparse=False),
        Provider(
            "onnxruntime dense", onnxruntime_dense, modes=("forward",), sparse=False, needs=("onnxruntime", "onnx")
        ),
        Provider("torch CSR", torch_csr, LINEAR),
        Provider("scipy CSR", scipy_csr, LINEAR, ("forward", "forward+dx")),
        Provider(TORCH_BSR, torch_bsr, LINEAR, ("forward",), block=(16, 16)),
        Provider("lth_sparse csr", _sparse("csr", None), layout="csr"),
        Provider("lth_sparse bsr-4x1", _sparse("bsr", (4, 1)), layout="bsr", block=(4, 1)),
        Provider("lth_sparse bsr-16x16", _sparse("bsr", (16, 16)), layout="bsr", block=(16, 16)),
    )
}

#: Names of this library's layouts, as `--layouts` takes them, and the names of the peers.
LAYOUTS = tuple(name.removeprefix("lth_sparse ") for name, provider in PROVIDERS.items() if provider.ours)
PEERS = tuple(name for name, provider in PROVIDERS.items() if not provider.ours and name not in DENSE)


def chosen(layouts: Iterable[str] = LAYOUTS, peers: Iterable[str] = PEERS) -> list[Provider]:
    """The dense layers and those named, in the registry's order; ArgumentError for a name that is none."""
    layouts, peers = tuple(layouts), tuple(peers)
    for argument, names, known in (("layouts", layouts, LAYOUTS), ("peers", peers, PEERS)):
        if unknown := [name for name in names if name not in known]:
            raise ArgumentError(expected(argument, f"some of {', '.join(known)}", ", ".join(unknown)))
    wanted = {*DENSE, *peers, *(f"lth_sparse {name}" for name in layouts)}
    return [provider for name, provider in PROVIDERS.items() if name in wanted]

"""Whole training steps through the CUDA operators: launched by test_training.py, see kernel_cases.py.

Interpreted, the operators of ``ops/cuda.py`` take the place of those of the CPU, so that layers, autograd and
optimisers above them are what a user of a GPU runs. A model trained so is compared step for step with the masked
dense model. On a device nothing is replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import DEVICE, INTERPRETED, SMALL
from kernel_cases import patched_interpreter as patched_interpreter  # every case uses this fixture
from torch import Tensor, nn
from torch.optim import Optimizer

import lth_sparse as ls
from lth_sparse.ops import cuda, cuda_conv, library
from lth_sparse.ops.backend import TRITON_DTYPES, kernel_or_reference

KERNELS = {
    "linear_bsr": cuda._linear,
    "linear_bsr_backward": cuda._linear_backward,
    "conv2d_bsr": cuda_conv._conv2d,
    "conv2d_bsr_backward": cuda_conv._conv2d_backward,
}
OPTIMISERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}
STEPS = 2


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Calls of each operator's kernel, which take the place of the CPU's where Triton is interpreted."""
    counted = dict.fromkeys(KERNELS, 0)
    if not INTERPRETED:
        return counted
    monkeypatch.setattr(cuda, "_device", lambda index: SMALL)

    def counting(name: str, kernel: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object) -> object:
            counted[name] += 1
            return kernel(*args)

        return run

    for name, kernel in KERNELS.items():
        implementation = kernel_or_reference(name, counting(name, kernel), TRITON_DTYPES)
        monkeypatch.setattr(library._OPERATORS[name], "cpu", implementation)
    return counted


def network(activation: nn.Module) -> nn.Sequential:
    """Odd sizes, a stride, groups and a norm, before which a bias would have the gradient 0 and Adam its noise."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), activation, nn.Conv2d(8, 10, 3, stride=2, groups=2, bias=False),
        nn.BatchNorm2d(10), activation, nn.Flatten(), nn.Linear(10 * 4, 21), activation, nn.Linear(21, 5, bias=False),
    )  # fmt: skip


def masks_for(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.rand(p.shape) < 0.3 for name, p in model.named_parameters() if p.dim() > 1}


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 3, 6, 6, device=DEVICE), torch.randint(5, (4,), device=DEVICE)) for _ in range(STEPS)]


def train(
    model: nn.Module, data: list[tuple[Tensor, Tensor]], make: Callable[..., Optimizer], masks: dict[str, Tensor]
) -> list[dict[str, Tensor]]:
    """The dense state after every step; ``masks`` holds a dense model to its mask."""
    optimiser, states = make(model.parameters()), []
    for x, target in data:
        optimiser.zero_grad()
        F.cross_entropy(model(x), target).backward()
        for name, mask in masks.items():
            model.get_parameter(name).grad.mul_(mask)  # type: ignore[union-attr]
        optimiser.step()
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).mul_(mask)
        states.append({name: tensor.detach().clone() for name, tensor in ls.dense_state_dict(model).items()})
    return states


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize(
    ("make", "activation"), [(OPTIMISERS["SGD"], nn.ReLU()), (OPTIMISERS["AdamW"], nn.GELU())], ids=["relu", "gelu"]
)
def test_every_step_is_that_of_the_masked_dense_model(
    make: Callable[..., Optimizer], activation: nn.Module, calls: dict[str, int]
) -> None:
    dense = network(activation).to(DEVICE)
    masks = {name: mask.to(DEVICE) for name, mask in masks_for(dense).items()}
    with torch.no_grad():
        for name, mask in masks.items():
            dense.get_parameter(name).mul_(mask)
    sparse = copy.deepcopy(dense)
    ls.sparsify_(sparse, masks, layout="bsr", block=(8, 4), cover="zeros")
    ls.nn.fuse_activations_(sparse)
    data = batches()
    right = train(dense, data, make, masks)
    for mine, theirs in zip(train(sparse, data, make, {}), right, strict=True):
        for name, truth in theirs.items():
            torch.testing.assert_close(mine[name], truth, rtol=2e-4, atol=2e-5)
    if INTERPRETED:
        assert set(calls.values()) == {2 * STEPS}
    sparse.eval(), dense.eval()
    with torch.no_grad():  # where kernels apply GELU themselves
        torch.testing.assert_close(sparse(data[0][0]), dense(data[0][0]), rtol=2e-4, atol=2e-5)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("format", ["feature_major", "channels_last"])
def test_a_step_in_other_memory_formats(format: str) -> None:
    dense = network(nn.ReLU()).to(DEVICE)
    masks = {name: mask.to(DEVICE) for name, mask in masks_for(dense).items()}
    ls.sparsify_(dense, masks, layout="bsr", block=(8, 4), cover="zeros")
    other, (x, target) = copy.deepcopy(dense), batches()[0]
    if format == "feature_major":
        ls.nn.feature_major_(other)
        given = x
    else:
        given = x.to(memory_format=torch.channels_last)
    for model, images in ((dense, x), (other, given)):
        F.cross_entropy(model(images), target).backward()
    for ours, right in zip(other.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, right.grad, rtol=2e-4, atol=2e-5)


@pytest.mark.usefixtures("seed")
def test_half_precision_values_train_in_half_precision() -> None:
    """model.half(): outputs and gradients are float16, near those of float32."""
    model = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 6)).to(DEVICE)
    masks = {name: mask.to(DEVICE) for name, mask in masks_for(model).items()}
    ls.sparsify_(model, masks, layout="bsr", block=(4, 4), cover="zeros")
    half, x = copy.deepcopy(model).half(), torch.randn(7, 20, device=DEVICE)
    for each, given in ((model, x), (half, x.half())):
        each(given).float().square().mean().backward()
    for ours, right in zip(half.parameters(), model.parameters(), strict=True):
        assert ours.grad is not None
        assert ours.grad.dtype == torch.float16
        torch.testing.assert_close(ours.grad.float(), right.grad, rtol=2e-2, atol=2e-3)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, interpreting
@pytest.mark.usefixtures("seed")
def test_an_overflow_reaches_the_values_and_a_scaler_skips_the_step() -> None:
    model = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 6)).to(DEVICE)
    masks = {name: mask.to(DEVICE) for name, mask in masks_for(model).items()}
    ls.sparsify_(model, masks, layout="bsr", block=(4, 4), cover="zeros")
    before = [p.detach().clone() for p in model.parameters()]
    scaler = torch.amp.GradScaler(DEVICE, init_scale=float(2**100))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(7, 20, device=DEVICE)
    loss = (1e20 * model(x)).sum()  # 2^100 1e20 is more than float32 holds
    scaler.scale(loss).backward()
    assert all(p.grad is not None and not p.grad.isfinite().all() for p in model.parameters())
    scaler.step(optimiser)
    scaler.update()
    assert scaler.get_scale() == float(2**99)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))

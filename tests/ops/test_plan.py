"""The planner takes what measured fastest, and says what it did."""

from __future__ import annotations

import pytest
import torch

from lth_sparse.errors import ArgumentError
from lth_sparse.ops import plan, use_backend


def case(density: float, shape: tuple[int, ...] = (64, 48)) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape), torch.rand(shape) < density


def test_without_pruning_the_layer_stays_dense() -> None:
    weight, _ = case(1)
    choice = plan.choose_layout(weight, torch.ones_like(weight, dtype=torch.bool))
    assert (choice.kind, choice.note) == ("dense", "nothing pruned")


@pytest.mark.parametrize(
    ("density", "shape", "kind"),
    [
        (0.05, (64, 48), "csr"),
        (0.95, (64, 48), "dense"),
        (0.75, (64, 48), "csr"),  # few weights: the call decides, not the arithmetic
        (0.75, (512, 256), "dense"),
        (0.55, (512, 256), "csr"),
        (0.75, (16, 8, 3, 3), "dense"),
        (0.3, (16, 8, 3, 3), "csr"),
    ],
)
def test_without_a_sample_density_decides_and_no_speedup_is_claimed(
    density: float, shape: tuple[int, ...], kind: str
) -> None:
    choice = plan.choose_layout(*case(density, shape))
    assert choice.kind == kind
    assert choice.speedup_forward is None
    assert choice.speedup_backward is None


def test_where_no_kernel_exists_the_layer_stays_dense() -> None:
    weight, mask = case(0.05)
    assert plan.choose_layout(weight.bfloat16(), mask).kind == "dense"
    with use_backend("reference"):
        choice = plan.choose_layout(weight, mask)
    assert (choice.kind, choice.note) == ("dense", "no kernel for torch.float32 on cpu")


@pytest.mark.parametrize("fastest", ["csr", "dense"])
def test_the_measured_training_step_decides(fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = plan.Timing(1.0, 4.0), plan.Timing(2.0, 3.0)

    def measured(*_: object) -> dict[str, plan.Timing]:
        return {"torch": plan.Timing(3.0, 9.0), "csr": slow, "dense": slow} | {fastest: fast}

    monkeypatch.setattr(plan, "measure", measured)
    choice = plan.choose_layout(*case(0.5), sample=torch.randn(4, 48))
    assert choice.kind == fastest
    assert (choice.speedup_forward, choice.speedup_backward) == (1.5, 6.0)


@pytest.mark.parametrize(
    ("shape", "sample", "conv"),
    [
        ((64, 48), (8, 48), None),
        ((6, 4, 3), (2, 4, 10), {"padding": 1}),
        ((6, 4, 3, 3), (2, 4, 8, 8), {"padding": 1, "padding_mode": "reflect", "stride": 2}),
    ],
)
def test_measuring_times_every_candidate_and_leaves_gradients_and_random_state_alone(
    shape: tuple[int, ...], sample: tuple[int, ...], conv: dict | None
) -> None:
    weight, mask = case(0.2, shape)
    weight.requires_grad_()
    x, bias = torch.randn(sample, requires_grad=True), torch.randn(shape[0])
    state = torch.get_rng_state()
    layouts = {kind: plan.make_layout(kind, mask) for kind in ("csr", "dense")}
    with torch.no_grad():
        timings = plan.measure(weight, layouts, x, bias, conv)
    assert set(timings) == {"torch", "csr", "dense"}
    assert all(timing.forward > 0 and timing.training > 0 for timing in timings.values())
    assert weight.grad is None
    assert x.grad is None
    assert torch.equal(state, torch.get_rng_state())


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(ArgumentError, match="kinds: expected some of"):
        plan.choose_layout(*case(0.5), kinds=("coo",))

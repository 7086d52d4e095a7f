"""The cost model: sizes of layers, the fit, and a calibration that ends. No time is asserted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lth_sparse.ops import cost
from lth_sparse.ops.cost import Sizes, fit, sizes_of
from lth_sparse.ops.measure import PASSES
from lth_sparse.ops.plan import layout_of


@pytest.mark.parametrize(
    ("shape", "x", "conv"),
    [
        ((6, 5), (7, 5), None),
        ((6, 5), (5,), None),
        ((6, 5), (2, 3, 5), None),
        ((6, 5), (0, 5), None),
        ((6, 4, 3), (2, 4, 11), {"padding": 2, "stride": 2, "padding_mode": "circular"}),
        ((6, 2, 3, 5), (2, 4, 8, 9), {"padding": "same", "groups": 2, "dilation": (1, 2)}),
        ((6, 4, 3, 3), (4, 8, 9), {"padding": "valid", "stride": (2, 1)}),
    ],
)
def test_sizes_are_those_of_the_output(shape: tuple[int, ...], x: tuple[int, ...], conv: dict | None) -> None:
    sizes = sizes_of(shape, x, 4, conv)
    weight, options = torch.randn(shape), dict(conv or {})
    if conv is None:
        y = F.linear(torch.randn(x), weight)
    elif options.pop("padding_mode", "zeros") == "circular":
        y = F.conv1d(F.pad(torch.randn(x), (2, 2), "circular"), weight, stride=2)
    else:
        y = (F.conv1d if len(shape) == 3 else F.conv2d)(torch.randn(x), weight, **options)
    assert sizes.outputs == y.numel()
    assert sizes.positions * shape[0] == y.numel()
    assert sizes.inputs == torch.Size(x).numel()


@pytest.mark.parametrize(
    ("dims", "conv", "name"),
    [
        (2, None, "linear"),
        (3, {"stride": 1}, "conv"),
        (4, {"stride": (1, 1)}, "conv"),
        (4, {"stride": (1, 2)}, "strided conv"),
        (4, {}, "conv"),
    ],
)
def test_families(dims: int, conv: dict | None, name: str) -> None:
    assert cost.family(dims, conv) == name


def test_fit_finds_coefficients_that_made_the_times() -> None:
    torch.manual_seed(0)
    true = (1e-5, 2e-4, 0.0, 3e-3)
    rows = [((1.0, *(torch.rand(3) * 10).tolist()), 0.0) for _ in range(12)]
    rows = [(terms, sum(c * term for c, term in zip(true, terms, strict=True))) for terms, _ in rows]
    assert fit(rows) == pytest.approx(true, rel=1e-3, abs=1e-9)


def test_fit_gives_nothing_negative_and_bears_columns_of_zeros() -> None:
    rows = [((1.0, 5.0, 0.0), 1.0), ((1.0, 3.0, 0.0), 2.0), ((1.0, 1.0, 0.0), 3.0)]
    assert all(c >= 0.0 for c in fit(rows))
    assert fit(rows)[2] == 0.0


def test_predictions_grow_with_what_is_stored_and_leave_out_the_gradient_nobody_needs() -> None:
    coefficients = dict.fromkeys(PASSES, (1e-06, 0.001, 0.001, 0.0, 0.0, 0.0, 0.0, 0.0))
    sizes = Sizes(positions=10, inputs=100, outputs=100, numel=1000, itemsize=4)
    few, many = (cost.predict(coefficients, sizes, stored) for stored in (10, 1000))
    assert few.training < many.training
    assert cost.predict(coefficients, sizes, 10, input_gradient=False).backward_input is None


@pytest.mark.parametrize("bad", [None, [], {"forward": [1.0]}, {which: [1.0] for which in PASSES}])
def test_what_is_no_calibration_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="calibration"):
        cost.coefficients_from(bad)


@pytest.mark.parametrize("family", list(cost.CALIBRATION))
def test_a_calibration_covers_every_kind_and_pass(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: shapes[:2] for name, shapes in cost.CALIBRATION.items()}
    monkeypatch.setattr(cost, "CALIBRATION", few)
    monkeypatch.setattr(cost, "BUDGET", 0.0)

    def make(kind: str, mask: torch.Tensor) -> object:
        return layout_of(kind, mask, None)

    found = cost.calibrate(family, ["csr", "dense"], make, torch.float32, torch.device("cpu"))
    assert set(found) == {"torch", "csr", "dense"}
    for coefficients in found.values():
        as_json = {which: list(weights) for which, weights in coefficients.items()}
        assert cost.coefficients_from(as_json) == coefficients


@pytest.mark.parametrize(("shape", "block"), [((7, 9), None), ((7, 9), (2, 4)), ((6, 2, 3, 3), (4, 3))])
def test_random_masks_keep_the_share_of_blocks_asked_for(shape: tuple[int, ...], block: tuple[int, int] | None) -> None:
    mask = cost.random_mask(shape, 0.5, block, torch.Generator().manual_seed(0))
    assert mask.shape == shape
    if block is None:
        assert int(mask.sum()) == round(0.5 * mask.numel())
    else:
        layout_of("bsr", mask, block)
        matrix = mask.view(shape[0], -1)
        grid = -(-matrix.shape[0] // block[0]) * -(-matrix.shape[1] // block[1])
        assert layout_of("bsr", mask, block).nblocks == round(0.5 * grid)

"""2:4 operators: the reference against float64, and the CUDA implementation over emulated products."""

from __future__ import annotations

from typing import Any

import emulated_semi
import pytest
import torch
import torch.nn.functional as F
from emulated_semi import CuSparseLt, by_tiles, in_order, install
from semi_cases import semi_mask, step, transposable_mask
from torch import Tensor

from lth_sparse.errors import BackendError
from lth_sparse.formats import Layout, SemiStructured
from lth_sparse.ops import backend_of, cuda_semi, cusparselt, functional
from lth_sparse.ops.schemas import OPS
from lth_sparse.ops.strides import feature_major, is_feature_major

#: Of the rounded result, relative to its largest entry.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def truth(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, upstream: Tensor) -> list[Tensor]:
    """The same of the masked dense layer in float64, with the masked gradient of the weight for that of the values."""
    x, weight, upstream = x.double(), weight.double() * mask, upstream.double()
    y = F.linear(x, weight, None if bias is None else bias.double())
    found = [y, upstream @ weight, (upstream.t() @ x) * mask]
    return found if bias is None else [*found, upstream.sum(0)]


def compare(found: list[Tensor], right: list[Tensor], layout: Layout, tolerance: float) -> None:
    dense = [found[0], found[1], layout.scatter(found[2]), *found[3:]]
    for mine, truly in zip(dense, right, strict=True):
        assert mine.shape == truly.shape
        scale = float(truly.abs().max()) if truly.numel() else 1.0
        torch.testing.assert_close(mine.double(), truly, rtol=0, atol=tolerance * max(scale, 1.0))
    if layout.index[1].numel():
        assert bool((found[2][~layout.index[1]] == 0).all())


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sizes", [(7, 12, 5), (1, 4, 1), (32, 64, 9), (10, 20, 0), (3, 0, 2)])
def test_the_reference_equals_masked_dense(sizes: tuple[int, int, int], share: float) -> None:
    out, features, batch = sizes
    mask = semi_mask((out, features), share)
    layout = SemiStructured.from_mask(mask)
    weight, bias = torch.randn(out, features, dtype=torch.float64), torch.randn(out, dtype=torch.float64)
    x, upstream = torch.randn(batch, features, dtype=torch.float64), torch.randn(batch, out, dtype=torch.float64)
    for given in (bias, None):
        found = step(x, layout.gather(weight), given, layout, upstream)
        compare(found, truth(x, weight, mask, given, upstream), layout, 1e-12)


@pytest.mark.usefixtures("seed")
def test_gradcheck_first_and_second_order() -> None:
    layout = SemiStructured.from_mask(semi_mask((6, 8), 0.7))
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    values = layout.gather(torch.randn(6, 8, dtype=torch.float64)).requires_grad_()
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return functional.linear(x, values, layout, bias)

    assert torch.autograd.gradcheck(call, (x, values, bias))
    assert torch.autograd.gradgradcheck(call, (x, values, bias))


@pytest.mark.usefixtures("seed")
def test_opcheck() -> None:
    layout = SemiStructured.from_mask(semi_mask((6, 8), 0.7))
    x, values, bias = torch.randn(3, 8), layout.gather(torch.randn(6, 8)), torch.randn(6)
    tail = (list(layout.index), list(layout.shape))
    ops = OPS["2:4"]
    for given in (bias, None):
        torch.library.opcheck(ops.linear.overload, (x, values, given, *tail, "relu"), test_utils=CHECKS)
    for wanted in ([True, True, True], [False, True, False]):
        for activated in ((), (torch.randn(3, 6),)):
            arguments = (torch.randn(3, 6), x, values, *tail, wanted, *activated)
            torch.library.opcheck(ops.linear_backward.overload, arguments, test_utils=CHECKS)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_convolutions_run_the_reference(kernel: tuple[int, int]) -> None:
    mask = semi_mask((6, 4, *kernel), 0.8)
    layout = SemiStructured.from_mask(mask)
    weight = torch.randn(mask.shape, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    values = layout.gather(weight).requires_grad_()
    y = functional.conv2d(x, values, layout, padding=1)
    dense = (weight * mask).requires_grad_()
    right = F.conv2d(x, dense, padding=1)
    torch.testing.assert_close(y, right)
    upstream = torch.randn_like(y)
    (dx, dvalues), (true_dx, true_dw) = (
        torch.autograd.grad(result, (x, leaf), upstream) for result, leaf in ((y, values), (right, dense))
    )
    torch.testing.assert_close(dx, true_dx)
    torch.testing.assert_close(layout.scatter(dvalues), true_dw * mask)
    assert backend_of("2:4", "cuda", torch.float16, dims=4) == "reference"


# The CUDA implementation, all but the product itself

ROUTES = {"cutlass": None, "cusparselt": in_order, "cusparselt, tiled": by_tiles}


@pytest.fixture(params=ROUTES)
def route(request: Any, monkeypatch: pytest.MonkeyPatch) -> CuSparseLt | None:
    name, shuffle = request.param.partition(",")[0], ROUTES[request.param]
    library = None if shuffle is None else CuSparseLt(shuffle)
    install(monkeypatch, name, library)
    return library


@pytest.mark.usefixtures("seed", "poison_empty")
@pytest.mark.parametrize(
    ("batch", "dtype"), [(0, torch.float16), (1, torch.bfloat16), (24, torch.float16), (37, torch.bfloat16)]
)
@pytest.mark.parametrize("transposable", [False, True])
@pytest.mark.parametrize("share", [0.6, 1.0])
def test_the_cuda_path_equals_masked_dense(
    route: CuSparseLt | None, share: float, transposable: bool, batch: int, dtype: torch.dtype
) -> None:
    mask = transposable_mask((64, 64), share) if transposable else semi_mask((64, 128), share)
    layout = SemiStructured.from_mask(mask)
    out, features = mask.shape
    weight, bias, x = (torch.randn(size).to(dtype) for size in (mask.shape, (out,), (batch, features)))
    upstream = torch.randn(batch, out).to(dtype)
    values = layout.gather(weight)
    if layout.value_mask.numel():
        values = values.masked_fill(~layout.value_mask, 3.0)  # must count as zero
    close = TOLERANCE[dtype]
    for given in (bias, None):
        found = step(x, values, given, layout, upstream)
        compare(found, truth(x, weight, mask, given, upstream), layout, close)


@pytest.mark.usefixtures("seed")
def test_a_relu_and_its_gradient(route: CuSparseLt | None) -> None:
    mask = transposable_mask((64, 64), 1.0)
    layout = SemiStructured.from_mask(mask)
    weight, bias, x, upstream = (torch.randn(size).half() for size in ((64, 64), (64,), (12, 64), (12, 64)))
    found = step(x, layout.gather(weight), bias, layout, upstream, activation="relu")
    right = truth(x, weight, mask, bias, upstream * (found[0] > 0))
    compare(found, [right[0].relu(), *right[1:]], layout, TOLERANCE[torch.float16])


@pytest.mark.usefixtures("seed")
def test_gradients_nobody_wants_are_not_made(route: CuSparseLt | None) -> None:
    mask = transposable_mask((64, 64), 1.0)
    layout = SemiStructured.from_mask(mask)
    weight, x, upstream = (torch.randn(size).half() for size in ((64, 64), (12, 64), (12, 64)))
    tail = (list(layout.index), list(layout.shape))
    right = truth(x, weight, mask, torch.zeros(64), upstream)[1:]
    for wanted in ([True, False, False], [False, True, False], [False, False, True]):
        found = cuda_semi._linear_backward(upstream, x, layout.gather(weight), *tail, wanted)
        assert [grad.numel() > 0 for grad in found] == wanted
        place = wanted.index(True)
        mine = layout.scatter(found[1]) if place == 1 else found[place]
        torch.testing.assert_close(mine.double(), right[place], rtol=0, atol=0.1)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("batch", [16, 19])
@pytest.mark.parametrize("form", ["feature-major", "every second", "misaligned"])
def test_any_strides_and_the_format_of_the_input(route: CuSparseLt | None, form: str, batch: int) -> None:
    mask = transposable_mask((64, 64), 1.0)
    layout = SemiStructured.from_mask(mask)
    weight, bias = torch.randn(64, 64).half(), torch.randn(65).half()[1:]
    x = {
        "feature-major": feature_major(torch.randn(batch, 64).half()),
        "every second": torch.randn(batch, 128).half()[:, ::2],
        "misaligned": torch.randn(batch * 64 + 1).half()[1:].view(batch, 64),
    }[form]
    values = torch.cat((torch.zeros(1).half(), layout.gather(weight).flatten()))[1:].view(layout.values_shape)
    upstream = torch.randn(64, batch).half().t()
    found = step(x, values, bias, layout, upstream)
    compare(found, truth(x, weight, mask, bias, upstream), layout, TOLERANCE[torch.float16])
    for tensor in found[:2]:
        assert is_feature_major(tensor) == (form == "feature-major")
        assert tensor.is_contiguous() == (form != "feature-major")


@pytest.mark.usefixtures("seed")
def test_the_input_gradient_runs_on_sparse_cores_for_transposable_masks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []

    def counted(values: Tensor, *rest: Tensor) -> Tensor:
        calls.append(tuple(values.shape))
        return emulated_semi.cutlass_mm(values, *rest)

    install(monkeypatch, "cutlass")
    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", counted)
    x, upstream = torch.randn(8, 128).half(), torch.randn(8, 64).half()
    for mask, expected in (
        (semi_mask((64, 128), 1.0), [(64, 64)]),
        (transposable_mask((64, 128), 1.0), [(64, 64), (128, 32)]),
    ):
        calls.clear()
        layout = SemiStructured.from_mask(mask)
        step(x, layout.gather(torch.randn(64, 128).half()), None, layout, upstream)
        assert calls == expected


@pytest.mark.usefixtures("seed")
def test_nothing_is_compressed_after_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    library = CuSparseLt(by_tiles)
    install(monkeypatch, "cusparselt", library)
    layout = SemiStructured.from_mask(transposable_mask((64, 64), 1.0))
    values, x = layout.gather(torch.randn(64, 64).half()), torch.randn(8, 64).half()
    step(x, values, None, layout, x)
    first = library.compressions
    for _ in range(2):
        step(x, values * 2, None, layout, x)
    aliases = SemiStructured(layout.shape, *(tensor.detach() for tensor in layout.index), live=layout.live)
    step(x, values, None, aliases, x)  # a compiler's inputs
    assert library.compressions == first > 0
    del layout, aliases
    other = SemiStructured.from_mask(semi_mask((64, 64), 1.0))
    step(x, values, None, other, x)
    assert library.compressions > first
    assert len(cusparselt._packings) == 1  # those of the mask that is gone went with it


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("broken", ["order", "product"])
def test_a_buffer_that_is_not_understood_means_the_reference_and_a_warning(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffle = torch.zeros_like if broken == "order" else lambda index: index
    library = CuSparseLt(lambda count: shuffle(torch.arange(count)), honest=broken == "order")
    install(monkeypatch, "cusparselt", library)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    mask = semi_mask((32, 64), 1.0)
    layout = SemiStructured.from_mask(mask)
    weight, x, upstream = (torch.randn(size).half() for size in ((32, 64), (8, 64), (8, 32)))
    with pytest.warns(RuntimeWarning, match="unknown order on a GPU: layers with layout='2:4' run the reference"):
        found = step(x, layout.gather(weight), None, layout, upstream)
    compare(found, truth(x, weight, mask, None, upstream), layout, TOLERANCE[torch.float16])
    compressions = library.compressions
    step(x, layout.gather(weight), None, layout, upstream)  # says so once
    assert library.compressions == compressions


@pytest.mark.usefixtures("seed")
def test_the_first_step_is_refused_during_a_capture_and_later_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "cusparselt", CuSparseLt(in_order))
    layout = SemiStructured.from_mask(semi_mask((32, 64), 1.0))
    values, x = layout.gather(torch.randn(32, 64).half()), torch.randn(8, 64).half()
    with monkeypatch.context() as capture:
        capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(BackendError, match="layout: expected a step with this mask before"):
            functional.linear(x, values, layout)
    right = functional.linear(x, values, layout)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert torch.equal(functional.linear(x, values, layout), right)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("case", ["shape", "device"])
def test_a_shape_or_device_without_kernel_runs_the_reference(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: Any) -> Tensor:
        raise AssertionError("there is no kernel for this")

    install(monkeypatch, None if case == "device" else "cutlass")
    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", unexpected)
    shape = (32, 64) if case == "device" else (32, 60)
    mask = semi_mask(shape, 1.0)
    layout = SemiStructured.from_mask(mask)
    weight, x, upstream = (torch.randn(size).half() for size in (shape, (8, shape[1]), (8, 32)))
    found = step(x, layout.gather(weight), None, layout, upstream)
    compare(found, truth(x, weight, mask, None, upstream), layout, TOLERANCE[torch.float16])

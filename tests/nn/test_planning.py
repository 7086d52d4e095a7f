"""lth_sparse.plan: the walk over a model, the search for the break-even point, and the table. No time is asserted."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.nn import LayerPlan, PlanTable, planning
from lth_sparse.nn.plan_table import TOP, crossing
from lth_sparse.nn.planning import next_density
from lth_sparse.ops import use_backend
from lth_sparse.ops.measure import PASSES, Timing


class Machine:
    """A machine on which a layer costs `fixed + density` in csr, half its density in bsr, and 1 dense."""

    def __init__(self) -> None:
        self.measured: list[str] = []
        self.fixed = 0.4

    def measure(self, weight: Tensor, layouts: dict[str, Any], x: Tensor, *_: object, **keywords: Any) -> dict:
        found = {"torch": self.timing(1.0, keywords["input_gradient"])}
        for name, layout in layouts.items():
            self.measured.append(name)
            kind, density = name.split()
            cost = {"csr": self.fixed + float(density), "bsr": 0.5 * float(density), "dense": 1.25}[kind]
            assert layout.kind == kind
            found[name] = self.timing(cost, keywords["input_gradient"])
        return found

    @staticmethod
    def timing(seconds: float, input_gradient: bool) -> Timing:
        return Timing(seconds, 3 * seconds, seconds if input_gradient else None, seconds)

    @staticmethod
    def interleave(runs: dict[str, Any], *_: object, **__: object) -> dict[str, list[float]]:
        for run in runs.values():
            run()
        return {name: [20.0 if name == "step" else 0.0 + 1e-9] for name in runs}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(planning, "measure", made.measure)
    monkeypatch.setattr(planning, "interleave", made.interleave)
    return made


@pytest.fixture
def cache_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("LTH_SPARSE_CACHE", "1")
    monkeypatch.setenv("LTH_SPARSE_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_each_layer_has_its_break_even_point_and_speedups(net: nn.Module, images: Tensor, machine: Machine) -> None:
    table = ls.plan(net, images)
    assert [layer.name for layer in table.layers] == ["conv", "fc1", "fc2"]
    for layer in table.layers:
        assert layer.break_even("csr") == pytest.approx(0.6, abs=0.01)
        assert layer.speedup(0.1, "csr") == pytest.approx(2.0)
        assert layer.calls == 1
    assert table.layers[0].break_even("csr", "backward_input") is None  # no gradient of the images
    assert table.layouts == ("csr",)


def test_what_was_measured_once_decides_for_every_mask(net: nn.Module, images: Tensor, machine: Machine) -> None:
    evens = ls.plan(net, images).break_evens()
    # Ours takes 0.4 + density of dense torch's time, the dense layout 1.25 of it, of which 2% are a tie.
    expected = dict.fromkeys(("conv.weight", "fc1.weight", "fc2.weight"), 1.25 * 0.98 - 0.4)
    assert evens == pytest.approx(expected, abs=0.01)
    shapes = {name: p.shape for name, p in net.named_parameters() if name in evens}
    for density, layout in ((0.8, "csr"), (0.85, "dense")):
        masks = {}
        for name, shape in shapes.items():
            masks[name] = torch.arange(shape.numel()).view(shape) < density * shape.numel()
        report = ls.sparsify_(copy.deepcopy(net), masks, break_even=evens)
        assert [row.layout for row in report.layers] == [layout] * 3
        assert all("break-even at 8" in row.note for row in report.layers)


def test_the_whole_network_counts_what_no_sparsity_shortens(net: nn.Module, images: Tensor, machine: Machine) -> None:
    table = ls.plan(net, images)
    assert table.step == 20.0
    assert table.elsewhere == pytest.approx(20.0 - 9.0)
    assert [table.share(layer) for layer in table.layers] == pytest.approx([3 / 20] * 3)
    assert table.speedup(0.1, "csr") == pytest.approx(20.0 / (11.0 + 4.5))
    machine.fixed = 1.9
    slow = ls.plan(net, images)
    assert slow.speedup(0.1, "csr") == pytest.approx(20.0 / (11.0 + 18.0))
    assert slow.speedup(0.1, "auto") == pytest.approx(20.0 / (11.0 + 3 * 3.75))  # the dense layout
    assert [layer.break_even("csr") for layer in slow.layers] == [None] * 3


def test_autograds_own_cost_counts_once_for_a_network() -> None:
    sparse, rivals = {"csr": {0.1: Timing(1.0, 2.0)}}, {"csr": {0.1: Timing(1.0, 5.0)}}
    layer = LayerPlan("a", "Linear", (2, 2), 4, 2, Timing(1.0, 5.0), None, sparse, rivals, overhead=1.0)
    assert layer.step == 8.0  # two calls
    assert layer.speedup(0.1, "csr") == 4.0


def test_blocks_are_planned_for_where_a_kernel_runs_them(
    net: nn.Module, images: Tensor, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not [name for name in machine.measured if name.startswith("bsr")]
    monkeypatch.setattr(planning.choices, "backend_of", lambda kind, *_, **__: "cpu-fast")
    table = ls.plan(net, images, block=(4, 2))
    assert table.layouts == ("csr", "bsr")
    for layer in table.layers:
        assert layer.break_even("bsr") == 1.0
        assert layer.speedup(0.1, "bsr") == pytest.approx(20.0)
        assert layer.seconds(0.1, "auto") == pytest.approx(3 * 0.05)
    assert "bsr 4x2" in str(table)
    assert f">{100 * TOP:.0f}%" in str(table)


def test_without_kernels_the_table_says_so(net: nn.Module, images: Tensor, machine: Machine) -> None:
    with use_backend("reference"):
        table = ls.plan(net, images)
    assert all(layer.note == "no kernel for torch.float32 on cpu" and not layer.sparse for layer in table.layers)
    assert table.speedup(0.1) == pytest.approx(20.0 / (11.0 + 9.0))
    assert "no kernel" in str(table)


@pytest.mark.usefixtures("cache_on")
def test_the_second_call_measures_nothing(net: nn.Module, images: Tensor, machine: Machine) -> None:
    first = ls.plan(net, images)
    count = len(machine.measured)
    second = ls.plan(net, images + 1.0)
    assert len(machine.measured) == count
    assert second == first
    ls.plan(net, images, densities=(0.5, 0.3))
    assert machine.measured[count:] == ["csr 0.3"] * 3


@pytest.mark.usefixtures("cache_on")
def test_a_damaged_entry_is_measured_again(net: nn.Module, images: Tensor, machine: Machine, cache_on: Path) -> None:
    first = ls.plan(net, images)
    (file,) = cache_on.glob("plan-*.json")
    content = json.loads(file.read_text())
    for entry in content["entries"].values():
        entry["value"] = {"forward": -1}
    file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="ignoring the damaged entry"):
        assert ls.plan(net, images) == first


def test_the_model_is_left_as_it_was(net: nn.Module, images: Tensor, machine: Machine) -> None:
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    ls.plan(net, images)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_a_layer_called_twice_counts_twice_and_one_not_reached_not_at_all(machine: Machine) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"out": [self.a(self.a(x))]}

    table = ls.plan(Twice(), torch.randn(3, 4))
    a, b = table.layers
    assert (a.calls, b.calls) == (2, 0)
    assert a.step == pytest.approx(6.0)
    assert (b.note, table.share(b)) == ("not reached by the sample", 0.0)
    assert "b: not reached by the sample." in str(table)


def test_without_measuring_the_cost_model_is_asked(
    net: nn.Module, images: Tensor, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(weight: Tensor, stored: dict[str, float], *_: object) -> dict[str, Timing]:
        return {"torch": Timing(1, 3.0)} | {
            kind: Timing(1, 6.0 * count / weight.numel()) for kind, count in stored.items()
        }

    monkeypatch.setattr(planning.choices, "predict", predict)
    table = ls.plan(net, images, measure=False)
    assert machine.measured == []
    assert table.layers[1].break_even("csr") == pytest.approx(0.5)
    assert "by the cost model" in str(table)


def test_progress_rises_to_the_whole(net: nn.Module, images: Tensor, machine: Machine) -> None:
    seen: list[tuple[float, str]] = []
    ls.plan(net, images, progress=lambda done, words: seen.append((done, words)))
    shares = [done for done, _ in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert {"conv", "fc1", "fc2"} <= {words for _, words in seen}


def test_plain_values_go_through_json(net: nn.Module, images: Tensor, machine: Machine) -> None:
    values = json.loads(json.dumps(ls.plan(net, images).to_dict(), allow_nan=False))
    layer = values["layers"][1]
    assert layer["shape"] == [11, 245]
    assert layer["break_even_density"]["csr"]["training"] == pytest.approx(0.6, abs=0.01)
    assert layer["break_even_sparsity"]["csr"]["training"] == pytest.approx(0.4, abs=0.01)
    assert set(layer["times"]["csr"]["0.5"]["sparse"]) == {*PASSES, "noise"}
    assert set(values["network_speedup"]) == {"csr", "auto"}


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"densities": ()}, ArgumentTypeError, "densities: expected a sequence"),
        ({"densities": (0.5, 1.0)}, ArgumentError, "densities: expected numbers in"),
        ({"densities": (float("nan"),)}, ArgumentError, "densities: expected numbers in"),
        ({"block": (0, 4)}, ArgumentError, "block"),
    ],
)
def test_wrong_options_are_named(
    net: nn.Module, images: Tensor, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        ls.plan(net, images, **options)


def test_wrong_models_and_samples_are_named(net: nn.Module, images: Tensor) -> None:
    with pytest.raises(ArgumentTypeError, match="model: expected a torch"):
        ls.plan("lenet", images)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="none that can become sparse"):
        ls.plan(nn.ReLU(), images)
    with pytest.raises(ArgumentError, match="sample_input: expected an input that the model takes"):
        ls.plan(net, images[:, :2])


@pytest.mark.parametrize(
    ("ratios", "even"),
    [
        ({}, None),
        ({0.5: 1.2}, None),
        ({0.5: 0.9}, 1.0),
        ({0.2: 0.8, 0.4: 1.2}, 0.3),
        ({0.1: 1.0, 0.2: 1.1}, 0.1),
        ({0.1: 0.5, 0.2: 1.5, 0.3: 0.9}, 0.1 + 0.1 * 0.5 / 0.7),  # more weights cannot be faster: 1.2 at both
        ({0.01: 1.02, 0.1: 0.96, 0.3: 1.19}, 0.1 + 0.2 * 0.01 / 0.2),
    ],
)
def test_crossing(ratios: dict[float, float], even: float | None) -> None:
    assert crossing(ratios) == (None if even is None else pytest.approx(even))


def test_the_search_for_the_crossing_ends_close_to_it() -> None:
    for true in (0.013, 0.07, 0.33, 0.6, 0.93):
        ratios = {density: 0.3 + 0.7 * density / true for density in (0.05, 0.1, 0.2, 0.5)}
        for _ in range(6):
            density = next_density(ratios, 0.05)
            if density is None:
                break
            assert density not in ratios
            ratios[density] = 0.3 + 0.7 * density / true
        assert crossing(ratios) == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize(("ratio", "end"), [(0.5, 1.0), (2.0, None)])
def test_the_search_ends_where_nothing_crosses(ratio: float, end: float | None) -> None:
    ratios = dict.fromkeys((0.1, 0.5), ratio)
    for _ in range(6):
        density = next_density(ratios, 0.05)
        if density is None:
            break
        ratios[density] = ratio
    assert density is None
    assert crossing(ratios) == end


def test_a_real_measurement_fills_the_table(net: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BUDGET", 0.0)
    monkeypatch.setattr(planning, "MOST_PROBES", 1)
    table = ls.plan(net, images, densities=(0.2,))
    assert isinstance(table, PlanTable)
    assert table.step > 0.0
    assert all(layer.speedup(0.2, "csr") > 0.0 for layer in table.layers)  # type: ignore[operator]
    assert "network, auto" in str(table)


def test_a_model_on_a_gpu_is_never_left_to_the_cost_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU(torch.Tensor):
        device = property(lambda self: torch.device("cuda"))  # type: ignore[assignment]

    model = nn.Sequential(nn.Linear(8, 4))
    monkeypatch.setattr(planning, "dense_weight", lambda module: module.weight.as_subclass(OnGPU))
    with pytest.raises(ArgumentError, match="measure: expected True for a model on cuda"):
        planning.plan(model, torch.randn(2, 8), measure=False)


def test_where_only_blocks_have_a_kernel_the_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        planning.choices, "backend_of", lambda kind, *_, **__: "cuda-triton" if kind == "bsr" else "reference"
    )
    table = planning.plan(nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8))
    assert table.layers[0].note.endswith("but for blocks, which block=(rows, cols) plans for")


@pytest.mark.gpu
def test_a_network_on_a_gpu_is_planned_there() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).cuda().bfloat16()
    sample = torch.randn(16, 64, device="cuda", dtype=torch.bfloat16)
    table = planning.plan(model, sample, densities=(0.2,), block=(16, 16))
    assert "bsr" in table.layouts
    assert table.step > 0.0
    assert "gpu" in table.environment
    assert torch.cuda.get_device_name() in str(table)


def test_blocks_of_channels_last_weights_are_planned_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where there are kernels for them: masks and layouts by tap, and times of their own in the cache."""
    seen: list[Any] = []

    def measure(weight: Tensor, layouts: dict[str, Any], *rest: Any, **keywords: Any) -> dict:
        seen.extend(layouts.values())
        return machine.measure(weight, layouts, *rest, **keywords)

    monkeypatch.setattr(planning, "measure", measure)
    monkeypatch.setattr(planning.choices, "fast_kinds", lambda kinds, *_: list(kinds))
    x = torch.randn(2, 6, 5, 5).to(memory_format=torch.channels_last)
    conv, linear = nn.Conv2d(6, 8, 3), nn.Linear(6, 8)
    by_tap = planning._Layer(conv, x, (4, 2), True, True)
    by_tap.plan("conv", 1, (0.25,), lambda share: None)
    blocks = [layout for layout in seen if layout.kind == "bsr"]
    assert blocks
    assert all(layout.channels_last for layout in blocks)
    quarter = next(layout for layout in blocks if layout.values_shape[0] == 14)  # of 2 x 27 blocks, one tap in each
    assert not quarter.value_mask.numel()
    by_channel = planning._Layer(conv, x, (4, 2), True)
    assert by_tap._key("bsr", 0.25) != by_channel._key("bsr", 0.25)
    assert by_tap._key("csr", 0.25) == by_channel._key("csr", 0.25)
    assert not planning._Layer(linear, torch.randn(2, 6), (4, 2), True, True).channels_last


def test_channels_last_needs_blocks_and_a_gpu() -> None:
    model, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 5, 5)
    with pytest.raises(ArgumentError, match="channels_last: expected False without block, got True"):
        ls.plan(model, x, channels_last=True)
    with pytest.raises(ArgumentError, match="channels_last: expected False for a model on a CPU, which has no kernels"):
        ls.plan(model, x, block=(4, 4), channels_last=True)


def test_the_table_names_the_order_of_its_blocks() -> None:
    table = PlanTable([], (0.5,), ("csr", "bsr"), (4, 4), 1.0, True, {}, channels_last=True)
    assert table.title("bsr").startswith("bsr 4x4 channels_last: ")
    assert table.title("csr").startswith("csr: ")
    assert table.to_dict()["channels_last"] is True


def test_a_network_is_timed_anew_in_another_memory_format() -> None:
    x = torch.randn(2, 3, 5, 5)
    model = nn.Conv2d(3, 4, 3)
    assert planning._digest(model, x) == planning._digest(model, x.clone())
    assert planning._digest(model, x) != planning._digest(model, x.to(memory_format=torch.channels_last))

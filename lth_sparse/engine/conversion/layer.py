"""What becomes of one layer: the row that says so, the decision whether it is worth it, and the clock that decides."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.engine.conversion.methods import BLOCKED, Method, Remade
from lth_sparse.errors import ArgumentError
from lth_sparse.formats import Layout
from lth_sparse.formats.reorder import permuted, reorder
from lth_sparse.nn.base import build_layout
from lth_sparse.nn.sample import conv_options, layer_inputs
from lth_sparse.ops.measure import BUDGET, Timing, measure
from lth_sparse.ops.plan import TIE

__all__ = ["CONVERTED", "Clock", "LayerConversion", "moved", "remake_layer", "stays", "stored_values"]

#: Names of the candidates among the timings of a layer, beside ``TORCH`` and the kinds of layout.
CONVERTED = "converted"
#: What a layer may stay.
ORIGINAL = ("csr", "dense")
#: Layouts with a block.
BLOCK_LAYOUTS = ("bsr", "reordered")


@dataclass(frozen=True)
class LayerConversion:
    """What became of one layer.

    Attributes:
        name: parameter name of its weight; shape: of the weight.
        before: live weights of the ticket; kept, dropped: of these; added: live weights that the ticket has not.
        magnitude: sum |w| of the trained weights that is kept; magnitude_before: of all that the ticket has.
        stored_before: values that the method's blocks would store of the ticket's own mask, without reordering; for
            methods without blocks its live weights. stored: values stored now, padding included.
        layout, block, cover, channels_last: how it is stored; ``"csr"`` stands for whatever sparsify_ chooses for a
            layer without blocks.
        value_bytes, index_bytes: of the weights and of the index tensors.
        timings: seconds of the converted layer (``"converted"``), of CSR, of the dense layout and of dense torch
            (``"torch"``); None where nothing was timed.
        converted: False for a layer that stays as it is; note says why.
    """

    name: str
    shape: tuple[int, ...]
    before: int
    kept: int
    added: int
    dropped: int
    magnitude: float
    magnitude_before: float
    stored_before: int
    stored: int
    layout: str
    block: tuple[int, int] | None
    cover: str | None
    channels_last: bool
    value_bytes: int
    index_bytes: int
    timings: Mapping[str, Timing] | None
    converted: bool
    note: str

    @property
    def numel(self) -> int:
        """Weights of the dense layer."""
        return math.prod(self.shape)

    @property
    def live(self) -> int:
        """Live weights now."""
        return self.kept + self.added

    @property
    def block_density_before(self) -> float:
        """Share of the stored values that would be live in blocks of the ticket's own mask."""
        return self.before / self.stored_before if self.stored_before else 1.0

    @property
    def block_density(self) -> float:
        """Share of the stored values that is live."""
        return self.live / self.stored if self.stored else 1.0

    @property
    def storage(self) -> dict[str, Any]:
        """The layout as a ticket remembers it: keywords of :func:`lth_sparse.sparsify_`."""
        more: dict[str, Any] = {"block": list(self.block)} if self.block else {}
        more |= {"cover": self.cover} if self.cover else {}
        return {"layout": self.layout, **more, **({"channels_last": True} if self.channels_last else {})}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        timings = None if self.timings is None else {name: time.to_dict() for name, time in self.timings.items()}
        density = {"block_density_before": self.block_density_before, "block_density": self.block_density}
        return {**row, **density, "shape": list(self.shape), "timings": timings}


class Clock:
    """Times a layer's candidates on the input that the network gives it.

    Args:
        model: the plain architecture; a copy of it is used. sample_input: what to call it with.
        device: where. budget: seconds for each candidate of a layer and each pass.
    """

    def __init__(self, model: nn.Module, sample_input: Any, device: torch.device, budget: float = BUDGET) -> None:
        model = copy.deepcopy(model).to(device)
        self.device, self.budget = device, budget
        self.modules = {f"{name}.weight": module for name, module in model.named_modules() if _weighted(module)}
        self.inputs = layer_inputs(model, self.modules.values(), moved(sample_input, device))

    def time(self, name: str, weight: Tensor, layouts: Mapping[str, Layout]) -> dict[str, Timing] | None:
        """Timings of ``layouts`` and of dense torch; None for a layer that the input does not reach."""
        module = self.modules[name]
        sample = self.inputs.get(id(module))
        if sample is None:
            return None
        bias = module._parameters.get("bias")
        return measure(
            weight.to(self.device),
            {kind: layout.to(self.device) for kind, layout in layouts.items()},
            sample.detach().to(weight.dtype),
            None if bias is None else bias.detach(),
            conv_options(module),
            input_gradient=sample.requires_grad,
            budget=self.budget,
        )


def remake_layer(
    name: str,
    before: Tensor,
    mask: Tensor,
    magnitude: Tensor,
    theta: Tensor | None,
    method: Method,
    *,
    channels_last: bool,
    clock: Clock | None,
    edge: bool = False,
    seed: int = 0,
) -> tuple[LayerConversion, Tensor]:
    """The row and the mask of one layer that the method is asked to convert.

    Args:
        before: the ticket's mask as it came; mask: the same weights after reordering.
        magnitude: |w| of the trained weights, as ``mask`` orders them, zero where pruned.
        theta: theta_k of all weights in that order; None where the method adds none.
        channels_last: of the blocks of convolutions.
        clock: None where nothing is timed; then the layer is converted whatever that gains.
        edge: bring rows and columns together first, with an index at the layer's edges. seed: of that.
    """
    made = _remade(mask, magnitude, theta, method, channels_last, edge, seed)
    if not bool(made.mask.any()):
        return stays(name, mask, magnitude, "the method would leave it without any weight")
    try:
        layout = _layout(made, method, channels_last)
    except ArgumentError as error:
        return stays(name, mask, magnitude, f"no {made.layout} layout: {error}")
    timings = None
    if clock is not None and made.layout != "csr":
        candidates = {CONVERTED: layout, **{kind: build_layout(kind, mask) for kind in ORIGINAL}}
        timings = clock.time(name, torch.where(made.mask, 1.0, 0.0).to(magnitude.dtype), candidates)
    if timings is not None:
        kind, rival = min(((kind, timings[kind]) for kind in ORIGINAL), key=lambda pair: pair[1].training)
        gain = 1.0 - timings[CONVERTED].training / rival.training
        if gain <= max(TIE, 2.0 * math.hypot(timings[CONVERTED].noise, rival.noise)):
            times = f"{timings[CONVERTED].training * 1e6:.0f} against {rival.training * 1e6:.0f} us"
            row, mask = stays(name, mask, magnitude, f"no faster in {made.layout} than in {kind}: {times} a step")
            return dataclasses.replace(row, timings=timings), mask
    return _row(name, before, mask, made, layout, magnitude, method, timings, channels_last), made.mask


def _remade(
    mask: Tensor, magnitude: Tensor, theta: Tensor | None, method: Method, channels_last: bool, edge: bool, seed: int
) -> Remade:
    """The layer's mask after the method, in the order of ``mask``, whatever order the blocks were made in."""
    if not edge:
        return method.remake(mask, magnitude, theta, channels_last)
    assert method.block is not None
    order = reorder(mask, method.block, channels_last=channels_last, seed=seed)
    its_theta = None if theta is None else order.apply(theta)
    made = method.remake(order.apply(mask), order.apply(magnitude), its_theta, channels_last)
    back = permuted(made.mask, order.rows.argsort(), order.cols.argsort())
    # Zeros: the layout looks for the order anew, of this mask, and may miss one that fits it exactly.
    return Remade(back, "bsr" if order.is_identity else "reordered", made.cover if order.is_identity else "zeros")


def stays(name: str, mask: Tensor, magnitude: Tensor, note: str) -> tuple[LayerConversion, Tensor]:
    """The row of a layer that keeps its mask and its layout, and that mask."""
    row = _row(name, mask, mask, Remade(mask, "csr"), build_layout("csr", mask), magnitude, None, None, False)
    return dataclasses.replace(row, converted=False, note=note), mask


def stored_values(layout: Layout) -> int:
    """Values that a layout multiplies, padding included."""
    return math.prod(layout.values_shape)


def moved(sample: Any, device: torch.device) -> Any:
    """A sample input (tensor, tuple or mapping) on ``device``."""
    if isinstance(sample, Tensor):
        return sample.to(device)
    if isinstance(sample, Mapping):
        return {key: moved(value, device) for key, value in sample.items()}
    return tuple(moved(value, device) for value in sample) if isinstance(sample, tuple) else sample


def _row(
    name: str,
    before: Tensor,
    mask: Tensor,
    made: Remade,
    layout: Layout,
    magnitude: Tensor,
    method: Method | None,
    timings: Mapping[str, Timing] | None,
    channels_last: bool,
) -> LayerConversion:
    kept = mask & made.mask
    weight = magnitude.to(torch.float64)
    live = int(mask.sum())
    stored_before = live
    if method is not None and method.name in BLOCKED:
        tile = method.granularity(channels_last)
        assert method.block is not None
        stored_before = int((tile.pool(before) > 0).sum()) * math.prod(method.block)
    return LayerConversion(
        name=name,
        shape=tuple(mask.shape),
        before=live,
        kept=int(kept.sum()),
        added=int((made.mask & ~mask).sum()),
        dropped=live - int(kept.sum()),
        magnitude=float((weight * kept).sum()),
        magnitude_before=float((weight * mask).sum()),
        stored_before=stored_before,
        stored=stored_values(layout),
        layout=made.layout,
        block=method.block if method is not None and made.layout in BLOCK_LAYOUTS else None,
        cover=made.cover,
        channels_last=channels_last and made.layout in BLOCK_LAYOUTS,
        value_bytes=stored_values(layout) * magnitude.element_size(),
        index_bytes=layout.nbytes,
        timings=timings,
        converted=True,
        note="",
    )


def _layout(made: Remade, method: Method, channels_last: bool) -> Layout:
    if made.layout not in BLOCK_LAYOUTS:
        return build_layout(made.layout, made.mask)
    return build_layout(made.layout, made.mask, block=method.block, cover=made.cover, channels_last=channels_last)


def _weighted(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))

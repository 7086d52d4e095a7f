"""What ``lth_sparse.plan`` found about each layer and the network, as data, as a table and as plain values for JSON."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lth_sparse.nn.report import ratio, table
from lth_sparse.ops.measure import PASSES, Timing
from lth_sparse.ops.plan import TIE

__all__ = ["BOTTOM", "TOP", "LayerPlan", "PlanTable", "crossing", "rising"]

#: Break-even densities are looked for from here to here.
BOTTOM, TOP = 0.01, 0.95

HEADER = ("layer", "shape", "weights", "share of step")
NAMES = {"forward": "forward", "backward_input": "d input", "backward_weight": "d weight", "training": "step"}


def rising(ratios: Mapping[float, float]) -> dict[float, float]:
    """The ratios by density, made non-decreasing with least squared change: more weights never make a layer faster, so
    what says so is noise (pool adjacent violators)."""
    pools: list[list[float]] = []
    for density in sorted(ratios):
        pools.append([ratios[density]])
        while len(pools) > 1 and statistics.fmean(pools[-2]) > statistics.fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    levels = [statistics.fmean(pool) for pool in pools for _ in pool]
    return dict(zip(sorted(ratios), levels, strict=True))


def crossing(ratios: Mapping[float, float]) -> float | None:
    """The density up to which a sparse layer wins, from ``{density: its time / dense time}``.

    Linear between the densities, since the time of a sparse layer is nearly linear in its weights. 1.0 when the highest
    density given still wins, None when the lowest one loses.
    """
    ratios = rising(ratios)
    densities = list(ratios)
    if not densities or ratios[densities[0]] > 1.0:
        return None
    for low, high in itertools.pairwise(densities):
        if ratios[high] > 1.0:
            return low + (high - low) * (1.0 - ratios[low]) / (ratios[high] - ratios[low])
    return 1.0


@dataclass(frozen=True)
class LayerPlan:
    """One layer that can be pruned.

    Attributes:
        name, kind, shape: module name, dense class, and shape of the dense weight.
        numel: weights of the layer.
        calls: how often a forward pass of the network calls it.
        torch: times of dense torch, unpruned.
        dense: times of the dense layout, in which a pruned layer stays where no sparse layout wins; None without
            kernels.
        sparse: layout -> density -> times, on random masks. Empty where no kernel runs the layer.
        note: why there are no times, else empty.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    numel: int
    calls: int
    torch: Timing | None
    dense: Timing | None = None
    sparse: dict[str, dict[float, Timing]] = field(default_factory=dict)
    #: Dense torch as it was timed beside each of ``sparse``, which the ratios refer to.
    rivals: dict[str, dict[float, Timing]] = field(default_factory=dict)
    #: Seconds that a call of autograd costs whatever it differentiates: a network pays them once, each of ``torch`` and
    #: ``sparse`` by itself.
    overhead: float = 0.0
    note: str = ""

    @property
    def step(self) -> float:
        """Seconds that dense torch adds to a network's training step, all calls together; 0 when not measured."""
        return 0.0 if self.torch is None else self.calls * self._added(self.torch.training)

    def _added(self, seconds: float) -> float:
        return max(seconds - self.overhead, 0.1 * seconds)  # both are measured, apart from each other

    def ratios(self, layout: str, which: str) -> dict[float, float]:
        """Density -> sparse time over dense torch's, of one of ``ops.measure.PASSES``; empty when not measured."""
        found: dict[float, float] = {}
        for density, timing in self.sparse.get(layout, {}).items():
            ours, theirs = timing.of(which), self.rivals[layout][density].of(which)
            if ours is not None and theirs:
                found[density] = ours / theirs
        return found

    def break_even(self, layout: str, which: str = "training") -> float | None:
        """Density up to which the layout is at least as fast as dense torch; see :func:`crossing`."""
        return crossing(self.ratios(layout, which))

    def break_even_with_mask(self, layout: str) -> float:
        """Density up to which the layout trains clearly faster than the dense one with its mask; 0 where it never does.

        :meth:`break_even` compares with the layer before it was pruned, this one tells how to store it afterwards.
        """
        if self.torch is None or self.dense is None:
            return 0.0
        masked = self.dense.training / self.torch.training * (1.0 - TIE)
        steps = self.ratios(layout, "training")
        return crossing({density: found / masked for density, found in steps.items()}) or 0.0

    def seconds(self, density: float, layout: str) -> float:
        """The same at a density in a layout, or in ``"auto"``, the best one; dense torch's where none is known."""
        if self.torch is None:
            return 0.0
        base = self.torch.training
        ratios = {kind: self.ratios(kind, "training").get(density) for kind in self.sparse}
        steps = {kind: base * found for kind, found in ratios.items() if found is not None}
        candidates = [steps[layout]] if layout in steps else []
        if layout == "auto":
            candidates = [*steps.values(), *([self.dense.training] if self.dense is not None else [])]
        return self.calls * self._added(min(candidates, default=base))

    def speedup(self, density: float, layout: str) -> float | None:
        """What dense torch adds to a training step over what the layer adds; None when not measured."""
        if self.torch is None or (layout != "auto" and density not in self.sparse.get(layout, {})):
            return None
        return self.step / self.seconds(density, layout)


@dataclass(frozen=True)
class PlanTable:
    """A network before it is pruned; ``print`` it for the table.

    Attributes:
        layers: one for each Linear, Conv1d and Conv2d that the sample reaches.
        densities: those at which speed-ups are given, falling.
        layouts: ``("csr",)``, or with a block ``("csr", "bsr")``, as far as kernels exist.
        block: of BSR, or None.
        step: seconds of the dense network's training step: forward and all gradients, without loss and optimiser.
        measured: False when the times are the cost model's.
        environment: what the times belong to: processor, threads, versions.
        channels_last: whether BSR's blocks of convolutions are those of channels_last weights.
    """

    layers: list[LayerPlan]
    densities: tuple[float, ...]
    layouts: tuple[str, ...]
    block: tuple[int, int] | None
    step: float
    measured: bool
    environment: dict[str, str]
    channels_last: bool = False

    def break_evens(self) -> dict[str, float]:
        """Parameter name -> density up to which CSR is the way to store the pruned weight, for
        :func:`lth_sparse.sparsify_` and :func:`lth_sparse.find_ticket`: what was measured once decides at every level.
        """
        return {
            f"{layer.name}.weight": layer.break_even_with_mask("csr")
            for layer in self.layers
            if layer.torch is not None
        }

    @property
    def elsewhere(self) -> float:
        """Seconds of the step that torch spends outside the layers, which no sparsity shortens."""
        return max(self.step - sum(layer.step for layer in self.layers), 0.0)

    def share(self, layer: LayerPlan) -> float:
        """The layer's part of the dense step."""
        return layer.step / self._whole if self._whole else 0.0

    def speedup(self, density: float, layout: str = "auto") -> float:
        """Of the network's step with all layers at this density: in one layout, or each in its best, ``"auto"``."""
        sparse = self.elsewhere + sum(layer.seconds(density, layout) for layer in self.layers)
        return self._whole / sparse if sparse else 1.0

    @property
    def _whole(self) -> float:
        """The step, or what its layers take by themselves where that is more."""
        return self.elsewhere + sum(layer.step for layer in self.layers)

    def grid(self, layout: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header and rows of one layout's table: break-even densities of the passes, and speed-ups of the step."""
        header = (*HEADER, *(NAMES[which] for which in PASSES), "prune over", *map(_percent, self.densities))
        rows = []
        for layer in self.layers:
            known = bool(layer.sparse.get(layout))
            even = [_even(layer, layout, which) if known else "-" for which in PASSES]
            step = layer.break_even(layout)
            sparsity = "-" if step is None or not known else "<5%" if step >= 1.0 else _percent(1.0 - step)
            gains = [ratio(layer.speedup(density, layout)) for density in self.densities]
            rows.append((*self._head(layer), *even, sparsity, *gains))
        blank = ("",) * 5
        numel = f"{sum(layer.numel for layer in self.layers):,}"
        rest = (
            "elsewhere",
            "",
            "",
            _percent(self.elsewhere / self._whole if self._whole else 0.0),
            *blank,
            *self._row(None),
        )
        rows.append(rest)
        rows.append((f"network, {layout}", "", numel, "100%", *blank, *self._row(layout)))
        rows.append(("network, auto", "", numel, "100%", *blank, *self._row("auto")))
        return header, rows

    def _head(self, layer: LayerPlan) -> tuple[str, ...]:
        shape = "x".join(map(str, layer.shape))
        return layer.name, shape, f"{layer.numel:,}", _percent(self.share(layer))

    def _row(self, layout: str | None) -> Sequence[str]:
        if layout is None:
            return ["1.00x"] * len(self.densities)
        return [ratio(self.speedup(density, layout)) for density in self.densities]

    def title(self, layout: str) -> str:
        """One line above the layout's table."""
        blocks = f" {self.block[0]}x{self.block[1]}" if layout == "bsr" and self.block else ""
        blocks += " channels_last" * (layout == "bsr" and self.channels_last)
        return f"{layout}{blocks}: density up to which each pass beats dense torch; speed-up of the step by density"

    def notes(self) -> list[str]:
        """Sentences below the tables."""
        how = "measured" if self.measured else "by the cost model, nothing of this network's layers was measured"
        where = ", ".join(f"{value} {name}" if name == "threads" else value for name, value in self._facts().items())
        lines = [
            f"Dense step {1e3 * self.step:.2f} ms: forward and gradients, no optimiser; {how}, random masks; {where}.",
            "density: share of the weights kept. 'prune over': the sparsity from which the step gains.",
            "auto: each layer in its best layout, the dense one with its mask where no sparse one wins.",
        ]
        return lines + [f"{layer.name}: {layer.note}." for layer in self.layers if layer.note]

    def _facts(self) -> dict[str, str]:
        return {
            name: self.environment[name] for name in ("gpu", "processor", "isa", "threads") if name in self.environment
        }

    def __str__(self) -> str:
        parts = []
        for layout in self.layouts:
            header, rows = self.grid(layout)
            parts += [self.title(layout), table(header, rows, header[2:], totals=3), ""]
        return "\n".join([*parts, *self.notes()])

    def to_dict(self) -> dict[str, Any]:
        """Plain values: seconds, and break-even points as densities (1.0: over 95%; None: under 1%) and sparsities."""
        return {
            "measured": self.measured,
            "environment": self.environment,
            "block": list(self.block) if self.block else None,
            "channels_last": self.channels_last,
            "densities": list(self.densities),
            "step_seconds": self.step,
            "elsewhere_seconds": self.elsewhere,
            "layers": [self._layer_dict(layer) for layer in self.layers],
            "network_speedup": {
                layout: {f"{density:g}": self.speedup(density, layout) for density in self.densities}
                for layout in (*self.layouts, "auto")
            },
        }

    def _layer_dict(self, layer: LayerPlan) -> dict[str, Any]:
        even = {layout: {which: layer.break_even(layout, which) for which in PASSES} for layout in layer.sparse}
        return {
            "name": layer.name,
            "kind": layer.kind,
            "shape": list(layer.shape),
            "weights": layer.numel,
            "calls": layer.calls,
            "share": self.share(layer),
            "note": layer.note,
            "overhead_seconds": layer.overhead,
            "dense_torch": None if layer.torch is None else layer.torch.to_dict(),
            "dense_layout": None if layer.dense is None else layer.dense.to_dict(),
            "break_even_density": even,
            "break_even_sparsity": {
                layout: {which: None if density is None else 1.0 - density for which, density in found.items()}
                for layout, found in even.items()
            },
            "times": {
                layout: {
                    f"{density:g}": {"sparse": timing.to_dict(), "torch": layer.rivals[layout][density].to_dict()}
                    for density, timing in sorted(times.items())
                }
                for layout, times in layer.sparse.items()
            },
            "speedup": {
                layout: {f"{density:g}": layer.speedup(density, layout) for density in self.densities}
                for layout in layer.sparse
            },
        }


def _even(layer: LayerPlan, layout: str, which: str) -> str:
    if not layer.ratios(layout, which):
        return "-"
    density = layer.break_even(layout, which)
    return f"<{_percent(BOTTOM)}" if density is None else f">{_percent(TOP)}" if density >= 1.0 else _percent(density)


def _percent(share: float) -> str:
    return f"{100.0 * share:.0f}%" if share >= 0.0995 or share == 0 else f"{100.0 * share:.2g}%"

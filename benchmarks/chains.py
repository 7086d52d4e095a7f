"""Chains of equal layers with a ReLU behind each, in inference: what a layer costs inside a network.

A layer alone pays for rearranging its input and its output in every call; in a chain the format of the activations can
stay. Candidates are torch's dense layers in both memory formats, and ours contiguous and feature-major (after
`fuse_relu_` and `feature_major_`, its two ends included), in float32 and in bfloat16, all interleaved in one process.
Every layer keeps the same share of its weights, at random positions of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lth_sparse.nn import feature_major_, fuse_relu_, sparsify_
from lth_sparse.ops.memory import keep_memory
from lth_sparse.report.tables import Grid

from .cases import Case
from .timing import interleave, quantile

LAYERS = 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DENSE = ("dense", "dense channels_last")
OURS, FEATURE_MAJOR = "lth_sparse", "lth_sparse feature-major"

#: One layer of each chain.
CHAINS: dict[str, Case] = {
    case.name: case
    for case in (
        Case("chain-conv-128", "conv2d", (128, 128, 3, 3), 32, (16, 16)),
        Case("chain-linear-1024", "linear", (1024, 1024), 128),
        Case("chain-linear-4096", "linear", (4096, 4096), 128),
    )
}

#: A candidate: name, dtype, and the share of the weights kept, 1 for what multiplies all of them.
Key = tuple[str, str, float]


@dataclass(frozen=True)
class ChainTime:
    """What a layer costs in one candidate's chain.

    Attributes:
        kept: live weights of the whole chain.
        samples: seconds of the chain over its layers, one a round.
        ratios: of the faster dense candidate of the same dtype to this one, one a round; `ratio_to` is that candidate.
        to_single: the same to the faster dense candidate in float32.
    """

    case: Case
    threads: int
    candidate: str
    dtype: str
    density: float
    kept: int
    samples: list[float]
    ratios: list[float]
    ratio_to: str
    to_single: list[float]

    @property
    def name(self) -> str:
        """The candidate, with its dtype unless that is float32."""
        return self.candidate if self.dtype == "float32" else f"{self.candidate} {self.dtype}"


def dense_chain(case: Case, layers: int = LAYERS) -> nn.Sequential:
    """`layers` layers of the case with a ReLU behind each, for inference, drawn from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules = [module for _ in range(layers) for module in (case.module(), nn.ReLU(inplace=True))]
    return nn.Sequential(*modules).eval().requires_grad_(False)


def sparse_chain(chain: nn.Sequential, case: Case, density: float) -> nn.Sequential:
    """A copy of `chain` that keeps so much of every weight, as CSR."""
    model = copy.deepcopy(chain)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        masks = {name: case.mask(density) for name, p in model.named_parameters() if p.dim() > 1}
    sparsify_(model, masks, layout="csr")
    return model


def candidates(case: Case, densities: Sequence[float], layers: int = LAYERS) -> dict[Key, tuple[nn.Module, Tensor]]:
    """Each candidate's model and input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        single = case.input()
    found: dict[Key, tuple[nn.Module, Tensor]] = {}
    dense = dense_chain(case, layers)
    for name, dtype in DTYPES.items():
        x = single.to(dtype)
        found["dense", name, 1.0] = copy.deepcopy(dense).to(dtype), x
        if case.op == "conv2d":
            last = copy.deepcopy(dense).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            found["dense channels_last", name, 1.0] = last, x.to(memory_format=torch.channels_last)
        for density in densities:
            ours = sparse_chain(dense, case, density)
            fuse_relu_(ours)
            found[OURS, name, density] = ours.to(dtype), x
            found[FEATURE_MAJOR, name, density] = feature_major_(copy.deepcopy(ours)), x
    return found


def time_chain(
    case: Case,
    densities: Sequence[float],
    threads: int,
    seconds: float,
    rounds: int,
    layers: int = LAYERS,
) -> list[ChainTime]:
    """All candidates, interleaved: `seconds` for each, but `rounds` rounds at least."""
    keep_memory()
    models = candidates(case, densities, layers)

    def call(model: nn.Module, x: Tensor) -> Callable[[], object]:
        def infer() -> Tensor:
            with torch.inference_mode():
                y: Tensor = model(x)
            return y

        return infer

    samples = interleave({key: call(*pair) for key, pair in models.items()}, seconds, rounds)
    best = {
        dtype: min((k for k in samples if k[0] in DENSE and k[1] == dtype), key=lambda k: quantile(samples[k], 0.5))
        for dtype in DTYPES
    }
    biases = layers * case.weight[0]
    return [
        ChainTime(
            case,
            threads,
            *key,
            sum(p.numel() for p in models[key][0].parameters()) - biases,
            [sample / layers for sample in own],
            _over(samples[best[key[1]]], own),
            best[key[1]][0],
            _over(samples[best["float32"]], own),
        )
        for key, own in samples.items()
    ]


def _over(dense: Sequence[float], own: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(dense, own, strict=True)]


def cost(case: Case, densities: Sequence[float], seconds: float, rounds: int) -> float:
    """A guess of the duration of `time_chain`, in seconds on one core."""
    dense = LAYERS * case.flops(case.numel, "forward") / 1e11
    formats = 2 if case.op == "conv2d" else 1
    return 2 * (dense * rounds * (formats + sum(densities)) + seconds * (formats + 2 * len(densities)))


def row(one: ChainTime) -> dict[str, str]:
    """The cells of a row of `end_to_end.COLUMNS`; times are those of a layer."""
    median, low, high = (quantile(one.samples, share) * 1e3 for share in (0.5, 0.2, 0.8))
    ratio, ratio_low, ratio_high = (quantile(one.ratios, share) for share in (0.5, 0.2, 0.8))
    return {
        "threads": str(one.threads),
        "network": one.case.name,
        "part": "chain",
        "candidate": one.name,
        "density": f"{one.density:g}",
        "weights_kept": str(one.kept),
        "batch": str(one.case.batch),
        "median_ms": f"{median:.4f}",
        "p20_ms": f"{low:.4f}",
        "p80_ms": f"{high:.4f}",
        "rounds": str(len(one.samples)),
        "ratio": f"{ratio:.3f}",
        "ratio_p20": f"{ratio_low:.3f}",
        "ratio_p80": f"{ratio_high:.3f}",
        "ratio_to": one.ratio_to if one.dtype == "float32" else f"{one.ratio_to} {one.dtype}",
    }


def grid(times: Sequence[ChainTime]) -> Grid:
    """The table of what was measured."""
    headers = ("chain", "candidate", "threads", "density", "ms a layer", "ratio", "20-80%", "to dense float32")
    rows = [
        (
            *(one.case.name, one.name, str(one.threads), f"{one.density:g}"),
            f"{quantile(one.samples, 0.5) * 1e3:.3f}",
            f"{quantile(one.ratios, 0.5):.2f}",
            f"{quantile(one.ratios, 0.2):.2f}-{quantile(one.ratios, 0.8):.2f}",
            f"{quantile(one.to_single, 0.5):.2f}",
        )
        for one in times
    ]
    return Grid(
        "Chains of layers with ReLU, inference; ratios to dense of the same dtype", headers, tuple(rows), left=2
    )

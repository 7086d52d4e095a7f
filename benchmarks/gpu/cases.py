"""The cases of the GPU suite, by goal, ordered so that a run that ends early has a bit of each goal.

Every case is plain data: workers get cases as JSON. ``size`` means by operator:

    linear      (tokens, out features, in features)
    conv        (images, out channels, in channels, side, kernel), stride 1, padding kernel // 2
    mlp         (tokens, features, inner features): LayerNorm, Linear, GELU, Linear, residual
    decode      (tokens, blocks, features, inner features): the seven linear layers of each Llama-like block
    planner     as linear or conv: what the planner chooses, against masked dense
    memory      as linear: bytes of weight, gradient and Adam's state
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lth_sparse.errors import ArgumentError, expected

__all__ = ["CASES", "GOALS", "Case", "ordered", "select"]

#: What is to be reached, in one line each; `verdict` compares with what was found.
GOALS: dict[str, str] = {
    "G1": "break-even sparsity in 4096^2 bf16: blocks of 64 at most 60%, of 32 80%, of 16 90%",
    "G2": "blocks of 128: at least 85% of cuBLAS for each live operation, any size",
    "G3": "ViT-L layer at 90%, the step: at least 2x with blocks of 64, 1.4x with 32, 2.8x with 128",
    "G4": "ViT-L MLP block at 90%, blocks of 64, the step: at least 1.25x",
    "G5": "ViT-H MLP block at 90%, blocks of 64, inference: at least 1.6x",
    "G6": "Llama-8B-shaped decode of one token at 90%, blocks of 64: at least 2.2x",
    "G7": "float32 layer at 90%: at least 5x, error at most twice cuBLAS's",
    "G8": "3x3 convolution, 256 to 512 channels, at 90%: at least 1.5x forward and step against cuDNN channels_last",
    "G9": "unstructured, at most 8 tokens: at least 1.2x at 50% and 3x at 90%",
    "G10": "the planner's choice: never slower than masked dense by more than 3%",
    "G11": "weight, gradient and Adam: at most 1.1 times the density of dense bytes",
}
#: Cases of a goal that each round of the order takes.
WEIGHTS = {"G1": 3, "G8": 2, "G9": 2}

ALL = ("forward", "dx", "dw", "step")
BOTH = ("forward", "step")
FORWARD = ("forward",)
PEERS = ("masked dense", "torch BSR")


@dataclass(frozen=True)
class Case:
    """One layer, or piece of a network, at one density.

    Attributes:
        goal: key of ``GOALS``. label: its shape in a word.
        layout: ``"bsr"``, ``"bsr channels_last"``, ``"csr"``, ``"2:4"``, or ``"dense"``, compact values and a bitmap.
        block: of BSR, else None. density: share of blocks (or weights) kept.
        modes: forward, dx, dw (one gradient alone), step (forward and all gradients); "memory" of memory.
        peers: besides dense torch; see ``layers``.
    """

    goal: str
    op: str
    label: str
    size: tuple[int, ...]
    density: float
    block: tuple[int, int] | None = None
    layout: str = "bsr"
    dtype: str = "bfloat16"
    modes: tuple[str, ...] = FORWARD
    peers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Unique: ``G1-square-bsr64x64-d0.1-bfloat16``."""
        return f"{self.goal}-{self.label}-{self.storage}-d{self.density:g}-{self.dtype}".replace(" ", "-")

    @property
    def storage(self) -> str:
        """The layout with its block."""
        return self.layout + (f"{self.block[0]}x{self.block[1]}" if self.block else "")

    @property
    def is_conv(self) -> bool:
        """Of five sizes, whatever the operator."""
        return len(self.size) == 5

    @property
    def products(self) -> tuple[int, int, int]:
        """(M, N, K) of the layer as a product: tokens or pixels, outputs, inputs; of an MLP's first layer."""
        if self.is_conv:
            images, out, channels, side, kernel = self.size
            return images * side * side, out, channels * kernel * kernel
        if self.op == "mlp":
            return self.size[0], self.size[2], self.size[1]
        if self.op == "decode":
            return self.size[0], self.size[3], self.size[2]
        return self.size[0], self.size[1], self.size[2]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Case:
        """The inverse of :meth:`to_dict`, after JSON made lists of tuples."""
        plain: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**plain)


def square(side: int) -> tuple[int, int]:
    return side, side


def _g1() -> Iterable[Case]:
    size = (4096, 4096, 4096)
    for density in (0.1, 0.4, 0.2, 0.3, 0.05, 0.6, 0.15):
        for side in (64, 32, 16):
            modes = ALL if density in (0.1, 0.2, 0.4) else BOTH
            peers = PEERS if density in (0.1, 0.4) else ()
            yield Case("G1", "linear", "square", size, density, square(side), modes=modes, peers=peers)


def _g2() -> Iterable[Case]:
    for density in (0.1, 0.5, 1.0):
        yield Case("G2", "linear", "square", (4096, 4096, 4096), density, square(128), modes=BOTH, peers=("torch BSR",))
    yield Case("G2", "linear", "odd", (4090, 4100, 4104), 0.5, square(128), modes=BOTH)
    yield Case("G2", "linear", "square", (4096, 4096, 4096), 0.25, square(128), modes=ALL)


def _g3() -> Iterable[Case]:
    for side in (64, 128, 32, 16):
        for label, n, k in (("vit-l-fc1", 4096, 1024), ("vit-l-fc2", 1024, 4096)):
            peers = (*PEERS, "torch 2:4") if side == 64 else ()
            yield Case("G3", "linear", label, (13008, n, k), 0.1, square(side), modes=ALL, peers=peers)


def _pieces() -> Iterable[Case]:
    yield Case("G6", "decode", "llama-8b", (1, 4, 4096, 14336), 0.1, square(64))
    yield Case("G4", "mlp", "vit-l-mlp", (13008, 1024, 4096), 0.1, square(64), modes=BOTH, peers=("masked dense",))
    yield Case("G5", "mlp", "vit-h-mlp", (16448, 1280, 5120), 0.1, square(64))
    yield Case("G5", "mlp", "vit-b-mlp", (50432, 768, 3072), 0.1, square(64))
    for m in (1, 16):
        for density in (0.1, 0.5, 0.2):
            for label, n, k in (("llama-up", 14336, 4096), ("llama-down", 4096, 14336)):
                yield Case("G6", "linear", f"{label}-m{m}", (m, n, k), density, square(64), peers=("torch BSR",))


def _g7() -> Iterable[Case]:
    for side in (64, 32):
        peers = ("dense tf32", "torch BSR") if side == 64 else ("dense tf32",)
        yield Case(
            "G7", "linear", "square", (4096, 4096, 4096), 0.1, square(side), dtype="float32", modes=ALL, peers=peers
        )
    for side in (64, 16):
        yield Case(
            "G7", "linear", "vit-l-fc1", (13008, 4096, 1024), 0.1, square(side), dtype="float32", modes=BOTH,
            peers=("dense tf32",),
        )  # fmt: skip


def _g8() -> Iterable[Case]:
    sizes = {"256@28": (64, 256, 256, 28, 3), "512@14": (64, 512, 512, 14, 3)}
    for density in (0.1, 0.2):
        for side in (64, 32):
            for layout in ("bsr channels_last", "bsr"):
                for dtype in ("bfloat16", "float16") if density == 0.1 and side == 64 else ("bfloat16",):
                    for label, size in sizes.items():
                        yield Case(
                            "G8", "conv", f"conv3x3-{label}", size, density, square(side), layout, dtype, BOTH,
                            ("dense contiguous",),
                        )  # fmt: skip
    yield Case("G8", "conv", "conv3x3-256@28", sizes["256@28"], 0.1, square(32), "bsr channels_last", "float32", BOTH)
    yield Case("G8", "conv", "conv1x1-512@14", (64, 512, 512, 14, 1), 0.1, square(64), modes=BOTH)


def _g9() -> Iterable[Case]:
    for dtype in ("float16", "bfloat16"):
        for m in (1, 8, 4):
            for density in (0.5, 0.1) if dtype == "float16" else (0.1,):
                for layout in ("dense", "csr"):
                    peers = ("torch CSR",) if layout == "csr" else ()
                    size = (m, 14336, 4096)
                    yield Case("G9", "linear", f"llama-up-m{m}", size, density, layout=layout, dtype=dtype, peers=peers)
    for density in (0.1, 0.05, 0.2):
        yield Case(
            "G9", "linear", "square", (4096, 4096, 4096), density, layout="csr", dtype="float32", modes=BOTH,
            peers=("torch CSR",),
        )  # fmt: skip
    yield Case("G9", "linear", "vit-l-fc1", (13008, 4096, 1024), 0.5, layout="2:4", modes=BOTH, peers=("torch 2:4",))
    for dtype in ("float16", "bfloat16"):
        yield Case(
            "G9", "linear", "llama-up-m8", (8, 14336, 4096), 0.5, layout="2:4", dtype=dtype, peers=("torch 2:4",)
        )


def _g10() -> Iterable[Case]:
    step = ("step",)
    for density in (0.1, 0.5):
        yield Case("G10", "planner", "vit-l-fc1", (13008, 4096, 1024), density, square(32), modes=step)
    yield Case("G10", "planner", "small", (64, 256, 256), 0.1, square(16), modes=step)
    yield Case("G10", "planner", "conv3x3-64@32", (64, 64, 64, 32, 3), 0.2, square(16), modes=step)
    yield Case("G10", "planner", "square", (4096, 4096, 4096), 0.1, layout="csr", dtype="float32", modes=step)


def _g11() -> Iterable[Case]:
    for side, dtype in ((64, "bfloat16"), (16, "float32"), (32, "bfloat16")):
        yield Case("G11", "memory", "square", (256, 4096, 4096), 0.1, square(side), dtype=dtype, modes=("memory",))
    yield Case("G11", "memory", "square", (256, 4096, 4096), 0.1, layout="csr", dtype="float32", modes=("memory",))


def ordered(cases: Iterable[Case]) -> list[Case]:
    """In rounds: each takes the next case (or few) of every goal."""
    seen: dict[str, int] = {}
    ranked = []
    for number, case in enumerate(cases):
        index = seen.get(case.goal, 0)
        seen[case.goal] = index + 1
        ranked.append((index // WEIGHTS.get(case.goal, 1), list(GOALS).index(case.goal), number, case))
    return [entry[-1] for entry in sorted(ranked, key=lambda entry: entry[:3])]


CASES: tuple[Case, ...] = tuple(
    ordered(case for family in (_g1, _g2, _g3, _pieces, _g7, _g8, _g9, _g10, _g11) for case in family())
)


def select(goals: Sequence[str] = (), names: Sequence[str] = (), cases: Sequence[Case] = CASES) -> list[Case]:
    """Those of ``goals`` and with names that match one of the globs ``names``; of all where either is empty.

    Raises:
        ArgumentError: an unknown goal, or a glob that no case matches.
    """
    if unknown := [goal for goal in goals if goal not in GOALS]:
        raise ArgumentError(expected("goals", f"some of {', '.join(GOALS)}", ", ".join(unknown)))
    for glob in names:
        if not any(fnmatch.fnmatchcase(case.name, glob) for case in cases):
            raise ArgumentError(expected("cases", "names or globs of GPU cases (--list shows them)", glob))
    found = [case for case in cases if not goals or case.goal in goals]
    return [case for case in found if not names or any(fnmatch.fnmatchcase(case.name, glob) for glob in names)]


def work(case: Case) -> float:
    """Multiplications of a dense forward pass."""
    return float(math.prod(case.products))

"""Masks of a whole model: parameter name -> bool tensor, True where the weight is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected

__all__ = ["Mask", "MaskStats"]


@dataclass(frozen=True)
class MaskStats:
    """Counts of one layer's mask.

    Attributes:
        name: parameter name, such as ``"fc1.weight"``.
        shape: shape of the dense weight.
        numel: number of weights.
        nnz: number of kept weights.
        empty_rows: outputs that keep no weight at all.
        empty_cols: inputs (channels for a convolution) that no output reads any more.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    nnz: int
    empty_rows: int
    empty_cols: int

    @property
    def density(self) -> float:
        """Share of the weights that are kept."""
        return self.nnz / self.numel if self.numel else 0.0


class Mask(Mapping[str, Tensor]):
    """An immutable mapping from parameter names to bool tensors.

    Args:
        masks: ``{parameter name: bool tensor}``; the tensors are not copied.

    Raises:
        ArgumentTypeError, ArgumentError: a name that is no string, a value that is no bool tensor.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        if not isinstance(masks, Mapping):
            raise ArgumentTypeError(expected("masks", "a mapping {parameter name: bool tensor}", type(masks).__name__))
        for name, mask in masks.items():
            if not isinstance(name, str):
                raise ArgumentTypeError(expected("masks", "parameter names as keys", name))
            if not isinstance(mask, Tensor):
                raise ArgumentTypeError(expected(f"masks[{name!r}]", "a bool tensor", type(mask).__name__))
            if mask.dtype != torch.bool:
                raise ArgumentError(expected(f"masks[{name!r}]", "dtype torch.bool", str(mask.dtype)))
        self._masks: dict[str, Tensor] = dict(masks)

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def numel(self) -> int:
        """Weights under all masks."""
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def nnz(self) -> int:
        """Kept weights under all masks."""
        return sum(int(mask.sum()) for mask in self._masks.values())

    @property
    def density(self) -> float:
        """Share of the weights that are kept, over all masked layers; P_m of the paper is 100 times this."""
        return self.nnz / self.numel if self.numel else 0.0

    def stats(self) -> list[MaskStats]:
        """Counts for each layer, in the order of the mapping."""
        return [_stats(name, mask) for name, mask in self._masks.items()]

    def is_subset(self, other: Mapping[str, Tensor]) -> bool:
        """True when both name the same layers and every weight kept here is kept in ``other``."""
        if set(self) != set(other) or any(self[name].shape != other[name].shape for name in self):
            return False
        return not any(bool((mask & ~other[name].to(mask.device)).any()) for name, mask in self.items())

    def equals(self, other: Mapping[str, Tensor]) -> bool:
        """True when both keep exactly the same weights of the same layers."""
        return set(self) == set(other) and all(
            torch.equal(mask, other[name].to(mask.device)) for name, mask in self.items()
        )

    def to(self, device: torch.device | str) -> Mask:
        """The same masks on ``device``."""
        return Mask({name: mask.to(device) for name, mask in self._masks.items()})

    def __repr__(self) -> str:
        return f"Mask({len(self)} layers, {self.nnz} of {self.numel} weights kept, density={self.density:.4g})"

    def __str__(self) -> str:
        width = max((len(name) for name in self), default=5)
        lines = [f"{'layer':<{width}}  {'kept':>10} {'of':>10}  density"]
        lines += [f"{s.name:<{width}}  {s.nnz:>10} {s.numel:>10}  {s.density:>7.2%}" for s in self.stats()]
        return "\n".join([*lines, f"{'all':<{width}}  {self.nnz:>10} {self.numel:>10}  {self.density:>7.2%}"])


def _stats(name: str, mask: Tensor) -> MaskStats:
    empty_rows = empty_cols = 0
    if mask.dim() >= 2 and mask.numel():
        channels = mask.reshape(mask.shape[0], mask.shape[1], -1).any(2)
        empty_rows, empty_cols = int((~channels.any(1)).sum()), int((~channels.any(0)).sum())
    return MaskStats(name, tuple(mask.shape), mask.numel(), int(mask.sum()), empty_rows, empty_cols)

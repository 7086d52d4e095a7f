"""What is pruned at once: single weights, blocks, whole rows (neurons, filters), or two of every four weights.

Every granularity is a tile over the matrix view ``[rows, cols] = [out, in / groups * prod(kernel)]`` of a weight:
``"weight"`` is 1x1, ``"block:RxC"`` is R x C with ragged tiles at the edges, ``"row"`` is 1 x cols. A tile's score is
the sum of its weights' scores; with magnitude that is sum |w|. A tile lives or dies as a whole. ``"2:4"`` is another
matter: tiles of 1 x 4 (``cols`` a multiple of 4), and each keeps its two best weights, in one pruning.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected

__all__ = ["Granularity"]


@dataclass(frozen=True)
class Granularity:
    """A tile.

    Attributes:
        name: what the user typed.
        rows, cols: size of the tile in the matrix view; ``cols=None`` is the full width.
        kept: weights that every tile keeps, of ``"2:4"``; None where tiles live or die as a whole.
    """

    name: str
    rows: int
    cols: int | None
    kept: int | None = None

    @classmethod
    def parse(cls, text: str) -> Granularity:
        """Read ``"weight"``, ``"row"``, ``"block:RxC"`` or ``"2:4"``.

        Raises:
            ArgumentError, ArgumentTypeError: anything else.
        """
        if not isinstance(text, str):
            raise ArgumentTypeError(expected("granularity", "a string", text))
        if text == "weight":
            return cls(text, 1, 1)
        if text == "row":
            return cls(text, 1, None)
        if text == "2:4":
            return cls(text, 1, 4, kept=2)
        match = re.fullmatch(r"block:([1-9]\d*)x([1-9]\d*)", text)
        if match is None:
            what = "'weight', 'row', 'block:RxC', such as 'block:16x16', or '2:4'"
            raise ArgumentError(expected("granularity", what, repr(text)))
        return cls(text, int(match[1]), int(match[2]))

    @property
    def block(self) -> tuple[int, int] | None:
        """(rows, cols) of a real block, None for anything else: what a BSR layout may be asked for."""
        whole = self.cols is not None and self.kept is None and self.rows * self.cols > 1
        return (self.rows, self.cols) if whole and self.cols is not None else None

    def check(self, name: str, shape: tuple[int, ...] | torch.Size) -> None:
        """Raise ``ArgumentError`` where the weight ``name`` cannot be cut into such tiles."""
        cols = math.prod(shape[1:])
        if self.kept is not None and self.cols is not None and cols % self.cols:
            what = f"weights with rows of a multiple of {self.cols} for {self.name!r}"
            got = f"{name} with rows of {cols} (freeze=... leaves a layer alone)"
            raise ArgumentError(expected("granularity", what, got))

    def pool(self, weight: Tensor) -> Tensor:
        """Sum over each tile.

        Args:
            weight: ``[out, ...]``, any dtype; bool counts.

        Returns:
            ``[tiles]``, tiles in row-major order; float64 when tiles hold more than one weight and ``weight`` is
            floating (a float32 sum would depend on its order), int64 for bool.
        """
        if weight.dtype == torch.bool:
            weight = weight.to(torch.int64)
        if self._single:
            return weight.reshape(-1)
        matrix = weight.reshape(weight.shape[0], -1)
        matrix = matrix.to(torch.float64) if matrix.is_floating_point() else matrix
        rows, cols, tile_rows, tile_cols = *self._grid(weight.shape), *self._tile(weight.shape)
        padding = (0, cols * tile_cols - matrix.shape[1], 0, rows * tile_rows - matrix.shape[0])
        padded = F.pad(matrix, padding)
        return padded.reshape(rows, tile_rows, cols, tile_cols).sum(dim=(1, 3)).reshape(-1)

    def expand(self, tiles: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Copy each tile's entry to all its weights: ``[tiles]`` -> ``shape``."""
        if self._single:
            return tiles.reshape(shape)
        rows, cols, tile_rows, tile_cols = *self._grid(shape), *self._tile(shape)
        matrix = tiles.reshape(rows, cols).repeat_interleave(tile_rows, 0).repeat_interleave(tile_cols, 1)
        return matrix[: shape[0], : math.prod(shape[1:])].reshape(shape).contiguous()

    def sizes(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Weights in each tile, int64 ``[tiles]``; tiles at the edges may be smaller."""
        return self.pool(torch.ones(tuple(shape), dtype=torch.bool))

    def best(self, score: Tensor, mask: Tensor) -> Tensor:
        """``mask`` less all but the ``kept`` weights of the highest score in each tile; equal scores go by position."""
        assert self.cols is not None
        assert self.kept is not None
        alive = score.to(mask.device, torch.float64).masked_fill(~mask, -math.inf)
        order = alive.reshape(-1, self.cols).sort(dim=1, stable=True).indices
        pruned = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, : self.cols - self.kept], True)
        return mask & ~pruned.view(mask.shape)

    def shuffled(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        """As many weights in each tile as in ``mask``, at random places of it."""
        assert self.cols is not None
        counts = mask.cpu().reshape(-1, self.cols).sum(1, keepdim=True)
        places = torch.rand(len(counts), self.cols, generator=generator).argsort(1)
        return (places < counts).view(mask.shape).to(mask.device)

    @property
    def _single(self) -> bool:
        return (self.rows, self.cols) == (1, 1)

    def _tile(self, shape: tuple[int, ...] | torch.Size) -> tuple[int, int]:
        return self.rows, max(1, math.prod(shape[1:])) if self.cols is None else self.cols

    def _grid(self, shape: tuple[int, ...] | torch.Size) -> tuple[int, int]:
        tile_rows, tile_cols = self._tile(shape)
        return math.ceil(shape[0] / tile_rows), math.ceil(math.prod(shape[1:]) / tile_cols)

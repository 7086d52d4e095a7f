"""What is pruned at once: single weights, blocks, or whole rows (neurons, filters).

Every granularity is a tile over the matrix view ``[rows, cols] = [out, in / groups * prod(kernel)]`` of a weight:
``"weight"`` is 1x1, ``"block:RxC"`` is R x C with ragged tiles at the edges, ``"row"`` is 1 x cols. With
``"block:RxC:channels_last"`` the columns of a convolution go by kernel position first, and a tile is C consecutive
channels at one position: the blocks of a channels_last :class:`lth_sparse.formats.BSR`. A tile's score is the sum of
its weights' scores; with magnitude that is sum |w|. A tile lives or dies as a whole.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats.layout import from_tap_matrix, tap_matrix

__all__ = ["Granularity"]


@dataclass(frozen=True)
class Granularity:
    """A tile.

    Attributes:
        name: what the user typed.
        rows, cols: size of the tile in the matrix view; ``cols=None`` is the full width.
        channels_last: columns are (kernel position, channel) and not (channel, kernel position).
    """

    name: str
    rows: int
    cols: int | None
    channels_last: bool = False

    @classmethod
    def parse(cls, text: str) -> Granularity:
        """Read ``"weight"``, ``"row"``, ``"block:RxC"`` or ``"block:RxC:channels_last"``.

        Raises:
            ArgumentError, ArgumentTypeError: anything else.
        """
        if not isinstance(text, str):
            raise ArgumentTypeError(expected("granularity", "a string", text))
        if text == "weight":
            return cls(text, 1, 1)
        if text == "row":
            return cls(text, 1, None)
        match = re.fullmatch(r"block:([1-9]\d*)x([1-9]\d*)(:channels_last)?", text)
        if match is None:
            what = "'weight', 'row' or 'block:RxC', such as 'block:16x16' or 'block:16x16:channels_last'"
            raise ArgumentError(expected("granularity", what, repr(text)))
        return cls(text, int(match[1]), int(match[2]), match[3] is not None)

    @property
    def block(self) -> tuple[int, int] | None:
        """(rows, cols) of a real block, None for single weights and rows: what a BSR layout may be asked for."""
        return (self.rows, self.cols) if self.cols is not None and self.rows * self.cols > 1 else None

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
        if self._by_tap(weight.shape):
            matrix = tap_matrix(weight, self._tile(weight.shape)[1])
        else:
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
        if self._by_tap(shape):
            return from_tap_matrix(matrix[: shape[0]], tuple(shape), tile_cols)
        return matrix[: shape[0], : math.prod(shape[1:])].reshape(shape).contiguous()

    def sizes(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Weights in each tile, int64 ``[tiles]``; tiles at the edges may be smaller."""
        return self.pool(torch.ones(tuple(shape), dtype=torch.bool))

    @property
    def _single(self) -> bool:
        return (self.rows, self.cols) == (1, 1)

    def _by_tap(self, shape: tuple[int, ...] | torch.Size) -> bool:
        return self.channels_last and len(shape) > 2

    def _tile(self, shape: tuple[int, ...] | torch.Size) -> tuple[int, int]:
        return self.rows, max(1, math.prod(shape[1:])) if self.cols is None else self.cols

    def _grid(self, shape: tuple[int, ...] | torch.Size) -> tuple[int, int]:
        tile_rows, tile_cols = self._tile(shape)
        taps = math.prod(shape[2:]) if self._by_tap(shape) else 1
        columns = taps * math.ceil(math.prod(shape[1:]) / taps / tile_cols)
        return math.ceil(shape[0] / tile_rows), columns

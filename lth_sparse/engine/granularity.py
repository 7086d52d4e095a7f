"""What is pruned at once: single weights, blocks, rows, columns, filters, channels, kernels, or N of each M weights.

A granularity cuts a matrix view of a weight ``[out, in / groups, *kernel]`` into tiles. A tile's score is the sum of
its weights' scores (with magnitude, sum |w|), and it lives or dies as a whole; tiles at the edges may be smaller.

    spelling      view                               tile
    weight        [out, in/groups * prod(kernel)]    1 x 1
    block:RxC     the same                           R x C
    block:RxC:channels_last
                  [out, prod(kernel) * in/groups]    R x C, C consecutive channels at one position of the kernel: the
                                                     blocks of a channels_last :class:`lth_sparse.formats.BSR`
    vector:Rx1    the same                           R x 1, and vector:1xC
    row           the same                           1 x all: a neuron's inputs
    column        the same                           all x 1: what one input column is multiplied by
    filter        the same                           1 x all, of convolutions only
    channel       [in, out * prod(kernel)]           1 x all: all weights of one input channel or feature
    kernel        [out * in/groups, prod(kernel)]    1 x all: a slice of a convolution, of convolutions only
    N:M           [out, in/groups * prod(kernel)]    1 x 1; N of each M consecutive weights of a row are never pruned

"N:M", such as "2:4", prunes single weights, to exact counts at every level, but never the N highest scores of M. So the
masks approach N:M from above, and a layer stays there: once each group has N weights left (a shorter one at the end of
a row: up to N) it is an N:M mask. Levels at which no layer has anything left to prune are refused before training, see
:func:`lth_sparse.engine.pruning.check_depth`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats.layout import from_tap_matrix, tap_matrix

__all__ = ["FORMS", "Form", "Granularity"]

Shape = tuple[int, ...] | torch.Size


@dataclass(frozen=True)
class Granularity:
    """A tile.

    Attributes:
        name: what the user typed.
        rows, cols: size of the tile in the view; None is the full height or width.
        view: "matrix", "channel", "kernel" or "tap", see the head of this file; "tap" is "matrix" for linear layers.
        of: the N and M of "N:M"; None for the others.
        convolutions: it is only for convolutions.
    """

    name: str
    rows: int | None = 1
    cols: int | None = 1
    view: str = "matrix"
    of: tuple[int, int] | None = None
    convolutions: bool = False

    @classmethod
    def parse(cls, text: str) -> Granularity:
        """Read one of ``FORMS``.

        Raises:
            ArgumentError, ArgumentTypeError: anything else.
        """
        if not isinstance(text, str):
            raise ArgumentTypeError(expected("granularity", "a string", text))
        for form in FORMS:
            match = re.fullmatch(form.pattern, text)
            if match is not None:
                return form.make(text, *map(int, match.groups()))
        *others, last = (form.spelling for form in FORMS)
        raise ArgumentError(expected("granularity", f"{', '.join(others)} or {last}", repr(text)))

    @property
    def block(self) -> tuple[int, int] | None:
        """(rows, cols) of a real block, None for what is none: what a BSR layout may be asked for."""
        if self.view not in ("matrix", "tap") or self.rows is None or self.cols is None or self.rows * self.cols == 1:
            return None
        return self.rows, self.cols

    def refusal(self, module: nn.Module) -> str | None:
        """Why a layer cannot be pruned at this granularity, or None when it can."""
        kind = type(module).__name__
        if self.convolutions and isinstance(module, nn.Linear):
            return f"it is a {kind}, and a {self.name} is a part of a convolution"
        if self.view == "channel" and getattr(module, "groups", 1) != 1:
            return f"it is a {kind} with groups={module.groups}, each with input channels of its own"
        return None

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
        matrix = self._matrix(weight)
        matrix = matrix.to(torch.float64) if matrix.is_floating_point() else matrix
        rows, cols, tile_rows, tile_cols = self._grid(weight.shape)
        padding = (0, cols * tile_cols - matrix.shape[1], 0, rows * tile_rows - matrix.shape[0])
        padded = F.pad(matrix, padding)
        return padded.reshape(rows, tile_rows, cols, tile_cols).sum(dim=(1, 3)).reshape(-1)

    def expand(self, tiles: Tensor, shape: Shape) -> Tensor:
        """Copy each tile's entry to all its weights: ``[tiles]`` -> ``shape``."""
        if self._single:
            return tiles.reshape(shape)
        rows, cols, tile_rows, tile_cols = self._grid(shape)
        matrix = tiles.reshape(rows, cols).repeat_interleave(tile_rows, 0).repeat_interleave(tile_cols, 1)
        height, width = self._size(shape)
        matrix = matrix[:height, :width]
        if self._by_tap(shape):
            return from_tap_matrix(matrix, tuple(shape), tile_cols)
        if self.view == "channel":
            return matrix.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1).contiguous()
        return matrix.reshape(shape).contiguous()

    def sizes(self, shape: Shape) -> Tensor:
        """Weights in each tile, int64 ``[tiles]``; tiles at the edges may be smaller."""
        return self.pool(torch.ones(tuple(shape), dtype=torch.bool))

    def least(self, shape: Shape) -> int:
        """How many weights of a layer are never pruned: those that "N:M" keeps, 0 for the others."""
        if self.of is None:
            return 0
        kept, group = self.of
        height, width = self._size(shape)
        return height * (width // group * kept + min(kept, width % group))

    def protected(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Tiles that may not be pruned: for "N:M" the N survivors of each group with the highest scores.

        Among equal scores the later is protected, as the earlier is pruned first.

        Args:
            scores, mask: shape of the weight; mask is bool.

        Returns:
            Bool ``[tiles]``.
        """
        if self.of is None:
            return torch.zeros(self.sizes(mask.shape).shape, dtype=torch.bool)
        kept, group = self.of
        padding = (0, -self._size(mask.shape)[1] % group)
        score = F.pad(self._matrix(scores).to(torch.float64), padding).reshape(-1, group)
        alive = F.pad(self._matrix(mask), padding).reshape(-1, group)
        # The pruned first, then by score, then by position: two stable sorts, since no score is below every other.
        order = score.masked_fill(~alive, 0.0).argsort(dim=1, stable=True)
        order = order.gather(1, alive.gather(1, order).to(torch.int8).argsort(dim=1, stable=True))
        best = torch.zeros_like(alive).scatter_(1, order[:, group - kept :], True) & alive
        height, width = self._size(mask.shape)
        return best.reshape(height, -1)[:, :width].reshape(-1)

    def shuffled(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        """A mask that keeps as many weights at random positions, still of this granularity.

        Whole tiles change places, and only with tiles of their own size (those at an edge may be smaller), so that
        counts stay exact and blocks stay blocks. For "N:M" weights change places within their groups, and groups with
        each other, so that every group keeps a count that it had somewhere.
        """
        if self.of is not None:
            return self.shuffled_groups([mask], generator)[0]
        sizes = self.sizes(mask.shape)
        tiles = self.pool(mask.cpu()) > 0
        for size in sizes.unique().tolist():
            (places,) = (sizes == size).nonzero(as_tuple=True)
            tiles[places] = tiles[places[torch.randperm(len(places), generator=generator)]]
        return self.expand(tiles, mask.shape).to(mask.device)

    def shuffled_groups(self, masks: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """For "N:M": masks whose groups have changed places with groups of their own width, and their weights too."""
        assert self.of is not None  # whoever calls has asked
        matrices = [self._matrix(mask.cpu()).clone() for mask in masks]
        pieces: dict[int, list[Tensor]] = {}
        for matrix in matrices:
            whole = matrix.shape[1] // self.of[1] * self.of[1]
            for part, width in ((matrix[:, :whole], self.of[1]), (matrix[:, whole:], matrix.shape[1] - whole)):
                if part.numel():
                    pieces.setdefault(width, []).append(part)
        for width, parts in pieces.items():
            groups = torch.cat([part.reshape(-1, width) for part in parts])
            groups = groups[torch.randperm(len(groups), generator=generator)]
            groups = groups.gather(1, torch.rand(groups.shape, generator=generator, dtype=torch.float64).argsort(dim=1))
            for part, new in zip(parts, groups.split([part.numel() // width for part in parts]), strict=True):
                part.copy_(new.reshape(part.shape))  # a view of its matrix
        return [matrix.reshape(mask.shape).to(mask.device) for matrix, mask in zip(matrices, masks, strict=True)]

    @property
    def _single(self) -> bool:
        return (self.rows, self.cols) == (1, 1)

    @property
    def channels_last(self) -> bool:
        """Columns of a convolution's weight go by kernel position first."""
        return self.view == "tap"

    def _by_tap(self, shape: Shape) -> bool:
        return self.view == "tap" and len(shape) > 2

    def _matrix(self, weight: Tensor) -> Tensor:
        if self._by_tap(weight.shape):
            assert self.cols is not None
            return tap_matrix(weight, self.cols)
        if self.view == "channel":
            weight = weight.transpose(0, 1)
        matrix = weight.reshape(self._size(weight.shape) if self.view == "kernel" else (weight.shape[0], -1))
        return matrix.contiguous()  # sums must not depend on the strides of what came

    def _size(self, shape: Shape) -> tuple[int, int]:
        """(height, width) of the view."""
        if self.view == "channel":
            return shape[1], shape[0] * math.prod(shape[2:])
        if self.view == "kernel":
            return shape[0] * shape[1], math.prod(shape[2:])
        if self._by_tap(shape):  # channels of a tap are padded to whole tiles
            assert self.cols is not None
            return shape[0], math.prod(shape[2:]) * math.ceil(shape[1] / self.cols) * self.cols
        return shape[0], math.prod(shape[1:])

    def _grid(self, shape: Shape) -> tuple[int, int, int, int]:
        """Tiles per column and per row of the view, and the height and width of a tile."""
        height, width = self._size(shape)
        rows = max(1, height) if self.rows is None else self.rows
        cols = max(1, width) if self.cols is None else self.cols
        return math.ceil(height / rows), math.ceil(width / cols), rows, cols


@dataclass(frozen=True)
class Form:
    """One spelling of a granularity.

    Attributes:
        spelling: for the message that lists them.
        pattern: regular expression of the whole text; its groups are numbers.
        make: (text, *numbers) -> Granularity; it raises ArgumentError for numbers that make no sense.
    """

    spelling: str
    pattern: str
    make: Callable[..., Granularity]


def _vector(text: str, rows: int, cols: int) -> Granularity:
    if min(rows, cols) != 1:
        what = "'vector:Rx1' or 'vector:1xC' ('block:RxC' is a block)"
        raise ArgumentError(expected("granularity", what, repr(text)))
    return Granularity(text, rows, cols)


def _n_of_m(text: str, kept: int, group: int) -> Granularity:
    if kept >= group:
        raise ArgumentError(expected("granularity", "'N:M' with N below M, such as '2:4'", repr(text)))
    return Granularity(text, of=(kept, group))


_NUMBER = r"([1-9]\d*)"

FORMS: tuple[Form, ...] = (
    Form("'weight'", "weight", Granularity),
    Form("'row'", "row", lambda text: Granularity(text, 1, None)),
    Form("'block:RxC', such as 'block:16x16'", f"block:{_NUMBER}x{_NUMBER}", Granularity),
    Form(
        "'block:RxC:channels_last'",
        f"block:{_NUMBER}x{_NUMBER}:channels_last",
        lambda text, rows, cols: Granularity(text, rows, cols, view="tap"),
    ),
    Form("'vector:Rx1'", f"vector:{_NUMBER}x{_NUMBER}", _vector),
    Form("'column'", "column", lambda text: Granularity(text, None, 1)),
    Form("'filter'", "filter", lambda text: Granularity(text, 1, None, convolutions=True)),
    Form("'channel'", "channel", lambda text: Granularity(text, 1, None, view="channel")),
    Form("'kernel'", "kernel", lambda text: Granularity(text, 1, None, view="kernel", convolutions=True)),
    Form("'N:M', such as '2:4'", f"{_NUMBER}:{_NUMBER}", _n_of_m),
)

"""What every sparse layout offers: where the live weights of one dense tensor are, and how to move between both views.

A layout holds index tensors only. The weights themselves are a plain strided tensor ``values`` that lives elsewhere
(an ``nn.Parameter``), so that optimisers, all-reduce and deepcopy see nothing special. A convolution weight
``[out, in / groups, *kernel]`` is treated as the matrix ``[rows, cols] = [out, in / groups * prod(kernel)]``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected

__all__ = ["Layout", "check_mask", "compressed", "from_tap_matrix", "matrix_view", "tap_matrix", "transpose_compressed"]

Self = TypeVar("Self", bound="Layout")

#: Index tensors are int32: half the memory traffic of torch's default int64, and no layer has 2**31 weights.
MAX_NUMEL = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Layout(ABC):
    """Base of the layouts; a frozen dataclass of index tensors.

    Attributes:
        shape: shape of the dense weight: ``(out, in)`` or ``(out, in / groups, *kernel)``.
        index: the index tensors in the order of ``INDEX_NAMES``.
        cols: columns of the matrix view: input features, or input channels of a group times kernel positions.
    """

    kind: ClassVar[str]
    #: Names of the index tensors, in the order in which the ops take them.
    INDEX_NAMES: ClassVar[tuple[str, ...]]
    #: Those that identify the mask; the others follow from them.
    KEY_NAMES: ClassVar[tuple[str, ...]]

    shape: tuple[int, ...]
    # Derived once: every call of an operator asks for them.
    index: tuple[Tensor, ...] = field(init=False, repr=False)
    cols: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", tuple([getattr(self, name) for name in self.INDEX_NAMES]))
        object.__setattr__(self, "cols", math.prod(self.shape[1:]))

    @property
    def rows(self) -> int:
        """Rows of the matrix view: output features or channels."""
        return self.shape[0]

    @property
    def numel(self) -> int:
        """Number of weights of the dense tensor."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Share of the weights that are kept, ``nnz / numel``; 0 for an empty tensor."""
        return self.nnz / self.numel if self.numel else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all index tensors."""
        return sum(tensor.nbytes for tensor in self.index)

    @property
    def device(self) -> torch.device:
        """Device of the index tensors."""
        return self.index[0].device

    def to(self: Self, device: torch.device | str) -> Self:
        """The same layout with its index tensors on ``device``; itself where they are there.

        16-bit indices are for the CPU alone (:meth:`CSR.narrow`): elsewhere they are widened to int32.
        """
        on_cpu = torch.device(device).type == "cpu"
        index = [tensor.to(device) for tensor in self.index]
        if not on_cpu:  # widened where it arrives: half the bytes to copy
            index = [tensor.to(torch.int32) if tensor.dtype == torch.uint16 else tensor for tensor in index]
        # Compared tensor by tensor: only torch knows whether "cuda" is the device that they are on.
        if all(new is old for new, old in zip(index, self.index, strict=True)):
            return self
        named: dict[str, Any] = dict(zip(self.INDEX_NAMES, index, strict=True))
        return replace(self, **named)

    @property
    def channels_last(self) -> bool:
        """Whether the compact values follow the weight in channels_last memory order, see :class:`BSR`."""
        return False

    @property
    @abstractmethod
    def nnz(self) -> int:
        """Number of live weights; padding inside a block is not live."""

    @property
    @abstractmethod
    def values_shape(self) -> tuple[int, ...]:
        """Shape of the compact ``values``."""

    @abstractmethod
    def with_index(self: Self, index: tuple[Tensor, ...]) -> Self:
        """The same kind and shape over other index tensors, in the order of ``INDEX_NAMES``."""

    @abstractmethod
    def gather(self, dense: Tensor) -> Tensor:
        """Read ``values`` (``values_shape``) out of ``dense`` (``shape``); padding becomes 0. Differentiable."""

    @abstractmethod
    def scatter(self, values: Tensor) -> Tensor:
        """Dense tensor of shape ``shape`` with ``values`` in place and 0 where pruned. Differentiable."""

    @abstractmethod
    def mask(self) -> Tensor:
        """Bool tensor of shape ``shape``: True where a weight is kept."""

    @abstractmethod
    def validate(self) -> None:
        """Read all index data and raise ``ArgumentError`` naming the first field that is inconsistent."""

    def check_values(self, values: Tensor) -> None:
        """Raise ``ArgumentError`` unless ``values`` has this layout's shape and device and a floating dtype."""
        if not isinstance(values, Tensor):
            raise ArgumentTypeError(expected("values", "a tensor", type(values).__name__))
        if values.shape != self.values_shape:
            raise ArgumentError(expected("values", f"shape {list(self.values_shape)}", f"{list(values.shape)}"))
        if not values.dtype.is_floating_point:
            raise ArgumentError(expected("values", "a floating dtype", str(values.dtype)))
        if values.device != self.device:
            raise ArgumentError(expected("values", f"device {self.device} of the layout", str(values.device)))

    def check_dense(self, dense: Tensor) -> None:
        """Raise ``ArgumentError`` unless ``dense`` has the shape of the dense weight."""
        if tuple(dense.shape) != self.shape:
            raise ArgumentError(expected("dense", f"shape {list(self.shape)}", f"{list(dense.shape)}"))

    def __repr__(self) -> str:
        extra = "".join(f", {name}={value}" for name, value in self._describe().items())
        return f"{type(self).__name__}(shape={self.shape}, nnz={self.nnz}, density={self.density:.4g}{extra})"

    def _describe(self) -> dict[str, Any]:
        return {}

    def _check_index(self, name: str, length: int, low: int, high: int, *, ascending: bool = False) -> None:
        """``self.<name>`` must be a 1-D integer tensor of ``length`` entries in [low, high], optionally ascending."""
        tensor: Tensor = getattr(self, name)
        if tensor.dtype not in (torch.int32, torch.uint16):
            raise ArgumentError(expected(name, "int32 (or uint16 once narrowed)", str(tensor.dtype)))
        if tuple(tensor.shape) != (length,):
            raise ArgumentError(expected(name, f"shape [{length}]", f"{list(tensor.shape)}"))
        if length == 0:
            return
        wide = tensor.to(torch.int64)
        smallest, largest = int(wide.min()), int(wide.max())
        if smallest < low or largest > high:
            raise ArgumentError(expected(name, f"entries in [{low}, {high}]", f"[{smallest}, {largest}]"))
        if ascending and bool((wide[1:] < wide[:-1]).any()):
            raise ArgumentError(expected(name, "entries in ascending order", "a descent"))


def check_mask(mask: Tensor, argument: str = "mask") -> Tensor:
    """Return ``mask`` when it is a bool tensor of 2 to 4 dimensions that int32 can index; raise otherwise."""
    if not isinstance(mask, Tensor):
        raise ArgumentTypeError(expected(argument, "a bool tensor", type(mask).__name__))
    if mask.dtype != torch.bool:
        raise ArgumentError(expected(argument, "dtype torch.bool", str(mask.dtype)))
    if not 2 <= mask.dim() <= 4:
        raise ArgumentError(expected(argument, "2 to 4 dimensions, [out, in, *kernel]", f"shape {list(mask.shape)}"))
    if mask.numel() > MAX_NUMEL:
        raise ArgumentError(expected(argument, f"at most {MAX_NUMEL} elements", str(mask.numel())))
    return mask


def matrix_view(dense: Tensor) -> Tensor:
    """``[out, in, *kernel]`` as the matrix ``[rows, cols]``; ``reshape(rows, -1)`` would fail for empty tensors."""
    return dense.reshape(dense.shape[0], math.prod(dense.shape[1:]))


def tap_matrix(dense: Tensor, width: int) -> Tensor:
    """``[out, in, *kernel]`` as the matrix ``[out, taps * in]`` of its channels_last memory order: the columns are the
    kernel positions (taps), and within each of them its input channels, padded with zeros to a multiple of ``width``.
    """
    last = dense.movedim(1, -1)
    channels, size = dense.shape[1], (*last.shape[:-1], -(-dense.shape[1] // width) * width)
    padded = F.pad(last, (0, size[-1] - channels)) if dense.numel() else last.new_zeros(size)
    return matrix_view(padded)


def from_tap_matrix(matrix: Tensor, shape: tuple[int, ...], width: int) -> Tensor:
    """The way back: the tensor of ``shape`` whose :func:`tap_matrix` is ``matrix``."""
    out, channels, *kernel = shape
    last = matrix.reshape(out, *kernel, -(-channels // width) * width)
    return last[..., :channels].movedim(-1, 1).contiguous()


def compressed(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Compress a bool matrix row by row into int32 ``(crow_indices, col_indices)``.

    ``col_indices[crow_indices[r]:crow_indices[r + 1]]`` are the columns of row ``r`` in ascending order.
    """
    crow = torch.zeros(occupied.shape[0] + 1, dtype=torch.int32, device=occupied.device)
    torch.cumsum(occupied.sum(1), 0, dtype=torch.int32, out=crow[1:])
    return crow, occupied.nonzero()[:, 1].to(torch.int32)


def transpose_compressed(crow: Tensor, col: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """Column-major view of a compressed matrix: int32 ``(ccol_indices, row_indices, perm)``.

    ``perm[k]`` is the row-major position of the k-th entry in column-major order: values never move, they are read
    through ``perm``. Rows ascend inside a column because the sort is stable.
    """
    wide = col.to(torch.int64)
    row = torch.repeat_interleave(torch.arange(crow.numel() - 1, device=crow.device), crow.diff().to(torch.int64))
    # torch sorts 16-bit integers by radix, five times as fast.
    perm = torch.sort(wide if cols > 1 << 15 else col.to(torch.int16), stable=True).indices
    ccol = torch.zeros(cols + 1, dtype=torch.int32, device=crow.device)
    torch.cumsum(torch.bincount(wide, minlength=cols), 0, dtype=torch.int32, out=ccol[1:])
    return ccol, row[perm].to(torch.int32), perm.to(torch.int32)

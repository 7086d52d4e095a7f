"""cuSPARSELt's buffers for 2:4 weights, put together without compressing anything in a training step.

``torch._cslt_compress`` wants the dense weight and makes one buffer of values and metadata. The metadata depends on the
mask alone, so it is taken from such a buffer once; every step then copies its values in front of it, one pass over
them. How the buffer is laid out is not documented, and may differ between devices: it is found out for each mask, and
what was found is verified with a product, before anything relies on it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from lth_sparse.errors import BackendError, expected
from lth_sparse.formats import Layout, SemiStructured
from lth_sparse.ops.reference import layout_of

__all__ = ["Packing", "packing_of"]

#: Columns of the identity that the verification multiplies at a time, and a base whose digits are exact in bfloat16.
CHECKED, BASE = 1024, 128


@dataclass(frozen=True)
class Packing:
    """How cuSPARSELt stores the matrices of one mask: values in ``order`` (as they are, where None), then ``tail``."""

    order: Tensor | None
    tail: Tensor

    def pack(self, values: Tensor) -> Tensor:
        """The buffer that ``torch._cslt_sparse_mm`` takes: one pass over the values, no compression."""
        flat = values.reshape(-1)
        return torch.cat((flat if self.order is None else flat.index_select(0, self.order), self.tail))


#: Packings by mask (the memory of its ``positions`` and the shape of the weight: not by tensor, for compilers pass
#: aliases), dtype and whether transposed; None where cuSPARSELt's buffer is not understood. A weak reference keeps the
#: address of a storage from being used again.
_packings: dict[tuple[StorageWeakRef, int, tuple[int, ...], torch.dtype, bool], Packing | None] = {}


def packing_of(index: list[Tensor], shape: list[int], values: Tensor, transposed: bool) -> Packing | None:
    """Packing for one mask and dtype: made at the first call with the mask, which waits for the device."""
    positions = index[0]
    storage, offset = StorageWeakRef(positions.untyped_storage()), int(positions.storage_offset())
    key = (storage, offset, tuple(shape), values.dtype, transposed)
    if key not in _packings:
        for old in [old for old in _packings if old[0].expired()]:
            del _packings[old]
        if torch.cuda.is_current_stream_capturing():
            what = "a step with this mask before the CUDA graph is captured, for it is to be packed for cuSPARSELt"
            raise BackendError(expected("layout", what, "the first one during a capture"))
        layout = layout_of("2:4", shape, index, values)
        _packings[key] = _learn(SemiStructured.from_mask(layout.mask().t()) if transposed else layout, values)
        if _packings[key] is None:
            message = f"cuSPARSELt {torch.backends.cusparselt.version()} stores 2:4 weights in an unknown order on "
            message += f"{torch.cuda.get_device_name(values.device)}: layers with layout='2:4' run the reference"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
    return _packings[key]


def _learn(layout: Layout, like: Tensor) -> Packing | None:
    """Find out how cuSPARSELt stores the matrices of ``layout``, for it does not document that.

    Numbered values are compressed to see where each goes (all differ from zero, so that every slot is stored), and a
    buffer put together here is then multiplied with the identity: the product must be the matrix itself.
    """
    cols, count = layout.cols, layout.numel // 2
    positions, value_mask, *others = layout.index
    every = SemiStructured(layout.shape, positions, value_mask.new_empty(0), *others, live=count)
    numbers = torch.arange(count, device=like.device)
    order, place, tail = torch.zeros_like(numbers), 1, None
    while place < count or tail is None:
        digits = (numbers // place % BASE + 1).to(like.dtype).view(every.values_shape)
        packed = torch._cslt_compress(every.scatter(digits))
        if packed.numel() < count:
            return None
        order += place * (packed[:count].to(torch.int64) - 1)
        place, tail = place * BASE, packed[count:].clone()
    if not torch.equal(order.sort().values, numbers):
        return None
    packing = Packing(None if torch.equal(order, numbers) else order.to(torch.int32), tail)
    probe = (numbers * 7 % BASE + 1).to(like.dtype).view(every.values_shape)
    packed, dense = packing.pack(probe), every.scatter(probe)
    for first in range(0, cols, CHECKED):
        width = min(CHECKED, cols - first)
        identity = torch.zeros(width, cols, dtype=like.dtype, device=like.device)
        identity[:, first : first + width].fill_diagonal_(1)
        product = torch._cslt_sparse_mm(packed, identity.t(), transpose_result=True)
        if not torch.equal(product, dense[:, first : first + width].t()):
            return None
    return packing

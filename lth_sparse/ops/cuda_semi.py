"""CUDA implementation of linear layers with 2:4 weights: torch's own products on the sparse tensor cores.

The forward pass ``y^T = W x^T + b`` halves the multiplications. The backward pass saves fewer: ``dx = dy W`` needs the
transpose of W, which is 2:4 only for a transposable mask; then it runs on the sparse cores, too, with the values
permuted (one pass over them). For any other mask W is expanded, two passes over the dense weight and one over an index
of four bytes per weight, and the product is the dense one. ``dvalues`` is the dense product ``dy^T x``, of which the
stored slots are read: the sparse cores have no product with a sparse result. A training step over many rows hence
saves up to a sixth of its multiplications, or a third with a transposable mask.

No part of it waits for the device, once :func:`_packing` has seen the mask: run a layer once before capturing a graph.
Registered also where Triton is missing, as nothing here needs it. Convolutions run the reference.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from lth_sparse.errors import BackendError, expected
from lth_sparse.formats import Layout, SemiStructured
from lth_sparse.ops import schemas
from lth_sparse.ops.backend import kernel_or_reference
from lth_sparse.ops.library import REFERENCES, implement
from lth_sparse.ops.reference import before_relu, layout_of
from lth_sparse.ops.sparse_cores import CUSPARSELT, SEMI_DTYPES, product_of
from lth_sparse.ops.strides import is_feature_major, kept_format

__all__: list[str] = []

#: Rows of activations come in multiples of this: 16 bytes, the alignment that both products want of their operands.
ROWS = 8
BYTES = 16

#: Columns of the identity that the check of a cuSPARSELt buffer multiplies at a time, and a base whose digits are
#: exact in bfloat16.
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


def _packing(index: list[Tensor], shape: list[int], values: Tensor, transposed: bool) -> Packing | None:
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


def _aligned(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy of it at an address that the products can load from."""
    return tensor.clone(memory_format=torch.contiguous_format) if tensor.data_ptr() % BYTES else tensor


def _operand(x: Tensor) -> Tensor:
    """``x`` ``[batch, features]`` as ``[features, padded batch]``: a view of it wherever that is aligned."""
    padding = -x.shape[0] % ROWS
    if is_feature_major(x):
        return _aligned(F.pad(x.t(), (0, padding)) if padding else x.t())
    return _aligned(F.pad(x, (0, 0, 0, padding)) if padding else x.contiguous()).t()


def _product(
    values: Tensor, index: list[Tensor], shape: list[int], x: Tensor, bias: Tensor | None, transposed: bool = False
) -> Tensor | None:
    """``x W^T + b`` (or ``x W``), with W given by its live ``values``; None where this device has no kernel for it."""
    route = product_of(x.get_device())
    out = shape[1] if transposed else shape[0]
    packing = _packing(index, shape, values, transposed) if route == CUSPARSELT else None
    if route is None or (route == CUSPARSELT and packing is None):
        return None
    if x.shape[0] == 0:
        return x.new_empty(0, out)
    _, _, meta, meta_t, perm_t = index
    if transposed:
        values = values.reshape(-1).index_select(0, perm_t).view(out, -1)
    operand = _operand(x)
    bias = None if bias is None else _aligned(bias.contiguous())
    if packing is not None:
        packed = packing.pack(values)
        # Written transposed where the result is to be contiguous: no pass to turn it round.
        turned = not is_feature_major(x)
        y = torch._cslt_sparse_mm(packed, operand, bias=bias, transpose_result=turned)
        return kept_format((y if turned else y.t())[: x.shape[0]], x)
    values, meta = _aligned(values.contiguous()), meta_t if transposed else meta
    if bias is None:
        y = torch._sparse_semi_structured_mm(values, meta, operand)
    else:
        y = torch._sparse_semi_structured_addmm(bias, values, meta, operand)
    return kept_format(y.t()[: x.shape[0]], x)


def _live(values: Tensor, value_mask: Tensor) -> Tensor:
    """``values`` with 0 in slots that are not live."""
    return values * value_mask if value_mask.numel() else values


def _linear(
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], shape: list[int], relu: bool = False
) -> Tensor:
    with torch.cuda.device_of(x):
        y = _product(_live(values, index[1]), index, shape, x, bias) if index[2].numel() else None
    if y is None:
        y = REFERENCES["linear_semi_structured"](x, values, bias, index, shape)
    return y.relu_() if relu else y


def _linear_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    shape: list[int],
    wanted: list[bool],
    activated: Tensor | None = None,
) -> schemas.Gradients:
    grad = before_relu(grad, activated)
    dx = None
    if wanted[0] and index[3].numel():
        with torch.cuda.device_of(grad):
            dx = _product(_live(values, index[1]), index, shape, grad, None, transposed=True)
    others = [wanted[0] and dx is None, *wanted[1:]]
    found, dvalues, dbias = REFERENCES["linear_semi_structured_backward"](grad, x, values, index, shape, others)
    return found if dx is None else kept_format(dx, x), dvalues, dbias


for _name, _kernel in (("linear_semi_structured", _linear), ("linear_semi_structured_backward", _linear_backward)):
    implement(_name, "CUDA", kernel_or_reference(_name, _kernel, SEMI_DTYPES))

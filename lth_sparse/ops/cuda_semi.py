"""CUDA implementation of linear layers with 2:4 weights: torch's own products on the sparse tensor cores.

The forward pass ``y^T = W x^T + b`` halves the multiplications. The backward pass saves fewer: ``dx = dy W`` needs the
transpose of W, which is 2:4 only for a transposable mask; then it runs on the sparse cores, too, with the values
permuted (one pass over them). For any other mask W is expanded, two passes over the dense weight and one over an index
of four bytes per weight, and the product is the dense one. ``dvalues`` is the dense product ``dy^T x``, of which the
stored slots are read: the sparse cores have no product with a sparse result. A training step over many rows hence
saves up to a sixth of its multiplications, or a third with a transposable mask.

No part of it waits for the device, once cuSPARSELt has seen the mask: run a layer once before capturing a graph.
Registered also where Triton is missing, as nothing here needs it. Convolutions run the reference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.ops import schemas
from lth_sparse.ops.backend import kernel_or_reference
from lth_sparse.ops.cusparselt import packing_of
from lth_sparse.ops.library import REFERENCES, implement
from lth_sparse.ops.reference import activate_, before_relu
from lth_sparse.ops.sparse_cores import CUSPARSELT, SEMI_DTYPES, product_of
from lth_sparse.ops.strides import is_feature_major, kept_format

__all__: list[str] = []

#: Rows of activations come in multiples of this: 16 bytes, the alignment that both products want of their operands.
ROWS = 8
BYTES = 16


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
    packing = packing_of(index, shape, values, transposed) if route == CUSPARSELT else None
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
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], shape: list[int], activation: str = "none"
) -> Tensor:
    with torch.cuda.device_of(x):
        y = _product(_live(values, index[1]), index, shape, x, bias) if index[2].numel() else None
    if y is None:
        y = REFERENCES["linear_semi_structured"](x, values, bias, index, shape)
    return activate_(y, activation)


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

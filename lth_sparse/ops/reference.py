"""Every operator in plain torch: the truth the kernels are tested against, and what runs where no kernel exists.

The weight is made dense, torch's own product does the rest, and the gradient of the live weights is read out of the
dense one. It works on every device and in every dtype, saves no time, and is differentiable to any order, which is
why a second derivative through a sparse layer goes this way too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.formats import BSR, CSR, Layout

__all__ = ["before_relu", "conv2d", "conv2d_backward", "layout_of", "linear", "linear_backward"]


def layout_of(
    kind: str, shape: Sequence[int], index: Sequence[Tensor], values: Tensor, channels_last: bool = False
) -> Layout:
    """The layout object over index tensors that came through an operator call."""
    if kind == "csr":
        return CSR(tuple(shape), *index)
    block = (int(values.shape[1]), int(values.shape[2]))
    # The count of live entries is not needed here, and counting would read the data.
    return BSR(tuple(shape), *index, block=block, live=-1, channels_last=channels_last)


def before_relu(grad: Tensor, activated: Tensor | None) -> Tensor:
    """The gradient in front of a ReLU that gave ``activated``; ``grad`` itself where there was none (None)."""
    return grad if activated is None else torch.ops.aten.threshold_backward(grad, activated, 0)


def linear(x: Tensor, values: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
    """``y = x W^T + b`` with ``x`` ``[batch, cols]`` and W the dense form of ``values``."""
    return F.linear(x, layout.scatter(values), bias)


def linear_backward(
    grad: Tensor, x: Tensor, values: Tensor, layout: Layout, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`linear` for x, values and bias; None where ``wanted`` is False."""
    dx = grad @ layout.scatter(values) if wanted[0] else None
    dvalues = layout.gather((grad.t() @ x).view(layout.shape)) if wanted[1] else None
    dbias = grad.sum(0) if wanted[2] else None
    return dx, dvalues, dbias


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    layout: Layout,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Cross-correlation of ``x`` ``[N, C, H, W]`` with the dense form of ``values``, zero padding."""
    return F.conv2d(x, layout.scatter(values), bias, tuple(stride), tuple(padding), tuple(dilation), groups)


def conv2d_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    layout: Layout,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`conv2d` for x, values and bias; None where ``wanted`` is False."""
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        grad,
        x,
        layout.scatter(values),
        [layout.rows],
        list(stride),
        list(padding),
        list(dilation),
        False,  # not transposed
        [0, 0],  # output padding, for transposed convolutions
        groups,
        list(wanted),
    )
    return dx, layout.gather(dweight) if wanted[1] else None, dbias

"""Convolutions for the cases of the block-sparse kernels, and their dense truth; see kernel_cases.py."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from kernel_cases import DEVICE, SMALL
from torch import Tensor

from lth_sparse.formats import BSR
from lth_sparse.formats.layout import from_tap_matrix
from lth_sparse.kernels import bsr_conv, bsr_conv_backward, bsr_conv_nhwc
from lth_sparse.kernels.conv_tiles import Conv
from lth_sparse.kernels.launch import Problem, Tile, heuristic
from lth_sparse.ops.strides import feature_major

#: (x, output channels, convolution, block).
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], int, Conv, tuple[int, int]]] = {
    "3x3": ((2, 8, 6, 5), 32, Conv((3, 3), padding=(1, 1)), (16, 16)),
    "3x3 stride 2, ragged, odd block": ((2, 3, 5, 8), 10, Conv((3, 3), (2, 2), (1, 1)), (4, 3)),
    "3x3 stride 2, no padding, rows left over": ((1, 4, 6, 8), 17, Conv((3, 3), (2, 2)), (16, 16)),
    "unlike height and width": ((2, 5, 7, 8), 20, Conv((3, 2), (2, 1), (1, 2), (1, 2)), (16, 16)),
    "dilation 3, block of whole channels": ((1, 6, 8, 9), 16, Conv((3, 3), (1, 2), (3, 2), (3, 3)), (8, 18)),
    "4 groups of whole block rows": ((2, 8, 5, 6), 16, Conv((3, 3), padding=(1, 1), groups=4), (4, 6)),
    "3 groups, block rows reach over them": ((2, 6, 5, 6), 15, Conv((3, 3), padding=(1, 1), groups=3), (16, 4)),
    "2 groups, stride 2": ((2, 6, 5, 6), 14, Conv((3, 3), (2, 2), (1, 1), groups=2), (4, 16)),
    "depthwise": ((2, 9, 5, 4), 9, Conv((3, 3), padding=(1, 1), groups=9), (4, 5)),
    "1x1": ((2, 40, 5, 4), 37, Conv((1, 1)), (16, 16)),
    "1x1 stride 2, 2 groups": ((2, 8, 5, 6), 24, Conv((1, 1), (2, 2), groups=2), (8, 4)),
    "1x1 padded": ((1, 6, 4, 5), 8, Conv((1, 1), (2, 1), (1, 2)), (4, 4)),
    "5x5 larger than the image": ((2, 2, 3, 4), 6, Conv((5, 5), padding=(2, 2)), (16, 32)),
    "one row, as a conv1d": ((2, 6, 1, 17), 9, Conv((1, 4), (1, 2), (0, 3)), (8, 8)),
    "block larger than the weight": ((2, 3, 5, 4), 20, Conv((3, 3), padding=(1, 1)), (64, 128)),
}
#: Further ones, of blocks within a tap.
MORE: dict[str, tuple[tuple[int, ...], int, Conv, tuple[int, int]]] = {
    "3x3, several blocks of a tap": ((2, 40, 4, 5), 37, Conv((3, 3), padding=(1, 1)), (16, 16)),
    "7x7 stride 2 of 3 channels": ((2, 3, 9, 11), 20, Conv((7, 7), (2, 2), (3, 3)), (16, 4)),
    "3x3 stride 2, wide blocks": ((2, 64, 5, 6), 24, Conv((3, 3), (2, 2), (1, 1)), (8, 64)),
    "3x3, tall blocks": ((1, 24, 5, 6), 70, Conv((3, 3), padding=(1, 1)), (64, 8)),
    "stride 3 of a 2x2 kernel, 2 groups": ((2, 12, 8, 7), 20, Conv((2, 2), (3, 3), groups=2), (4, 4)),
}


class Case:
    """Inputs of one convolution and its dense truth in float64; methods are named by the products of ``launch``."""

    def __init__(
        self,
        name: str,
        dtype: torch.dtype = torch.float32,
        density: float = 0.5,
        batch: int | None = None,
        channels_last: bool = False,
    ):
        size, rows, self.conv, block = (CONVOLUTIONS | MORE)[name]
        size = size if batch is None else (batch, *size[1:])
        shape = (rows, size[1] // self.conv.groups, *self.conv.kernel)
        # Every tap of a channels_last weight has blocks of its own.
        per_tap, taps = (-(-shape[1] // block[1]), self.conv.taps) if channels_last else (0, 1)
        columns = taps * per_tap * block[1] or shape[1] * self.conv.taps
        blocks = torch.rand(-(-rows // block[0]), -(-columns // block[1])) < density
        if len(blocks) > 1:
            blocks[0] = False  # a block row without blocks, where there are others
        if density:
            blocks[-1, -1] = True
        matrix = blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :columns]
        mask = from_tap_matrix(matrix, shape, block[1]) if channels_last else matrix.reshape(shape)
        self.block, self.layout = block, BSR.from_mask(mask, block, channels_last=channels_last)
        self.weight = (torch.randn(shape) * mask).to(dtype)
        self.x, self.bias = torch.randn(size).to(dtype), torch.randn(rows).to(dtype)
        self.grad = torch.randn(size[0], rows, *self.conv.output_size(*size[2:])).to(dtype)

    @property
    def values(self) -> Tensor:
        return self.layout.gather(self.weight).to(DEVICE)

    def index(self, *names: str) -> tuple[Tensor, ...]:
        return tuple(getattr(self.layout, name).to(DEVICE) for name in names)

    def tile(self, product: str, **fields: Any) -> Tile:
        if self.layout.channels_last:
            product = product.replace("conv_", "conv_nhwc_")
        name, pixels = str(self.x.dtype).removeprefix("torch."), self.grad.shape[0] * self.grad.shape[2:].numel()
        return Tile(**(vars(heuristic(SMALL, Problem(product, name, self.block, pixels))) | fields))

    def conv_forward(
        self, bias: bool = True, activation: str = "none", into: Tensor | None = None, **fields: Any
    ) -> Tensor:
        y = torch.empty(self.grad.shape, dtype=self.x.dtype, device=DEVICE) if into is None else into.to(DEVICE)
        index, tile = self.index("crow_indices", "col_indices"), self.tile("conv_forward", **fields)
        term = self.bias.to(DEVICE) if bias else None
        order = self.layout.channels_last
        return bsr_conv.forward(
            self.x.to(DEVICE), self.values, term, *index, y, self.conv, tile, activation, order
        ).cpu()

    def conv_input_gradient(self, into: Tensor | None = None, **fields: Any) -> Tensor:
        dx = torch.empty(self.x.shape, dtype=self.x.dtype, device=DEVICE) if into is None else into.to(DEVICE)
        index = self.index("ccol_indices", "row_indices", "perm")
        tile = self.tile("conv_input_gradient", **fields)
        grad = self.grad.to(DEVICE)
        module = bsr_conv_nhwc if self.layout.channels_last else bsr_conv_backward
        return module.input_gradient(grad, self.values, *index, dx, self.conv, tile).cpu()

    def conv_weight_gradient(self, splits: int = 1, **fields: Any) -> Tensor:
        return self.parameter_gradients(splits, bias=False, **fields)[0]

    def parameter_gradients(self, splits: int = 1, bias: bool = True, **fields: Any) -> list[Tensor]:
        mask = self.layout.value_mask.to(DEVICE) if self.layout.value_mask.numel() else None
        index, tile = self.index("crow_indices", "col_indices"), self.tile("conv_weight_gradient", **fields)
        tensors, order = (self.grad.to(DEVICE), self.x.to(DEVICE)), self.layout.channels_last
        found = bsr_conv_backward.weight_gradient(
            *tensors, self.block, mask, *index, self.conv, tile, splits, order, bias
        )
        return [gradient.cpu() for gradient in found if gradient is not None]

    def truth(self, product: str) -> Tensor:
        x, weight = (tensor.double().requires_grad_() for tensor in (self.x, self.weight))
        conv = self.conv
        y = F.conv2d(x, weight, self.bias.double(), conv.stride, conv.padding, conv.dilation, conv.groups)
        if product == "conv_forward":
            return y.detach()
        of = x if product == "conv_input_gradient" else weight
        found = torch.autograd.grad(y, of, self.grad.double())[0]
        return found if of is x else self.layout.gather(found)


def strided(tensor: Tensor, kind: str) -> Tensor:
    """The same numbers in other strides."""
    if kind == "feature_major":
        return feature_major(tensor)
    if kind == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], 4)[..., 0]

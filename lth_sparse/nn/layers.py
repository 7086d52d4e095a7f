"""SparseLinear, SparseConv1d and SparseConv2d: each names its dense class, its geometry and the op that computes it."""

from __future__ import annotations

from torch import Tensor, nn

from lth_sparse.nn.base import SparseModule
from lth_sparse.nn.fused import fused
from lth_sparse.ops import functional

__all__ = ["DENSE_CLASSES", "SparseConv1d", "SparseConv2d", "SparseLinear"]


class SparseLinear(SparseModule):
    """``y = x W^T + b`` over the live weights of W ``[out_features, in_features]``; x ``[*, in]``, y ``[*, out]``.

    See :class:`SparseModule` for construction, attributes and state.
    """

    dense_class = nn.Linear
    GEOMETRY = ("in_features", "out_features")

    in_features: int
    out_features: int

    def forward(self, input: Tensor) -> Tensor:
        if self.activation is None:
            return functional.linear(input, self.values, self.layout, self.bias)
        return fused(self, functional.linear, input)


class _SparseConv(SparseModule):
    """Geometry shared by the convolutions."""

    GEOMETRY = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    )

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str


class SparseConv1d(_SparseConv):
    """1-D convolution over the live weights of W ``[out, in / groups, k]``; options as in ``nn.Conv1d``.

    x ``[N, in, L]`` or ``[in, L]``. See :class:`SparseModule` for construction, attributes and state.
    """

    dense_class = nn.Conv1d

    def forward(self, input: Tensor) -> Tensor:
        options = (self.stride, self.padding, self.dilation, self.groups, self.padding_mode)
        if self.activation is None:
            return functional.conv1d(input, self.values, self.layout, self.bias, *options)
        return fused(self, functional.conv1d, input, *options)


class SparseConv2d(_SparseConv):
    """2-D convolution over the live weights of W ``[out, in / groups, kh, kw]``; options as in ``nn.Conv2d``.

    x ``[N, in, H, W]`` or ``[in, H, W]``. See :class:`SparseModule` for construction, attributes and state.
    """

    dense_class = nn.Conv2d

    def forward(self, input: Tensor) -> Tensor:
        options = (self.stride, self.padding, self.dilation, self.groups, self.padding_mode)
        if self.activation is None:
            return functional.conv2d(input, self.values, self.layout, self.bias, *options)
        return fused(self, functional.conv2d, input, *options)


#: Dense class -> the sparse class that takes its place.
DENSE_CLASSES: dict[type[nn.Module], type[SparseModule]] = {
    cls.dense_class: cls for cls in (SparseLinear, SparseConv1d, SparseConv2d)
}

"""SparseLinearStack: B sparse linear layers of one shape, each with its own mask and input, in one launch.

Ensembles, several seeds that are trained at once, experts, heads: layers too small to fill a machine one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats import BSR, Layout, Reordered
from lth_sparse.nn.base import SparseModule, build_layout
from lth_sparse.nn.fused import fused
from lth_sparse.nn.layers import SparseLinear
from lth_sparse.nn.reparam import lost_hooks
from lth_sparse.ops import functional

__all__ = ["LinearStack", "SparseLinearStack"]


class LinearStack(nn.Module):
    """``y[*, b] = x[*, b] W_b^T + c_b``: the dense form of a :class:`SparseLinearStack`.

    Attributes:
        weight: ``[layers * out_features, in_features]``, the layers' weights below each other.
        bias: ``[layers * out_features]`` or None.
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        layers: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features), ("layers", layers)):
            if type(size) is not int or size < 1:
                raise ArgumentError(expected(name, "a positive int", repr(size)))
        self.in_features, self.out_features, self.layers = in_features, out_features, layers
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = Parameter(torch.empty(layers * out_features, in_features, **options))
        self.register_parameter("bias", Parameter(torch.empty(layers * out_features, **options)) if bias else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw each layer as ``nn.Linear`` does: weights and biases from ``U(-1, 1) / sqrt(in_features)``."""
        bound = self.in_features**-0.5
        self.weight.uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return functional.dense_linear_stack(input, self.weight, self.bias, self.layers)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, layers={self.layers}"
        return f"{sizes}, bias={self.bias is not None}"


class SparseLinearStack(SparseModule):
    """``y[*, b] = x[*, b] W_b^T + c_b`` over the live weights of B layers; x ``[*, B, in]``, y ``[*, B, out]``.

    Made by :meth:`from_layers`, or by ``from_dense`` of a :class:`LinearStack` and a mask ``[B * out, in]``. Attributes
    and state as of every :class:`SparseModule`; its weight is ``[B * out_features, in_features]``.

    Example::

        >>> stack = SparseLinearStack.from_layers([member.fc for member in ensemble])
        >>> y = stack(torch.stack([x0, x1, x2], dim=1))  # [batch, 3, in] -> [batch, 3, out]
        >>> fc0, fc1, fc2 = stack.unstack()
    """

    dense_class = LinearStack
    GEOMETRY = ("in_features", "out_features", "layers")

    in_features: int
    out_features: int
    layers: int

    def __init__(self, module: nn.Module, layout: Layout, values: Parameter | None = None) -> None:
        functional.check_stack(layout, module.layers)  # type: ignore[arg-type]
        super().__init__(module, layout, values)

    @classmethod
    def from_layers(cls, layers: Sequence[SparseLinear]) -> SparseLinearStack:
        """The stack of ``layers``, with copies of their weights and biases: it trains on its own.

        Args:
            layers: SparseLinear of equal sizes, dtype, device, layout (and block), all or none with a bias. With
                BSR the rows of a block divide ``out_features``.

        Raises:
            ArgumentTypeError: no sequence, or one that holds anything else.
            ArgumentError: an empty one, or naming the first layer that differs from ``layers[0]`` and in what; a layer
                with hooks, which would be lost.
        """
        if not isinstance(layers, (Sequence, nn.ModuleList)):
            raise ArgumentTypeError(expected("layers", "a sequence of SparseLinear", type(layers).__name__))
        if not layers:
            raise ArgumentError(expected("layers", "at least one SparseLinear", "none"))
        for index, layer in enumerate(layers):
            if type(layer) is not SparseLinear:
                raise ArgumentTypeError(expected(f"layers[{index}]", "a SparseLinear", type(layer).__name__))
            if reason := lost_hooks(layer):
                raise ArgumentError(f"layers[{index}]: expected a layer without hooks, but {reason}")
            for (name, first), got in zip(_traits(layers[0]).items(), _traits(layer).values(), strict=True):
                if got != first:
                    raise ArgumentError(expected(f"layers[{index}]", f"{name} {first} of layers[0]", str(got)))
        first_layer, layout = layers[0], layers[0].layout
        dense = LinearStack(
            first_layer.in_features, first_layer.out_features, len(layers), first_layer.bias is not None, device="meta"
        )
        trained = first_layer.values.requires_grad
        dense.weight = Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=trained)
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        if biases and first_layer.bias is not None:
            dense.bias = Parameter(torch.cat(biases), requires_grad=first_layer.bias.requires_grad)
        dense.training = first_layer.training
        stack = cls(dense, _layout_like(layout, torch.cat([layer.mask for layer in layers])))
        stack.activation = first_layer.activation
        return stack

    @torch.no_grad()
    def unstack(self) -> list[SparseLinear]:
        """The layers one by one, with copies of their weights and biases."""
        found = []
        masks, weights = self.mask.chunk(self.layers), self.weight.chunk(self.layers)
        biases = [None] * self.layers if self.bias is None else self.bias.detach().chunk(self.layers)
        for mask, weight, bias in zip(masks, weights, biases, strict=True):
            linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
            linear.weight = Parameter(weight, requires_grad=self.values.requires_grad)
            if bias is not None and self.bias is not None:
                linear.bias = Parameter(bias.clone(), requires_grad=self.bias.requires_grad)
            linear.training = self.training
            layer = SparseLinear(linear, _layout_like(self.layout, mask))
            layer.activation = self.activation
            found.append(layer)
        return found

    def forward(self, input: Tensor) -> Tensor:
        if self.activation is None:
            return functional.linear_stack(input, self.values, self.layout, self.bias, self.layers)
        return fused(self, functional.linear_stack, input, self.layers)


def _traits(layer: SparseLinear) -> dict[str, Any]:
    """What the layers of a stack have in common."""
    bias = layer.bias
    return {
        "shape": [layer.out_features, layer.in_features],
        "dtype": layer.values.dtype,
        "device": layer.values.device,
        "layout": layer.layout.kind,
        "block": layer.layout.block if isinstance(layer.layout, BSR) else None,
        "bias": "no bias" if bias is None else "a bias",
        "activation": layer.activation,
        "requires_grad": (layer.values.requires_grad, bias is not None and bias.requires_grad),
        "training": layer.training,
    }


def _layout_like(layout: Layout, mask: Tensor) -> Layout:
    """The layout of ``mask`` of the kind, and with the blocks, of ``layout``."""
    if isinstance(layout, Reordered):
        raise ArgumentError(expected("layers", "ones that keep the order of their rows", f"layout {layout.kind!r}"))
    if isinstance(layout, BSR):
        return build_layout("bsr", mask, block=layout.block, cover="zeros")
    return build_layout(layout.kind, mask)

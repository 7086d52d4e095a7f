"""Gradients of dense weights out of sparse layers, where they are wanted: for one step, by hooks that come and go.

A hook on the layer keeps its input, one on its output the gradient that arrives there. Nothing is computed, and no
dense tensor made, before :meth:`DenseGradients.take`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lth_sparse.engine.dynamic.method import Place
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.nn import SparseModule
from lth_sparse.nn.dynamic import dense_gradient

__all__ = ["DenseGradients"]


class _Pass(NamedTuple):
    """One way through a layer and back, and the versions of both tensors when they were met."""

    module: SparseModule
    x: Tensor
    grad: Tensor
    versions: tuple[int, int]


class DenseGradients:
    """Dense gradients of the weights at ``places``, of the passes that happen while it watches."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._handles: list[RemovableHandle] = []
        self._passes: dict[str, list[_Pass]] = {}

    def watch(self, wanted: bool) -> None:
        """Watch the passes to come, from none; or watch no longer and forget."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._passes = [], {}
        if wanted:
            self._handles = [self._hook(place.name, module) for place in self._places for module in place.modules]

    def take(self, place: Place, step: int) -> Tensor:
        """The sum over all passes of a layer, and over all ranks; afterwards they are forgotten.

        Raises:
            ArgumentError: there was none, or a tensor of one was changed in place.
        """
        passes = self._passes.pop(place.name, [])
        if not passes:
            what = f"a forward and a backward pass of every sparse layer before step {step}, seen by hooks"
            raise ArgumentError(expected("model", what, f"none of {place.name!r} (a compiled model may skip hooks)"))
        total: Tensor | None = None
        while passes:
            module, x, grad, versions = passes.pop()
            if (x._version, grad._version) != versions:
                what = "inputs and output gradients of sparse layers that nothing changes in place before step()"
                raise ArgumentError(expected("model", what, f"a change at {place.name!r}"))
            gradient = dense_gradient(module, x, grad)
            total = gradient if total is None else total.add_(gradient)
        assert total is not None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            total = total.contiguous()
            torch.distributed.all_reduce(total)
        return total

    def _hook(self, name: str, layer: SparseModule) -> RemovableHandle:
        # Closures, which deepcopy of the model leaves alone; a copy is not watched.
        def forward(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
            if module is not layer or not output.requires_grad:
                return
            x = (args[0] if args else kwargs["input"]).detach()
            version = x._version

            def backward(grad: Tensor) -> None:
                kept = grad.detach()
                self._passes.setdefault(name, []).append(_Pass(layer, x, kept, (version, kept._version)))

            output.register_hook(backward)

        return layer.register_forward_hook(forward, with_kwargs=True)

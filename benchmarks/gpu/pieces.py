"""Pieces of networks: an MLP block, a decoded stack of layers, what a layer's training keeps, the planner's choice.

``Block`` and ``Stack`` have the interface of ``layers.Layer``: providers, backend, call, errors. Memory and the planner
give their rows themselves.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lth_sparse.nn import SparseLinear
from lth_sparse.ops import functional, plan

from ..masked import Masked
from .cases import Case
from .layers import Layer, Skip, backend_for, deviation, layout_for, mask_for

__all__ = ["Block", "Planned", "Stack", "memory_bytes"]


class MLP(nn.Module):
    """``x + W2 gelu(W1 norm(x))``, of a transformer."""

    def __init__(self, features: int, inner: int, **options: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features, **options)
        self.up, self.down = nn.Linear(features, inner, **options), nn.Linear(inner, features, **options)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return y


class Block:
    """An MLP block: dense, with masks, sparse; forward in inference, or a step without the optimiser."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, device
        tokens, features, inner = case.size
        options: Any = {"device": device, "dtype": getattr(torch, case.dtype)}
        self.x, self.grad = (torch.randn(tokens, features, **options) for _ in range(2))
        dense = MLP(features, inner, **options)
        self.masks = {
            name: mask_for(replace(case, op="linear", size=(tokens, *shape)), seed, device)
            for seed, (name, shape) in enumerate({"up": (inner, features), "down": (features, inner)}.items())
        }
        with torch.no_grad():
            for name, mask in self.masks.items():
                dense.get_submodule(name).weight.mul_(mask)  # type: ignore[operator]
        self.dense = dense

    def providers(self, mode: str) -> tuple[str, ...]:
        return ("dense", "ours", *self.case.peers)

    def backend(self, provider: str, mode: str) -> str:
        if provider != "ours":
            return "torch"
        layout = layout_for(replace(self.case, op="linear"), self.masks["up"])
        return backend_for(self.case, layout, self.device, gradients=mode != "forward")

    def module(self, provider: str) -> nn.Module:
        """The block as a provider has it, with parameters of its own."""
        found = copy.deepcopy(self.dense)
        for name, mask in self.masks.items():
            layer: Any = found.get_submodule(name)
            if provider == "ours":
                setattr(found, name, SparseLinear.from_dense(layer, mask, layout="bsr", block=self.case.block))
            elif provider == "masked dense":
                setattr(found, name, Masked(layer, mask))
        return found

    def call(self, provider: str, mode: str) -> Callable[[], object]:
        self.backend(provider, mode)
        return _module_call(self.module(provider), self.x, self.grad, mode)

    def note(self, provider: str) -> str:
        return ""

    def errors(self, providers: tuple[str, ...]) -> dict[str, float]:
        """Deviation of the output, and of the input's gradient, from the block in float64."""
        x = self.x.double().requires_grad_()
        y = copy.deepcopy(self.dense).double()(x)
        truth = [y.detach(), *torch.autograd.grad(y, x, self.grad.double())]
        found = {}
        for provider in providers:
            x = self.x.detach().clone().requires_grad_()
            y = self.module(provider)(x)
            results = [y.detach(), *torch.autograd.grad(y, x, self.grad)]
            found[provider] = max(deviation(one, right) for one, right in zip(results, truth, strict=True))
        return found


class Stack:
    """The seven linear layers of Llama-like blocks, a token at a time: what decoding reads of its weights.

    Attention itself and the norms are left out: they are the same for all. Every layer reads the same input, of its
    own width, and gives as many outputs as it has.
    """

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, device
        tokens, blocks, features, inner = case.size
        keys = max(features // 4, 1)  # 8 of 32 heads
        shapes = [(features, features), (keys, features), (keys, features), (features, features)]
        shapes += [(inner, features), (inner, features), (features, inner)]
        options: Any = {"device": device, "dtype": getattr(torch, case.dtype)}
        self.inputs = {width: torch.randn(tokens, width, **options) for width in {features, inner}}
        self.layers: list[tuple[Tensor, Tensor]] = []  # mask and masked weight
        for seed, shape in enumerate(shapes * blocks):
            mask = mask_for(replace(case, op="linear", size=(tokens, *shape)), seed % len(shapes), device)
            self.layers.append((mask, torch.randn(shape, **options) * mask / shape[1] ** 0.5))

    def providers(self, mode: str) -> tuple[str, ...]:
        return ("dense", "ours", *self.case.peers)

    def backend(self, provider: str, mode: str) -> str:
        if provider != "ours":
            return "torch"
        return backend_for(self.case, layout_for(self.case, self.layers[0][0]), self.device, gradients=False)

    def call(self, provider: str, mode: str) -> Callable[[], object]:
        self.backend(provider, mode)
        if provider == "ours":
            made = [(layout_for(self.case, mask), weight) for mask, weight in self.layers]
            ready = [(layout, layout.gather(weight)) for layout, weight in made]
            return torch.no_grad()(
                lambda: [functional.linear(self.inputs[one.shape[1]], values, one) for one, values in ready]
            )
        weights = [weight for _, weight in self.layers]
        return torch.no_grad()(lambda: [F.linear(self.inputs[weight.shape[1]], weight) for weight in weights])

    def note(self, provider: str) -> str:
        return ""

    def errors(self, providers: tuple[str, ...]) -> dict[str, float]:
        """Deviation of the outputs from float64."""
        truth = [F.linear(self.inputs[weight.shape[1]].double(), weight.double()) for _, weight in self.layers]
        found = {}
        for provider in providers:
            results: Any = self.call(provider, "forward")()
            found[provider] = max(deviation(one, right) for one, right in zip(results, truth, strict=True))
        return found


class Planned(Layer):
    """A layer as the planner stores it after measuring, beside masked dense. The cache is neither read nor written."""

    choice: plan.Choice | None = None

    def providers(self, mode: str) -> tuple[str, ...]:
        return ("dense", "masked dense", "planner")

    def backend(self, provider: str, mode: str) -> str:
        return "torch" if provider != "planner" else self.chosen().kind

    def note(self, provider: str) -> str:
        return "" if provider != "planner" else f"{self.chosen().kind}: {self.chosen().note}"

    def compact(self, provider: str) -> bool:
        return provider == "planner"

    def chosen(self) -> plan.Choice:
        """The planner's choice by measurement, made once."""
        if self.choice is None:
            case, weight = self.case, self.weight
            kinds = tuple(dict.fromkeys((case.layout.split()[0], "dense")))
            conv = {"padding": self.padding, "stride": 1} if case.is_conv else None
            self.choice = plan.choose_layout(
                weight, self.mask, bias=self.bias, sample=self.x, conv=conv, block=case.block, kinds=kinds
            )
        return self.choice

    def parts(self, provider: str) -> Any:
        if provider != "planner":
            return super().parts(provider)
        layout = plan.layout_of(self.chosen().kind, self.mask, self.chosen().block)
        self._layout = layout
        return self._ours(), self.x, layout.gather(self.weight)


def memory_bytes(case: Case, device: str, allocated: Callable[[], int] | None = None) -> Mapping[str, int]:
    """Bytes that weight, gradient, Adam's state and (ours) the index take after one step, by provider.

    ``allocated`` says what is allocated now: of the device by default. Activations are freed before it is asked.
    """
    if allocated is None:
        if device != "cuda":
            raise Skip("memory is counted on a GPU")
        allocated = torch.cuda.memory_allocated
    tokens, _, columns = case.size
    options: Any = {"device": device, "dtype": getattr(torch, case.dtype)}
    mask = mask_for(case, device=device)
    backend_for(case, layout_for(case, mask), device, gradients=True)
    found: dict[str, int] = {}
    for provider in ("dense", "ours"):
        x = torch.randn(tokens, columns, **options)
        _step(_layer(provider, case, mask, options), x)  # whatever is allocated once, such as cuBLAS's workspace
        _collect(device)
        before = allocated()
        layer = _layer(provider, case, mask, options)
        optimizer = _step(layer, x)
        _collect(device)
        found[provider] = allocated() - before
        del layer, optimizer
    return found


def _layer(provider: str, case: Case, mask: Tensor, options: Mapping[str, Any]) -> nn.Module:
    dense = nn.Linear(case.size[2], case.size[1], bias=False, **options)
    if provider == "dense":
        return dense
    return SparseLinear.from_dense(dense, mask, layout=case.layout, block=case.block)


def _step(layer: nn.Module, x: Tensor) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
    layer(x).sum().backward()
    optimizer.step()
    return optimizer


def _collect(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()


def _module_call(module: nn.Module, x: Tensor, grad: Tensor, mode: str) -> Callable[[], object]:
    if mode == "forward":
        return torch.no_grad()(lambda: module(x))
    x = x.detach().clone().requires_grad_()
    leaves = [x, *module.parameters()]
    return lambda: torch.autograd.grad(module(x), leaves, grad)

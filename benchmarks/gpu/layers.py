"""One linear layer or convolution on a device: what is timed of each provider, and how far each is from float64.

Providers, each on the tensors that suit it best:

    dense              F.linear; for a convolution F.conv2d with channels_last tensors and cuDNN's benchmark mode
    dense contiguous   the convolution in torch's usual format
    dense tf32         float32 with TF32 allowed, which is less exact
    masked dense       weight * mask in each call
    ours               this library's operator; of a convolution on channels_last activations
    ours contiguous    the same on activations in the usual format
    torch BSR          F.linear with a BSR weight, forward alone: torch has no backward
    torch CSR          torch.sparse on a CSR weight, forward alone
    torch 2:4          torch's semi-structured tensor over a 2:4 mask of its own, forward alone
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_sparse.formats import BSR, LAYOUTS, Layout, make_layout
from lth_sparse.ops import backend_of, functional
from lth_sparse.ops.cost import random_mask

from .cases import Case
from .rates import tf32

__all__ = ["Layer", "Skip", "backend_for", "deviation", "layout_for", "mask_for", "mode_call"]

Operator = Callable[[Tensor, Tensor, Tensor], Tensor]
FORWARD_ALONE = ("torch BSR", "torch CSR", "torch 2:4")


class Skip(Exception):
    """What a provider cannot do here, in words: no failure."""


def mask_for(case: Case, seed: int = 0, device: str = "cpu") -> Tensor:
    """The case's random mask: exact counts of blocks or weights, or 2 of each 4 in a row."""
    _, out, columns = case.products
    generator = torch.Generator(device).manual_seed(seed)
    if case.layout == "2:4":
        order = torch.rand(out, columns // 4, 4, generator=generator, device=device).argsort(2)
        return (order < 2).view(out, columns)
    mask = random_mask((out, columns), case.density, case.block, generator)
    if not case.is_conv:
        return mask
    _, _, channels, _, kernel = case.size
    if case.layout == "bsr channels_last":
        return mask.view(out, kernel, kernel, channels).permute(0, 3, 1, 2).contiguous()
    return mask.view(out, channels, kernel, kernel)


def layout_for(case: Case, mask: Tensor) -> Layout:
    """The layout that the case names.

    Raises:
        Skip: this version of the library has none of that kind.
    """
    kind = case.layout.split()[0]
    if kind not in LAYOUTS:
        raise Skip(f"no layout {kind!r}")
    if case.layout == "bsr channels_last":
        if "channels_last" not in inspect.signature(BSR.from_mask).parameters:
            raise Skip("BSR has no channels_last blocks")
        make: Any = BSR.from_mask
        found: Layout = make(mask, case.block, channels_last=True)
        return found
    return make_layout(kind, mask, block=case.block) if kind == "bsr" else make_layout(kind, mask)


def backend_for(case: Case, layout: Layout, device: str, gradients: bool) -> str:
    """What would run ours.

    Raises:
        Skip: the reference, or torch's own product over a dense weight, whose time says nothing.
    """
    # Whether there is a kernel may depend on more than a version of the library asks for.
    more: dict[str, Any] = {
        "shape": layout.shape,
        "tokens": case.products[0],
        "pointwise": case.is_conv and case.size[-1] == 1,
        "channels_last": case.layout == "bsr channels_last",
    }
    known = inspect.signature(backend_of).parameters
    ask: Any = functools.partial(backend_of, **{name: value for name, value in more.items() if name in known})
    found: str = ask(layout.kind, device, getattr(torch, case.dtype), 4 if case.is_conv else 2, gradients)
    if found == "reference" or (found == "torch" and layout.kind == "dense"):
        what = "gradients" if gradients else "forward pass"
        runs = "the reference" if found == "reference" else "torch's dense product"
        raise Skip(f"no kernel for the {what} of {case.layout} in {case.dtype}: {runs} would run")
    return found


class Layer:
    """The tensors of one case; everything that providers share is made once."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, device
        options: Any = {"device": device, "dtype": getattr(torch, case.dtype)}
        self.mask = mask_for(case, device=device)
        _, out, columns = case.products
        live = max(case.density * columns, 1.0)
        self.weight = torch.randn(self.mask.shape, **options) * self.mask / live**0.5
        self.bias = torch.randn(out, **options)
        if case.is_conv:
            images, _, channels, side, kernel = case.size
            self.padding = kernel // 2
            x = torch.randn(images, channels, side, side, **options)
            self.x = x.to(memory_format=torch.channels_last)
            self.up = torch.randn(images, out, side, side, **options).to(memory_format=torch.channels_last)
        else:
            self.x, self.up = (torch.randn(case.size[0], width, **options) for width in (columns, out))
        self._layout: Layout | None = None
        self._truth: list[Tensor] | None = None

    @property
    def layout(self) -> Layout:
        if self._layout is None:
            self._layout = layout_for(self.case, self.mask)
        return self._layout

    def providers(self, mode: str) -> tuple[str, ...]:
        """Who is timed in a mode, dense torch first."""
        peers = [peer for peer in self.case.peers if mode == "forward" or peer not in FORWARD_ALONE]
        if mode in ("dx", "dw"):
            peers = []
        both = ("ours contiguous",) if self.case.is_conv else ()
        return ("dense", "ours", *both, *peers)

    def backend(self, provider: str, mode: str) -> str:
        """What computes; raises Skip for ours on the reference."""
        if not provider.startswith("ours"):
            return "torch"
        return backend_for(self.case, self.layout, self.device, gradients=mode != "forward")

    def parts(self, provider: str) -> tuple[Operator, Tensor, Tensor]:
        """(operator of x, weight, bias; x; weight) of a provider."""
        conv, x, weight, mask = self.case.is_conv, self.x, self.weight, self.mask
        if conv and provider.endswith("contiguous"):
            x = x.contiguous()
        elif conv and not provider.startswith("ours"):
            weight = weight.to(memory_format=torch.channels_last)
        if provider.startswith("ours"):
            return self._ours(), x, self.layout.gather(self.weight)
        plain = self._dense
        if provider == "masked dense":
            keep = mask.to(weight.dtype)
            keep = keep.to(memory_format=torch.channels_last) if conv else keep
            return (lambda x, w, b: plain(x, w * keep, b)), x, weight
        return plain, x, weight

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=self.padding) if self.case.is_conv else F.linear(x, weight, bias)

    def _ours(self) -> Operator:
        layout = self.layout
        if self.case.is_conv:
            return lambda x, values, b: functional.conv2d(x, values, layout, b, padding=self.padding)
        return lambda x, values, b: functional.linear(x, values, layout, b)

    def call(self, provider: str, mode: str) -> Callable[[], object]:
        """What is timed; see :func:`mode_call`."""
        self.backend(provider, mode)
        if provider in FORWARD_ALONE:
            return torch.no_grad()(self._peer(provider))
        operator, x, weight = self.parts(provider)
        call = mode_call(operator, x, weight, self.bias, self.up, mode)
        return tf32(True)(call) if provider == "dense tf32" else call

    def _peer(self, provider: str) -> Callable[[], Tensor]:
        if self.case.is_conv:
            raise Skip(f"{provider} has no convolution")
        x, bias = self.x, self.bias
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its sparse tensors a prototype
            if provider == "torch BSR":
                if self.case.block is None:
                    raise Skip("no blocks")
                if any(size % side for size, side in zip(self.weight.shape, self.case.block, strict=True)):
                    raise Skip("torch takes whole blocks only")
                sparse = self.weight.to_sparse_bsr(self.case.block)
                return lambda: F.linear(x, sparse, bias)
            if provider == "torch CSR":
                csr, column = self.weight.to_sparse_csr(), bias[:, None]
                return lambda: torch.addmm(column, csr, x.t()).t()
            order = torch.rand(self.weight.shape[0], self.weight.shape[1] // 4, 4, device=self.device).argsort(2)
            weight = self.weight if self.case.layout == "2:4" else torch.randn_like(self.weight)
            pruned = weight * (self.mask if self.case.layout == "2:4" else (order < 2).view(self.weight.shape))
            half = torch.sparse.to_sparse_semi_structured(pruned)
        return lambda: F.linear(x, half, bias)

    @property
    def gradients(self) -> bool:
        """Whether a mode of the case computes any."""
        return any(mode != "forward" for mode in self.case.modes)

    def truth(self) -> list[Tensor]:
        """Output and, if a mode asks for them, gradients by masked dense float64; computed once."""
        if self._truth is None:
            doubles = [tensor.double().contiguous() for tensor in (self.x, self.weight, self.bias)]
            leaves = [tensor.requires_grad_(self.gradients) for tensor in doubles]
            with unsearched():
                y = self._dense(*leaves)
                self._truth = [y.detach()]
                if self.gradients:
                    dx, dw, db = torch.autograd.grad(y, leaves, self.up.double())
                    self._truth += [dx, dw * self.mask, db]
        return self._truth

    def errors(self, providers: tuple[str, ...]) -> dict[str, float]:
        """Largest deviation from float64 of the output and, if a mode asks for them, of all gradients; by provider."""
        gradients, truth = self.gradients, self.truth()
        found = {}
        for provider in providers:
            operator, x, weight = self.parts(provider)
            mine = [tensor.detach().clone().requires_grad_(gradients) for tensor in (x, weight, self.bias)]
            with tf32(True) if provider == "dense tf32" else nullcontext():
                y = operator(*mine)
                results = [y.detach(), *(torch.autograd.grad(y, mine, self.up) if gradients else ())]
            if gradients:  # of the weight only what is live counts
                results[2] = self.layout.scatter(results[2]) if self.compact(provider) else results[2] * self.mask
            found[provider] = max(deviation(one, right) for one, right in zip(results, truth, strict=True))
        return found

    def compact(self, provider: str) -> bool:
        """Whether a provider's weight is this library's compact values."""
        return provider.startswith("ours")

    def note(self, provider: str) -> str:
        """What a reader should know of a provider's row."""
        return "a 2:4 mask of its own" if provider == "torch 2:4" and self.case.layout != "2:4" else ""


def deviation(found: Tensor, truth: Tensor) -> float:
    """Largest absolute difference over the largest entry of ``truth``; infinite for anything not finite."""
    if not truth.numel():
        return 0.0
    ratio = float((found.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-300))
    return ratio if ratio == ratio else float("inf")


@contextmanager
def unsearched() -> Iterator[None]:
    """cuDNN's benchmark mode off: what runs once is not worth a search."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def mode_call(
    operator: Operator, x: Tensor, weight: Tensor, bias: Tensor, up: Tensor, mode: str
) -> Callable[[], object]:
    """``operator`` in a mode: forward; dx or dw, that gradient alone, its forward pass done before; step, all of it.

    Only the public operator is called. Build it where it will run: a backward pass runs on the stream of its forward
    pass, and one from elsewhere could not be captured.
    """
    x, weight, bias = (tensor.detach() for tensor in (x, weight, bias))
    if mode == "forward":
        return torch.no_grad()(lambda: operator(x, weight, bias))
    wanted = {"dx": (x,), "dw": (weight,), "step": (x, weight, bias)}[mode]
    leaves = [tensor.clone().requires_grad_(any(tensor is one for one in wanted)) for tensor in (x, weight, bias)]
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    if mode == "step":
        return lambda: torch.autograd.grad(operator(*leaves), asked, up)
    y = operator(*leaves)
    return lambda: torch.autograd.grad(y, asked, up, retain_graph=True)

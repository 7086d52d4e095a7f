"""The base of the sparse layers: a layer whose only weight is the compact ``values`` of what a mask keeps.

The parameter is a plain strided tensor, so any optimiser, gradient clipping, DDP or deepcopy works on it, its state
shrinks with the density, and nothing can revive a pruned weight: there is none. Where the values belong is in index
buffers that move and are saved with the module. Layouts differ in those buffers only; no class here knows a layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats import CSR, Layout, Reordering, make_layout
from lth_sparse.formats.layout import check_mask
from lth_sparse.nn.reparam import dense_type, dense_weight, refusal, weight_mask, weight_parameter

__all__ = ["DENSE_STATE", "SparseModule", "build_layout", "check_weight_mask", "refuse_revival"]

Self = TypeVar("Self", bound="SparseModule")

#: Entry of a state_dict that says of saved blocks that they are those of a channels_last weight.
ORDER = "channels_last"

#: While set, sparse modules write dense entries into a state_dict. Maps ids of ``values`` to dense weights made so far.
DENSE_STATE: ContextVar[dict[int, Tensor] | None] = ContextVar("lth_sparse_dense_state", default=None)


class SparseModule(nn.Module):
    """Base of the sparse layers. Made by :meth:`from_dense` or :func:`lth_sparse.sparsify_`.

    Args:
        module: the dense layer to take geometry, weight, bias, device, dtype, ``requires_grad`` and training mode from.
            Its bias parameter is taken over as it is, its weight is copied.
        layout: where the live weights are; its shape is the weight's.
        values: share this parameter instead of reading a new one from ``module`` (tied weights).

    Attributes:
        values: Parameter ``[nnz]`` (CSR, dense), ``[nblocks, r, c]`` (BSR, reordered) or ``[rows, cols / 2]`` (2:4).
        bias: Parameter ``[out]`` or None. A bias is never pruned.
        activation: ``"relu"``, ``"gelu"``, ``"gelu_tanh"`` or ``"silu"`` when the layer computes the activation behind
            it as well, see :func:`lth_sparse.nn.fuse_activations_`; else None. Its dense form is without.

    The state_dict holds ``values``, ``bias`` and the index tensors that identify the mask, and for a channels_last BSR
    layout ``channels_last``: without it, saved blocks are those of a contiguous weight. ``load_state_dict`` takes
    that when the mask is the same, or a dense one (``weight``, ``bias``), of which it reads the weights that this
    module's own mask keeps.
    """

    #: The dense class whose place the module takes.
    dense_class: ClassVar[type[nn.Module]]
    #: Attributes of the dense class that are its constructor's arguments.
    GEOMETRY: ClassVar[tuple[str, ...]]

    values: Parameter
    bias: Parameter | None
    activation: str | None = None

    def __init__(self, module: nn.Module, layout: Layout, values: Parameter | None = None) -> None:
        super().__init__()
        if layout.kind == "reordered" and getattr(module, "groups", 1) > 1:
            raise ArgumentError(
                expected("layout", "one that keeps a grouped convolution's channels in their groups", "'reordered'")
            )
        for name in self.GEOMETRY:
            setattr(self, name, getattr(module, name))
        if values is None:
            source = weight_parameter(module)
            assert source is not None
            compact = layout.gather(dense_weight(module)).detach().clone()
            values = Parameter(compact, requires_grad=source.requires_grad)
        self.register_parameter("values", values)
        self.register_parameter("bias", module._parameters["bias"])
        self._layout = layout
        for name in layout.INDEX_NAMES:
            self.register_buffer(name, getattr(layout, name), persistent=name in layout.KEY_NAMES)
        self.training = module.training

    @classmethod
    def from_dense(
        cls: type[Self],
        module: nn.Module,
        mask: Tensor,
        layout: str = "csr",
        block: tuple[int, int] | None = None,
        cover: str | None = None,
        channels_last: bool = False,
    ) -> Self:
        """Sparse layer that computes what ``module`` computes with its weight multiplied by ``mask``.

        Args:
            module: a dense layer of exactly the matching class. A mask that torch's pruning tools put on it is
            honoured. mask: bool, shape of the weight, True where a weight is kept. Moved to the weight's device.
            layout: ``"csr"``, ``"bsr"``, ``"dense"``, ``"2:4"`` or ``"reordered"``.
            block, cover, channels_last: see :func:`lth_sparse.formats.make_layout`.

        Raises:
            ArgumentTypeError: ``module`` is not of the matching class, or ``mask`` is no tensor.
            ArgumentError: a mask of another shape or dtype, one that keeps weights which are pruned already, an unknown
                layout, or a module with hooks or parametrizations that would be lost.
        """
        name = cls.dense_class.__name__
        if dense_type(module) is not cls.dense_class:
            raise ArgumentTypeError(expected("module", f"a torch.nn.{name}", type(module).__name__))
        if reason := refusal(module, (cls.dense_class,)):
            raise ArgumentError(f"module: expected a plain torch.nn.{name}, but {reason}")
        weight = weight_parameter(module)
        assert weight is not None  # refusal has seen it
        mask = check_weight_mask(mask, weight.shape, "mask").to(weight.device)
        refuse_revival(mask, weight_mask(module), "mask")
        return cls(module, build_layout(layout, mask, block=block, cover=cover, channels_last=channels_last))

    @property
    def layout(self) -> Layout:
        """The layout over the module's index buffers.

        Made once. Whatever puts other tensors there (``.to()``, loading, functional_call, export) is noticed by
        identity, and the layout is put together anew, which reads no data.
        """
        layout, buffers = self._layout, self._buffers
        for name in layout.INDEX_NAMES:
            if getattr(layout, name) is not buffers[name]:
                return self._renewed_layout()
        return layout

    def _renewed_layout(self) -> Layout:
        """The layout over the buffers of now, remembered unless this is a compiler's trace and they are fakes."""
        index: dict[str, Any] = {name: self._buffers[name] for name in self._layout.INDEX_NAMES}
        layout = replace(self._layout, **index)
        if not torch.compiler.is_compiling():
            self._layout = layout
        return layout

    @property
    def nnz(self) -> int:
        """Number of live weights."""
        return self.layout.nnz

    @property
    def density(self) -> float:
        """Share of the weights that are kept."""
        return self.layout.density

    @property
    def mask(self) -> Tensor:
        """Bool tensor of the dense weight's shape, True where a weight is kept; made on demand."""
        return self.layout.mask()

    @property
    def weight(self) -> Tensor:
        """The dense weight, zeros where pruned: a detached copy made on demand. Writing into it changes nothing."""
        return self.layout.scatter(self.values.detach().clone())

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                f"weight of a {type(self).__name__} is read-only: change its values, or load_state_dict a dense weight"
            )
        super().__setattr__(name, value)

    def to_dense(self) -> nn.Module:
        """Plain torch module with this one's weights, zeros where pruned, and the same bias parameter."""
        dense = self._shell()
        dense.register_parameter("weight", Parameter(self.weight, requires_grad=self.values.requires_grad))
        dense.register_parameter("bias", self.bias)
        dense.training = self.training
        return dense

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw fresh weights in place: those of the dense layer's own initialisation, of which the live ones are kept.

        The random numbers are those the dense layer would draw, so the same seed gives the same live weights as there.
        """
        dense: Any = self.to_dense()
        dense.reset_parameters()  # the bias, which is shared, too
        self.values.copy_(self.layout.gather(dense.weight))

    def _shell(self) -> nn.Module:
        """The dense module without data: on the meta device nothing is allocated and no random number drawn."""
        geometry = {name: getattr(self, name) for name in self.GEOMETRY}
        return self.dense_class(**geometry, bias=self.bias is not None, device="meta", dtype=self.values.dtype)

    def extra_repr(self) -> str:
        block = f" {'x'.join(map(str, self.values.shape[1:]))}" if self.values.dim() == 3 else ""
        block += " channels_last" * self._layout.channels_last
        activation = f", activation={self.activation}" if self.activation else ""
        return f"{self._shell().extra_repr()}, density={self.density:.4g}, layout={self.layout.kind}{block}{activation}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseModule:
        # Index tensors only ever follow the values to a device: fn may also cast (module.type()) or drop the contents
        # (to_empty), and a kernel would read out of bounds by such an index.
        index = {name: self._buffers[name] for name in self._layout.INDEX_NAMES}
        self._buffers.update(dict.fromkeys(index))
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(index)
        self._move_index()
        return self

    def _move_index(self) -> None:
        """Bring the index tensors to the device of the values."""
        device = self.values.device
        tensors = [self._buffers[name] for name in self._layout.INDEX_NAMES]
        if all(tensor is None or tensor.device == device for tensor in tensors):
            return
        if any(tensor is not None and tensor.is_meta for tensor in tensors):
            raise ArgumentError("module: expected one with data, but its mask was lost on the meta device")
        layout = as_stored(self.layout.to(device))
        self._buffers.update({name: getattr(layout, name) for name in layout.INDEX_NAMES})

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        made = DENSE_STATE.get()
        if made is None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            if self._layout.channels_last:
                destination[prefix + ORDER] = torch.ones((), dtype=torch.bool)
            return
        if id(self.values) not in made:
            made[id(self.values)] = self.weight
        destination[prefix + "weight"] = made[id(self.values)]
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        state = dict(state_dict)
        channels_last = state.pop(prefix + ORDER, None) is not None
        if isinstance(state.get(prefix + "weight"), Tensor) and prefix + "values" not in state:
            self._read_dense(state, prefix, error_msgs)
        else:
            self._check_index(state, prefix, channels_last, error_msgs)
        super()._load_from_state_dict(state, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        self._move_index()

    def _read_dense(self, state: dict[str, Any], prefix: str, error_msgs: list[str]) -> None:
        """Replace ``weight`` in ``state`` by the values that this module's mask reads from it."""
        weight, layout = state.pop(prefix + "weight"), self.layout
        state.update({prefix + name: self._buffers[name] for name in layout.KEY_NAMES})
        if tuple(weight.shape) == layout.shape:
            state[prefix + "values"] = layout.to(weight.device).gather(weight.detach()).clone()
        else:
            state[prefix + "values"] = self.values.detach()
            error_msgs.append(expected(prefix + "weight", f"shape {list(layout.shape)}", f"{list(weight.shape)}"))

    def _check_index(self, state: dict[str, Any], prefix: str, channels_last: bool, error_msgs: list[str]) -> None:
        """Report index tensors in ``state`` that belong to another mask, or to another order of blocks; keep the own
        ones whatever their dtype."""
        for name in self._layout.KEY_NAMES:
            other = state.get(prefix + name)
            if not isinstance(other, Tensor):
                continue  # reported as missing
            own = state[prefix + name] = self._buffers[name]
            if channels_last != self._layout.channels_last or not _same_index(own, other):
                kind = self._layout.kind + " channels_last" * self._layout.channels_last
                error_msgs.append(
                    f"{prefix}{name}: belongs to another mask or layout than this module's (layout {kind}, "
                    f"density {self.density:.4g}). Give the model the same masks first, or load a dense state_dict "
                    "(see lth_sparse.dense_state_dict), which is read through this module's mask"
                )
                state[prefix + "values"] = self.values.detach()
                state.update({prefix + name: self._buffers[name] for name in self._layout.KEY_NAMES})
                return


def build_layout(
    kind: str,
    mask: Tensor,
    *,
    block: tuple[int, int] | None = None,
    cover: str | None = None,
    channels_last: bool = False,
    order: Reordering | None = None,
) -> Layout:
    """Layout of ``mask`` as a layer stores it."""
    return as_stored(make_layout(kind, mask, block=block, cover=cover, channels_last=channels_last, order=order))


def as_stored(layout: Layout) -> Layout:
    """On the CPU with 16-bit indices where they fit, as kernels like best; elsewhere they are 32 bits wide."""
    return layout.narrow() if isinstance(layout, CSR) and layout.device.type == "cpu" else layout


def check_weight_mask(mask: Tensor, shape: tuple[int, ...], argument: str) -> Tensor:
    """Return ``mask`` when it is a bool tensor of the weight's ``shape``; raise naming ``argument`` otherwise."""
    if isinstance(mask, Tensor) and mask.dtype == torch.bool and tuple(mask.shape) != tuple(shape):
        raise ArgumentError(expected(argument, f"shape {list(shape)} of the weight", f"{list(mask.shape)}"))
    return check_mask(mask, argument)


def refuse_revival(mask: Tensor, current: Tensor | None, argument: str) -> None:
    """Raise when ``mask`` keeps weights that the ``current`` mask has pruned: their values are gone."""
    revived = 0 if current is None else int((mask & ~current.to(mask.device)).sum())
    if revived:
        raise ArgumentError(
            expected(argument, "a subset of the weights kept so far", f"{revived} that are pruned already")
            + "; make the layer dense first to train them again from zero"
        )


def _same_index(own: Tensor | None, other: Tensor) -> bool:
    """True when both hold the same numbers, whatever their integer dtype and device."""
    if own is None or own.is_meta or other.is_meta or own.shape != other.shape:
        return False
    # 16-bit unsigned tensors know no comparison; int64 holds them all.
    return torch.equal(own.to(torch.int64), other.to(own.device, torch.int64))

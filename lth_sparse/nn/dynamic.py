"""Masks that change while a network trains: a layer gets another mask and stays compact all the while.

Weights that both masks keep hold their values and what the optimiser remembers of them (momentum and the like), in
whatever order the new layout stores them; those that come start at 0, and so does their optimiser state. The Parameter
stays the same object, so that parameter groups, schedulers and hooks keep working; its gradient is dropped.

``update_mask_`` takes a dense mask. The methods of :mod:`lth_sparse.engine.dynamic` count in *entries*, what a layout
stores as one: a weight of CSR and dense layouts, a block of BSR.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight, conv2d_weight

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats import BSR, CSR, Dense, Layout
from lth_sparse.nn.base import SparseModule, check_weight_mask
from lth_sparse.nn.stack import SparseLinearStack
from lth_sparse.ops.functional import pad_input
from lth_sparse.ops.rebuild import merge, rebuild

__all__ = ["Entries", "dense_gradient", "update_entries_", "update_mask_"]


def update_mask_(
    module: SparseModule | Iterable[SparseModule], mask: Tensor, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Give a sparse layer another mask, in place.

        w_new[i] = w[i] where both masks keep i, 0 where only the new one does; likewise momentum, exp_avg, ...

    Call it between an optimiser step and the next forward pass: the gradient is dropped, and a graph made before can no
    longer be run backward.

    Args:
        module: a layer of layout ``"csr"``, ``"bsr"`` or ``"dense"``; or all layers that share its ``values``.
        mask: bool, shape of the dense weight, True where a weight is kept. With BSR a union of whole blocks.
        optimizer: the one that trains the layer. Every entry of its state for ``values`` that has their shape is
            carried over; scalars (the step count) stay. Leave it out only while no optimiser has state of the layer:
            momentum would meet other weights.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentError: a mask of another shape, or of parts of blocks; a 2:4 layer; modules that do not share their
            values; an optimiser without them, or with state for them that is neither of their shape nor a scalar
            (LBFGS, factored second moments). Nothing has changed then.
    """
    modules = _sharing(module)
    entries = Entries.of(modules[0].layout)
    shape, device = entries.layout.shape, entries.layout.device
    mask = check_weight_mask(mask, shape, "mask").to(device)
    before, after = entries.flags(), entries.flags_of(mask)
    keep, grown = after[entries.positions()], (after & ~before).nonzero().view(-1)
    _change(modules, *entries.changed(keep, grown, mask), optimizer)


def update_entries_(
    modules: SparseModule | Iterable[SparseModule],
    keep: Tensor,
    grown: Tensor,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """:func:`update_mask_` by entries: what ``keep`` names stays, what is at ``grown`` comes.

    Args:
        modules: as ``module`` there.
        keep: bool, one for each entry in the order of ``values``.
        grown: int64, ascending positions of new entries, see :class:`Entries`. An entry that goes may come at once
            again, and then starts from 0.

    Raises:
        ArgumentError, ArgumentTypeError: as for :func:`update_mask_`; ``keep`` or ``grown`` that is not as described.
    """
    listed = _sharing(modules)
    entries = Entries.of(listed[0].layout)
    count, device = entries.layout.values_shape[0], entries.layout.device
    for name, tensor, dtype in (("keep", keep, torch.bool), ("grown", grown, torch.int64)):
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tensor.dim() != 1 or tensor.device != device:
            got = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ArgumentError(expected(name, f"a vector of {dtype} on {device}", got))
    if keep.numel() != count:
        raise ArgumentError(expected("keep", f"{count} flags, one for each entry", f"{keep.numel()}"))
    bounded = torch.cat((grown.new_tensor([-1]), grown, grown.new_tensor([entries.size])))
    if bool((bounded.diff() <= 0).any()) or bool(torch.isin(grown, entries.positions()[keep]).any()):
        what = f"ascending positions below {entries.size}, none of them kept"
        raise ArgumentError(expected("grown", what, f"{grown.numel()} that are not"))
    _change(listed, *entries.changed(keep, grown), optimizer)


@dataclass(frozen=True)
class Entries:
    """What a layout stores as one, by its position among all that it could store.

    Attributes:
        layout: CSR or dense: an entry is a weight, its position that in the flattened dense tensor. BSR: an entry is a
            block, its position that among the blocks of ``grid``.
        grid: with BSR the layout in which every block is kept; else None.
    """

    layout: Layout
    grid: BSR | None

    @classmethod
    def of(cls, layout: Layout) -> Entries:
        """Entries of a layout whose mask can change; ``ArgumentError`` for another."""
        if not isinstance(layout, (CSR, Dense, BSR)):
            raise ArgumentError(expected("module", "a layer of layout 'csr', 'bsr' or 'dense'", repr(layout.kind)))
        if not isinstance(layout, BSR):
            return cls(layout, None)
        return cls(layout, _blocks_of(layout, torch.ones(layout.shape, dtype=torch.bool, device=layout.device)))

    @property
    def size(self) -> int:
        """How many entries the layout could store."""
        return self.layout.numel if self.grid is None else self.grid.nblocks

    def positions(self) -> Tensor:
        """int64, ascending: one for each entry, in the order of ``values``."""
        if isinstance(self.layout, (CSR, Dense)):
            return self.layout.flat_positions()
        return self.flags().nonzero().view(-1)

    def flags(self) -> Tensor:
        """Bool ``[size]``, True where there is an entry."""
        return self._pooled(self.layout.mask()).any(1)

    def flags_of(self, mask: Tensor) -> Tensor:
        """The same for a dense mask, which must be made of entries."""
        pooled = self._pooled(mask)
        if self.grid is not None:
            r, c = self.grid.block
            parts = int((pooled.any(1)[:, None] & self._pooled(torch.ones_like(mask)) & ~pooled).sum())
            if parts:
                raise ArgumentError(expected("mask", f"a union of {r}x{c} blocks", f"{parts} pruned weights in blocks"))
        return pooled.any(1)

    def norms(self, dense: Tensor) -> Tensor:
        """``[size]``: the sum of the magnitudes of ``dense``, a tensor of the weight's shape, in each entry."""
        return self._pooled(dense).abs().sum(1) if self.grid is not None else dense.reshape(-1).abs()

    def value_norms(self, values: Tensor) -> Tensor:
        """The same of compact values, one for each entry that there is."""
        if self.grid is None:
            return values.abs()
        return _live_values(values, self.layout).abs().sum((1, 2))

    def changed(self, keep: Tensor, grown: Tensor, mask: Tensor | None = None) -> tuple[Layout, Tensor]:
        """The layout after a change, and for each of its entries the one that it was, or -1.

        ``mask`` is the new mask where it is known.
        """
        layout = self.layout
        if isinstance(layout, CSR):
            made = rebuild(layout.crow_indices, layout.col_indices, layout.cols, keep, grown)
            return CSR(layout.shape, *made.index), made.source
        positions, source = merge(self.positions(), keep, grown)
        if mask is None:
            mask = self._mask_at(positions)
        return Dense.from_mask(mask) if self.grid is None else _blocks_of(self.grid, mask), source

    def _mask_at(self, positions: Tensor) -> Tensor:
        """Dense mask of the entries at ``positions``; blocks that are stored now keep what is pruned inside them."""
        flags = torch.zeros(self.size, dtype=torch.bool, device=positions.device)
        flags[positions] = True
        if self.grid is None:
            return flags.view(self.layout.shape)
        live = self._pooled(self.layout.mask())
        live = torch.where(live.any(1, keepdim=True), live, True) & flags[:, None]
        return self.grid.scatter(live.view(self.grid.values_shape).to(torch.float32)) != 0

    def _pooled(self, dense: Tensor) -> Tensor:
        """``[size, weights of an entry]``"""
        return dense.reshape(-1, 1) if self.grid is None else self.grid.gather(dense).flatten(1)


def dense_gradient(module: SparseModule, x: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the dense weight, pruned positions included, from a layer's input and the gradient of its output.

    One dense product in the dtype of the values: ``dW = grad^T x`` of a linear layer, the weight gradient of
    cross-correlation of a convolution.
    """
    x, grad = x.to(module.values.dtype), grad.to(module.values.dtype)
    shape = module.layout.shape
    layer: Any = module
    if isinstance(module, SparseLinearStack):
        sizes = (-1, module.layers, module.out_features), (-1, module.layers, module.in_features)
        stacked = grad.reshape(sizes[0]).permute(1, 2, 0) @ x.reshape(sizes[1]).transpose(0, 1)
        return stacked.reshape(shape)
    if len(shape) == 2:
        rows, cols = shape
        batch = grad.shape[:-1].numel()
        return grad.reshape(batch, rows).t() @ x.reshape(batch, cols)
    if x.dim() < len(shape):
        x, grad = x.unsqueeze(0), grad.unsqueeze(0)
    x, padding = pad_input(x, layer.padding, layer.padding_mode, shape[2:], layer.stride, layer.dilation)
    by_rank = {3: conv1d_weight, 4: conv2d_weight}[len(shape)]
    return by_rank(x, shape, grad, layer.stride, padding, layer.dilation, layer.groups)


def _sharing(module: SparseModule | Iterable[SparseModule]) -> list[SparseModule]:
    """The layers, which share one ``values``."""
    modules = [module] if isinstance(module, nn.Module) else list(module) if isinstance(module, Iterable) else []
    if not modules or not all(isinstance(one, SparseModule) for one in modules):
        got = type(module).__name__
        raise ArgumentTypeError(expected("module", "a sparse layer, or all layers that share one `values`", got))
    if any(one.values is not modules[0].values for one in modules):
        raise ArgumentError(expected("module", "layers that share one `values`", "layers with different ones"))
    return modules


def _blocks_of(like: BSR, mask: Tensor) -> BSR:
    """Layout of ``mask`` in blocks as those of ``like``."""
    return like.with_mask(mask)


def _change(
    modules: list[SparseModule], layout: Layout, source: Tensor, optimizer: torch.optim.Optimizer | None
) -> None:
    """Put ``layout`` in the place of the modules' own and move what belongs to entries to where ``source`` says."""
    values, old = modules[0].values, modules[0].layout
    state = {} if optimizer is None else _state_of(optimizer, values)
    with torch.no_grad():
        moved = {key: _moved(tensor, old, layout, source) for key, tensor in state.items()}
        _assign(values, _moved(values.detach(), old, layout, source))
    if optimizer is not None:
        optimizer.state.get(values, {}).update(moved)
    for module in modules:
        module._layout = layout
        module._buffers.update({name: getattr(layout, name) for name in layout.INDEX_NAMES})


def _state_of(optimizer: torch.optim.Optimizer, values: Tensor) -> dict[str, Tensor]:
    """The optimiser's tensors that are shaped as ``values``, by their keys."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentTypeError(expected("optimizer", "a torch.optim.Optimizer or None", type(optimizer).__name__))
    if not any(parameter is values for group in optimizer.param_groups for parameter in group["params"]):
        raise ArgumentError(expected("optimizer", "one that holds the layer's values", "one without them"))
    found: dict[str, Tensor] = {}
    for key, entry in optimizer.state.get(values, {}).items():
        if isinstance(entry, Tensor) and entry.dim() and entry.shape == values.shape:
            found[key] = entry
        elif not (entry is None or isinstance(entry, (bool, int, float, str)) or _is_scalar(entry)):
            got = f"shape {list(entry.shape)}" if isinstance(entry, Tensor) else type(entry).__name__
            what = f"state[{key!r}] of the shape {list(values.shape)} of the values, or a scalar"
            raise ArgumentError(expected("optimizer", what, got))
    return found


def _is_scalar(entry: Any) -> bool:
    return isinstance(entry, Tensor) and entry.numel() == 1


def _live_values(values: Tensor, layout: Layout) -> Tensor:
    """``values`` with 0 where a block stores something that is no live weight."""
    if isinstance(layout, BSR) and layout.value_mask.numel():
        return values.masked_fill(~layout.value_mask, 0)
    return values


def _moved(old: Tensor, before: Layout, after: Layout, source: Tensor) -> Tensor:
    """Entries of ``old`` where ``source`` says, zeros where it says -1."""
    new = old.new_zeros(after.values_shape)
    stays = (source >= 0).nonzero().view(-1)
    new[stays] = _live_values(old, before)[source[stays]]
    return _live_values(new, after)


def _assign(parameter: Tensor, new: Tensor) -> None:
    """Put ``new`` into a parameter, whatever its shape, and drop the gradient."""
    parameter.grad = None
    if parameter.shape != new.shape:
        # While any old graph lives, torch accumulates through the node that this graph has for the parameter, and that
        # node insists on the old shape. Of what may change, only the dtype makes it forget the node.
        other = torch.float32 if parameter.dtype == torch.float64 else torch.float64
        parameter.data = parameter.data.new_empty(0, dtype=other)
        parameter.data = torch.empty_like(new)
    parameter.copy_(new)  # counts as a change in place: an old graph refuses to run backward over the new index

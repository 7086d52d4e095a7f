"""``sparsify_``: a dense model becomes sparse in place; ``densify_`` and ``dense_state_dict`` are the way back.

Everything is checked and every new layer built before the first one is put in place: a call that raises leaves the
model as it was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats import BLOCKED, BSR, LAYOUTS, Layout
from lth_sparse.nn.base import DENSE_STATE, SparseModule, build_layout
from lth_sparse.nn.layers import DENSE_CLASSES
from lth_sparse.nn.masks import Request, Skipped, check_model, discover, requests_for, sparse_modules
from lth_sparse.nn.reparam import dense_type, dense_weight, lost_hooks
from lth_sparse.nn.report import LayerReport, SparsifyReport
from lth_sparse.nn.sample import conv_options, layer_inputs
from lth_sparse.nn.tree import ModuleTree, check_root
from lth_sparse.ops import backend_of, plan
from lth_sparse.ops.backend import is_pointwise

__all__ = ["check_break_even", "dense_state_dict", "densify_", "sparsify_"]

#: Where DistributedDataParallel looks for names of parameters and buffers that it must not synchronise.
_DDP_IGNORED = "_ddp_params_and_buffers_to_ignore"


def sparsify_(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    layout: str = "auto",
    block: tuple[int, int] | None = None,
    channels_last: bool = False,
    cover: str | None = None,
    sample_input: Any = None,
    measure: bool = True,
    break_even: Mapping[str, float] | None = None,
) -> SparsifyReport:
    """Replace pruned Linear, Conv1d and Conv2d layers of ``model`` by sparse ones, in place.

    The model computes what it computed with its weights multiplied by the masks. ``weight`` parameters give way to
    ``values`` (biases stay), so build the optimiser afterwards. A module registered twice is converted once; weights
    tied between layers stay tied.

    Args:
        masks: ``{parameter name: bool tensor}`` or a :class:`lth_sparse.Mask`, True where a weight is kept. By default
            they are found in the model, see :func:`lth_sparse.nn.find_masks`. A layer that is sparse already takes a
            further mask that keeps a subset of its weights.
        layout: ``"csr"``, ``"bsr"``, ``"dense"``, ``"2:4"``, ``"reordered"``, or ``"auto"``: the fastest of the first
            three for each layer, ``"dense"`` where a sparse layout would lose; with ``sample_input`` also column
            vectors (BSR in 4x1) and ``"reordered"``, where the mask may have full blocks. ``"reordered"`` is BSR with
            rows and columns in an order that makes its blocks few, see :class:`lth_sparse.formats.Reordered`. ``"2:4"``
            speeds up linear layers on some GPUs, see :mod:`lth_sparse.ops.cuda_semi`; the masks keep at most two of
            every four weights, see :meth:`lth_sparse.formats.SemiStructured.from_mask`.
        block: ``(rows, cols)`` for ``"bsr"`` and ``"reordered"``; with ``"auto"``, BSR in that block is tried where the
            mask allows it.
        channels_last: cut the blocks of convolutions from the weight in channels_last memory order, so that each lies
            at one kernel position: block-sparse convolutions on GPUs are made for it, and for channels_last
            activations, whose format they keep. There is no kernel for it on CPUs. Linear layers are the same either
            way.
        cover: what BSR does with pruned weights inside kept blocks, see :meth:`lth_sparse.formats.BSR.from_mask`.
        sample_input: what to call the model with (a tensor, a tuple of arguments, a mapping of keyword arguments), so
            that speed-ups are measured on the real shapes. Timings are remembered on disk, see
            :mod:`lth_sparse.ops.plan_cache`.
        measure: False takes the sample's shapes alone, and ``"auto"`` then goes by a cost model. Without a sample
            nothing is measured, predicted or remembered: density decides, in every run alike.
        break_even: ``{parameter name: density}`` up to which ``"auto"`` takes CSR rather than dense where there is no
            sample, instead of a bound that suits most machines; ``ls.plan(model, x).break_evens()`` measures it.

    Returns:
        One row for each weight; ``print`` it.

    Raises:
        ArgumentError, ArgumentTypeError: naming the argument: an unknown parameter, a mask of another shape or dtype, a
            parameter that has no sparse form or is tied to one without, a layer with hooks or parametrizations that
            would be lost, a mask that keeps weights pruned before, nothing pruned at all. The model is unchanged then.
    """
    _check_layout(layout, block, cover, channels_last)
    evens = check_break_even(break_even)
    check_root(check_model(model))
    tree = ModuleTree(model)
    skipped: list[Skipped] = []
    if masks is None:
        masks, skipped = discover(tree)
    requests = requests_for(tree, masks)
    samples: dict[int, Tensor] | None = None
    if sample_input is not None:
        samples = layer_inputs(model, [module for request in requests for module in request.modules], sample_input)
    rows: list[LayerReport] = []
    replacements: list[tuple[nn.Module, SparseModule]] = []
    for request in requests:
        choice = _choose(request, layout, block, cover, channels_last, samples, measure, evens.get(request.name))
        converted = _convert(request, _layout(request, choice, cover, channels_last))
        replacements += zip(request.modules, converted, strict=True)
        rows.append(_row(tree, request, converted[0], choice))
    for old, new in replacements:
        tree.replace(old, new)
    _spare_index(model)
    return SparsifyReport(rows + [_skipped_row(item) for item in skipped])


def densify_(model: nn.Module) -> nn.Module:
    """Replace all sparse modules of ``model`` by plain torch ones, in place: zeros where pruned, biases kept.

    Shared modules and tied weights stay shared. Returns the same ``model``. Weights are new parameters, so build the
    optimiser afterwards; training then moves the zeros too, unless something else masks them.

    Raises:
        ArgumentError: the model itself is a sparse layer (use its ``to_dense()``), or one has hooks that would be lost.
    """
    if isinstance(check_model(model), SparseModule):
        check_root(model)
    found = list(sparse_modules(model))
    for name, module in found:
        if reason := lost_hooks(module):
            raise ArgumentError(f"model: expected sparse layers without hooks, but for {name}, {reason}")
    tree = ModuleTree(model)
    weights: dict[int, Parameter | None] = {}
    for _, module in found:
        dense = module.to_dense()
        dense.register_parameter("weight", weights.setdefault(id(module.values), dense._parameters["weight"]))
        tree.replace(module, dense)
    _spare_index(model)
    return model


def dense_state_dict(model: nn.Module) -> OrderedDict[str, Tensor]:
    """``model.state_dict()`` as the dense architecture would write it: its names in its order, zeros where pruned.

    Loads into the original architecture with ``strict=True``. Weights of sparse layers are copies; all else refers to
    the model's own tensors, as in any state_dict.
    """
    token = DENSE_STATE.set({})
    try:
        state: OrderedDict[str, Tensor] = check_model(model).state_dict()  # type: ignore[assignment]
        return state
    finally:
        DENSE_STATE.reset(token)


def _spare_index(model: nn.Module) -> None:
    """Tell DistributedDataParallel, where it would wrap ``model``, to leave index buffers alone.

    It sends all buffers of rank 0 round before every forward. Index tensors never change and weigh more than the
    gradients, and the 16-bit ones are of a dtype that neither gloo nor NCCL carries.
    """
    index = [f"{name}.{key}" for name, module in sparse_modules(model) for key in module.layout.INDEX_NAMES]
    before: list[str] = list(getattr(model, _DDP_IGNORED, []))
    if index or before:
        present = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        setattr(model, _DDP_IGNORED, list(dict.fromkeys([*(name for name in before if name in present), *index])))


def _check_layout(layout: str, block: tuple[int, int] | None, cover: str | None, channels_last: bool) -> None:
    """Refuse what no mask could make valid, before the model is looked at."""
    kinds = ("auto", *LAYOUTS)
    if layout not in kinds:
        raise ArgumentError(expected("layout", f"one of {', '.join(map(repr, kinds))}", layout))
    if layout == "auto" and block is None and cover is None and channels_last is False:
        return
    kind, none = "bsr" if layout == "auto" else layout, torch.zeros(1, 4, dtype=torch.bool)
    build_layout(kind, none, block=block, cover=cover, channels_last=channels_last)


def check_break_even(given: Mapping[str, float] | None) -> dict[str, float]:
    """Break-even densities as a dict.

    Raises:
        ArgumentTypeError, ArgumentError: naming ``break_even``: no mapping, or a value that is no share.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ArgumentTypeError(expected("break_even", "a dict {parameter name: density}", given))
    for name, density in given.items():
        number = isinstance(density, (int, float)) and not isinstance(density, bool)
        if not isinstance(name, str) or not number or not 0.0 <= density <= 1.0:
            raise ArgumentError(expected(f"break_even[{name!r}]", "a density in [0, 1]", density))
    return {name: float(density) for name, density in given.items()}


def _choose(
    request: Request,
    layout: str,
    block: tuple[int, int] | None,
    cover: str | None,
    channels_last: bool,
    samples: dict[int, Tensor] | None,
    measure: bool,
    even: float | None,
) -> plan.Choice:
    """Layout for one weight, with measured speed-ups where a sample reached one of its modules."""
    reached = [module for module in request.modules if samples and id(module) in samples]
    note = "not reached by sample_input" if samples is not None and not reached else ""
    if layout != "auto" and not (reached and measure):
        return plan.Choice(layout, block, None, None, note)
    module = (reached or request.modules)[0]
    weight = module.weight if isinstance(module, SparseModule) else dense_weight(module)
    bias = module._parameters["bias"]
    sample = samples[id(module)] if samples and reached else None
    kinds: tuple[str, ...] = (layout,)
    if layout == "auto":
        tried = block is not None and _fits_blocks(request.mask, block, cover, channels_last)
        kinds = ("csr", "bsr", "dense") if tried else ("csr", "dense")
    choice = plan.choose_layout(
        weight,
        request.mask,
        bias=None if bias is None else bias.detach(),
        sample=None if sample is None or not measure else sample.detach().to(weight.dtype),
        input_shape=None if sample is None else sample.shape,
        input_gradient=sample is None or sample.requires_grad,
        conv=conv_options(module),
        block=block if "bsr" in kinds else None,
        kinds=kinds,
        break_even=even,
        channels_last=channels_last and "bsr" in kinds,
        search=layout == "auto",
    )
    if layout != "auto":  # the user's word stands, whatever the plan would rather have
        measured = (choice.speedup_forward, choice.speedup_backward) if choice.kind == layout else (None, None)
        return plan.Choice(layout, block, *measured, note)
    return replace(choice, note="; ".join(filter(None, (choice.note, note))))


def _fits_blocks(mask: Tensor, block: tuple[int, int], cover: str | None, channels_last: bool) -> bool:
    """True when BSR in ``block`` can hold the mask under ``cover``; both were checked for themselves before."""
    try:
        build_layout("bsr", mask, block=block, cover=cover, channels_last=channels_last)
    except ArgumentError:
        return False
    return True


def _layout(request: Request, choice: plan.Choice, cover: str | None, channels_last: bool) -> Layout:
    """Layout of the chosen kind; the other arguments speak of layouts in blocks only."""
    blocked: dict[str, Any] = {"block": choice.block, "cover": cover, "channels_last": channels_last}
    if choice.searched:  # as it was timed
        blocked |= {"cover": "zeros", "channels_last": False}
    try:
        options = blocked if choice.kind in BLOCKED else {}
        return build_layout(choice.kind, request.mask, **options, order=choice.order)
    except ArgumentError as error:  # which of the masks
        raise ArgumentError(f"{request.name}: {error}") from error


def _convert(request: Request, layout: Layout) -> list[SparseModule]:
    """Sparse modules for those of ``request``, sharing one ``values``; the old ones when they are just like that."""
    converted: list[SparseModule] = []
    values: Parameter | None = None
    for module in request.modules:
        if isinstance(module, SparseModule):
            alike = module.layout.kind == layout.kind and module.layout.values_shape == layout.values_shape
            alike = alike and module.layout.channels_last == layout.channels_last
            if alike and torch.equal(module.mask, layout.mask()):
                return [old for old in request.modules if isinstance(old, SparseModule)]
            new = type(module)(module.to_dense(), layout, values)
        else:
            new = DENSE_CLASSES[dense_type(module)](module, layout, values)
        values = new.values
        converted.append(new)
    return converted


def _row(tree: ModuleTree, request: Request, module: SparseModule, choice: plan.Choice) -> LayerReport:
    layout, values = module.layout, module.values
    name, *others = [tree.names[id(old)] for old in request.modules]
    tied = f"tied with {', '.join(others)}" if others else ""
    pointwise = is_pointwise(layout.shape, getattr(module, "groups", 1))
    return LayerReport(
        name=name,
        kind=module.dense_class.__name__,
        shape=layout.shape,
        density=layout.density,
        nnz=layout.nnz,
        layout=layout.kind,
        block=layout.block if isinstance(layout, BSR) else None,
        channels_last=layout.channels_last,
        backend=backend_of(
            layout.kind,
            values.device,
            values.dtype,
            len(layout.shape),
            shape=layout.shape,
            pointwise=pointwise,
            channels_last=layout.channels_last,
        ),
        bytes_dense=layout.numel * values.element_size(),
        bytes_sparse=values.nbytes + layout.nbytes,
        speedup_forward=choice.speedup_forward,
        speedup_backward=choice.speedup_backward,
        note="; ".join(filter(None, (choice.note, tied))),
    )


def _skipped_row(item: Skipped) -> LayerReport:
    """Row of a layer with zeros in its weight that stays what it is."""
    weight = dense_weight(item.module)
    nnz = int(weight.count_nonzero())
    return LayerReport(
        name=item.name,
        kind=type(item.module).__name__,
        shape=tuple(weight.shape),
        density=nnz / max(weight.numel(), 1),
        nnz=nnz,
        layout="unchanged",
        block=None,
        backend="torch",
        bytes_dense=weight.nbytes,
        bytes_sparse=weight.nbytes,
        speedup_forward=None,
        speedup_backward=None,
        note=item.reason,
    )

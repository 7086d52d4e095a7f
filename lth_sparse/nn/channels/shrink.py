"""``shrink_``: dead channels are removed from a dense network: smaller layers, smaller masks, the same function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils.prune import BasePruningMethod
from torch.utils._pytree import tree_leaves

from lth_sparse.errors import ArgumentError, InvariantError, expected
from lth_sparse.formats import Mask
from lth_sparse.nn.base import SparseModule
from lth_sparse.nn.channels.dead import DeadChannels, find_dead
from lth_sparse.nn.channels.groups import Solved, first_names, solved, walk_model
from lth_sparse.nn.channels.trace import Backup
from lth_sparse.nn.channels.walk import Walk
from lth_sparse.nn.masks import check_model, discover, requests_for
from lth_sparse.nn.reparam import dense_type, dense_weight, parametrizations
from lth_sparse.nn.report import table
from lth_sparse.nn.sample import call_model
from lth_sparse.nn.tree import ModuleTree

__all__ = ["ShrinkReport", "ShrunkGroup", "shrink_"]

EXACT = ("inference", "training")
#: Outputs may differ by so much of their largest value, by the model's dtype, before the removal is taken back.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


@dataclass(frozen=True)
class ShrunkGroup:
    """One group of channels.

    Attributes:
        name: where the group comes from, see :attr:`Group.name`.
        size: channels before.
        removed: which of them went, by their old places.
        learning: how many of those training would still have moved; 0 with ``exact="training"``.
        kept: why others, that are constant or unread by some reader, stayed: {reason: how many}.
    """

    name: str
    size: int
    removed: tuple[int, ...]
    learning: int
    kept: dict[str, int]


@dataclass(frozen=True)
class ShrinkReport:
    """What :func:`shrink_` did; ``print`` it for a table.

    Attributes:
        groups: those that lost channels, or could have.
        masks: the masks of the smaller model, under the names that they came with.
        parameters_before, parameters_after: numbers in the model's parameters.
        multiply_adds_before, multiply_adds_after: of the dense linear layers and convolutions, for the sample.
        added_biases: layers that had no bias and got one, which holds what removed constants did there.
    """

    groups: tuple[ShrunkGroup, ...]
    masks: Mask
    parameters_before: int
    parameters_after: int
    multiply_adds_before: int
    multiply_adds_after: int
    added_biases: tuple[str, ...]

    @property
    def removed(self) -> int:
        """Channels removed, over all groups."""
        return sum(len(group.removed) for group in self.groups)

    def __str__(self) -> str:
        rows = []
        for group in self.groups:
            notes = [f"{count} kept: {reason}" for reason, count in group.kept.items()]
            notes += [f"{group.learning} of them were still learning"] * bool(group.learning)
            rows.append((group.name, str(group.size), str(len(group.removed)), "; ".join(notes)))
        parameters = f"parameters {self.parameters_before:,} -> {self.parameters_after:,}"
        work = f"multiply-adds {self.multiply_adds_before:,} -> {self.multiply_adds_after:,}"
        biases = [f"biases added: {', '.join(self.added_biases)}"] * bool(self.added_biases)
        total = ("all", "", str(self.removed), "; ".join([parameters, work, *biases]))
        return table(("group", "channels", "removed", "note"), [*rows, total], {"channels", "removed"})


def shrink_(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    sample_input: Any,
    exact: str = "inference",
) -> ShrinkReport:
    """Remove dead units, channels and filters from a dense model, in place.

    A channel goes when every layer that reads it has pruned all its weights on it, or reads a constant: all that led to
    it is pruned, and what its bias, normalisation and activation make of that goes into the biases of its readers. It
    goes from all tensors that carry it at once (both sides of a residual sum, BatchNorm's statistics). Layers keep
    their identity and get new, smaller parameters, so build the optimiser afterwards. :func:`lth_sparse.sparsify_` may
    follow, with ``report.masks``.

    The model computes what it computed with its weights multiplied by the masks; pruned weights are set to zero, and
    masks of torch's pruning tools become plain zeros. That is exact, up to the rounding of sums, in eval mode with
    either value of ``exact``:

    - ``"inference"``: every constant that can be folded. Training goes another way afterwards, for the biases that made
      the constants would have learnt, and BatchNorm computes another constant in training mode.
    - ``"training"``: only channels that no gradient reaches: unread ones, and those that are 0 in both modes and cannot
      leave it (a ReLU before which no trainable number is above 0). Whoever trains the survivors with a fresh optimiser
      and the masks gets step for step what the full model would have given. Random numbers of dropout fall differently.

    A constant other than 0 in front of zero padding is none at the border, so it stays; so do channels of groups that
    are fixed or whose number the model's code knows (attention, LayerNorm, slices, views with sizes). The report says
    so.

    Args:
        masks: ``{parameter name: bool tensor}``; by default found in the model, see :func:`lth_sparse.nn.find_masks`.
        sample_input: what to call the model with, see :func:`channel_groups`. The result is checked on it.
        exact: see above.

    Raises:
        ArgumentError, ArgumentTypeError: as :func:`lth_sparse.sparsify_` and :func:`channel_groups`.
        InvariantError: the smaller model computes something else on the sample, or nothing.
        Whatever is raised, the model is as it was.
    """
    if exact not in EXACT:
        raise ArgumentError(expected("exact", " or ".join(map(repr, EXACT)), repr(exact)))
    if any(isinstance(module, SparseModule) for module in check_model(model).modules()):
        raise ArgumentError("model: expected a dense one, but it has sparse layers; densify_ it first")
    tree = ModuleTree(model)
    requests = requests_for(tree, discover(tree)[0] if masks is None else masks)
    backup = Backup(model)
    before = sum(parameter.numel() for parameter in model.parameters())
    try:
        _apply_masks(model, {id(m): request.mask for request in requests for m in request.modules})
        live = {request.name: request.mask for request in requests}
        first = first_names(model)
        walk = walk_model(model, sample_input, {first[name]: mask for name, mask in live.items()})
        right = _outputs(model, sample_input)
        groups = solved(walk)
        dead = find_dead(walk, groups, exact, _shared_biases(walk, model))
        work = _work(walk)
        added = _fold(model, dead.shifts)
        smaller = _remove(walk, groups, dead, live, first, added)
        _check(right, model, sample_input)
        return ShrinkReport(
            _rows(groups, dead),
            Mask(smaller),
            before,
            sum(parameter.numel() for parameter in model.parameters()),
            work,
            _work(walk),
            added,
        )
    except BaseException:
        backup.restore()
        raise


@torch.no_grad()
def _apply_masks(model: nn.Module, masks: Mapping[int, Tensor]) -> None:
    """Plain parameters, zeros where pruned, in the place of whatever pruned the weights so far."""
    made: dict[int, Parameter] = {}
    for module in list(model.modules()):
        mask = masks.get(id(module))
        if mask is None:
            continue
        source = module._parameters.get("weight")
        key = id(module) if source is None else id(source)
        if key not in made:
            weight = dense_weight(module)
            made[key] = Parameter(torch.where(mask, weight, torch.zeros_like(weight)), _learns(module))
        if parametrizations(module):
            kind = dense_type(module)
            del module._modules["parametrizations"]
            module.__class__ = kind
        elif source is None:
            _forget_prune(module)
        module.register_parameter("weight", made[key])
        for name in [name for name in module._parameters if name != "weight"]:  # the weight comes first, as it did
            module._parameters[name] = module._parameters.pop(name)


def _forget_prune(module: nn.Module) -> None:
    """What prune.remove does, without writing to the tensors, so that it can be taken back."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, BasePruningMethod):
            del module._forward_pre_hooks[key]
    del module._parameters["weight_orig"], module._buffers["weight_mask"]
    vars(module).pop("weight", None)


def _learns(module: nn.Module) -> bool:
    """Whether the trainable tensor behind a weight takes gradients."""
    if chain := parametrizations(module).get("weight"):
        return bool(chain.original.requires_grad)
    found = module._parameters.get("weight")
    found = module._parameters["weight_orig"] if found is None else found
    return found is not None and found.requires_grad


def _shared_biases(walk: Walk, model: nn.Module) -> set[str]:
    """Readers whose bias is used by other modules, too."""
    holders = ModuleTree(model).holders
    shared = set()
    for reader in walk.readers:
        bias = model.get_submodule(reader.name)._parameters.get("bias")
        if bias is not None and len(holders[id(bias)]) > 1:
            shared.add(reader.name)
    return shared


@torch.no_grad()
def _fold(model: nn.Module, shifts: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Add what constants did to the biases of their readers; returns the readers that had none."""
    added = []
    for name, shift in shifts.items():
        module: Any = model.get_submodule(name)
        weight, bias = module.weight, module.bias
        extra = torch.from_numpy(shift).to(weight.device)
        if bias is None:
            added.append(name)
            module.register_parameter("bias", Parameter(extra.to(weight.dtype), weight.requires_grad))
        else:
            module.register_parameter("bias", Parameter((bias.double() + extra).to(bias.dtype), bias.requires_grad))
    return tuple(added)


def _remove(
    walk: Walk,
    groups: Solved,
    dead: DeadChannels,
    masks: Mapping[str, Tensor],
    first: Mapping[str, str],
    added: tuple[str, ...],
) -> dict[str, Tensor]:
    """Cut the removed channels out of every tensor and mask that carries them; returns the masks.

    Args:
        first: name of a tensor -> its first name. added: layers whose bias no group knows yet.
    """
    gone: dict[str, dict[int, list[np.ndarray]]] = {}
    for group in groups.groups:
        going = dead.removed[group.id]
        for member in group.members if going.any() else ():
            gone.setdefault(member.name, {}).setdefault(member.axis, []).append(member.index.numpy()[going].ravel())
    for reader in walk.readers:
        if reader.name in added and 0 in gone.get(reader.weight, {}):
            gone[f"{reader.name}.bias"] = {0: gone[reader.weight][0]}
    smaller = dict(masks)
    for name, axes in gone.items():
        for alias in [name, *(alias for alias, chosen in first.items() if chosen == name and alias != name)]:
            path, _, last = alias.rpartition(".")
            module = walk.model.get_submodule(path)
            store: Any = module._parameters if last in module._parameters else module._buffers
            if alias == name:
                cut = _cut(store[last].detach(), axes)
                made = Parameter(cut, store[last].requires_grad) if isinstance(store[last], Parameter) else cut
            store[last] = made
            _resize(module)
        for alias in smaller:
            if first[alias] == name:
                smaller[alias] = _cut(smaller[alias], axes)
    for path, attribute, elements in walk.sized:
        tracked = [e for e in elements[elements >= 0] if groups.group[e] >= 0]
        lost = sum(bool(dead.removed[int(groups.group[e])][groups.channel[e]]) for e in tracked)
        if lost:
            setattr(walk.model.get_submodule(path), attribute, len(elements) - lost)
    return smaller


def _cut(tensor: Tensor, axes: Mapping[int, list[np.ndarray]]) -> Tensor:
    for axis, places in axes.items():
        keep = np.setdiff1d(np.arange(tensor.shape[axis]), np.concatenate(places))
        tensor = tensor.index_select(axis, torch.from_numpy(keep).to(tensor.device))
    return tensor


def _resize(module: nn.Module) -> None:
    """Let a layer's attributes say the sizes that its weight has."""
    kind, weight = dense_type(module), module._parameters.get("weight")
    if weight is None:
        return
    layer: Any = module
    if kind is nn.Linear:
        layer.out_features, layer.in_features = weight.shape
    elif kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        layer.out_channels = weight.shape[0]
        if layer.groups > 1:  # only those with one filter for each channel lose any
            layer.groups = weight.shape[0]
        layer.in_channels = weight.shape[1] * layer.groups
    elif kind is nn.PReLU:
        layer.num_parameters = weight.shape[0]
    elif kind is nn.Embedding:
        layer.embedding_dim = weight.shape[1]


def _work(walk: Walk) -> int:
    """Multiply-adds of all linear layers and convolutions that the sample reached."""
    return sum(places * walk.tensor(name).numel() for name, places in walk.work)


@torch.no_grad()
def _outputs(model: nn.Module, sample_input: Any) -> list[Tensor]:
    """Floating outputs in eval mode."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        found = tree_leaves(call_model(model, sample_input))
    finally:
        for module, training in flags:
            module.training = training
    return [leaf.detach().clone() for leaf in found if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _check(right: list[Tensor], model: nn.Module, sample_input: Any) -> None:
    """Compare with what the model computed before."""
    try:
        got = _outputs(model, sample_input)
    except Exception as error:
        raise InvariantError(f"model: the smaller one does not run ({error}); it was put back as it was") from error
    for before, after in zip(right, got, strict=True):
        allowed = TOLERANCE.get(before.dtype, 5e-2) * float(before.abs().max()) if before.numel() else 0.0
        if before.shape != after.shape or (before.numel() and float((before - after).abs().max()) > allowed):
            raise InvariantError("model: the smaller one computes something else; it was put back as it was")


def _rows(groups: Solved, dead: DeadChannels) -> tuple[ShrunkGroup, ...]:
    rows = []
    for group in groups.groups:
        lost, kept = dead.removed[group.id], dead.kept.get(group.id, {})
        if lost.any() or kept:
            removed = tuple(np.flatnonzero(lost).tolist())
            rows.append(ShrunkGroup(group.name, group.size, removed, int(dead.learning[group.id].sum()), kept))
    return tuple(rows)

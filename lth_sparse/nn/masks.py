"""The masks of a model by dense parameter name: read from sparse modules, or found in a model pruned by other means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.formats import Mask
from lth_sparse.nn.base import SparseModule, check_weight_mask, refuse_revival
from lth_sparse.nn.layers import DENSE_CLASSES
from lth_sparse.nn.reparam import dense_type, dense_weight, reparam_masks
from lth_sparse.nn.tree import ModuleTree, current_mask, qualified, refusal_of, weight_of

__all__ = ["Request", "Skipped", "check_model", "discover", "find_masks", "masks_of", "requests_for", "sparse_modules"]


@dataclass
class Request:
    """One weight to make sparse.

    Attributes:
        name: its dense parameter name.
        mask: bool, on the weight's device.
        modules: the modules that use it; more than one when the weight is tied.
    """

    name: str
    mask: Tensor
    modules: list[nn.Module]


@dataclass
class Skipped:
    """A weight that holds zeros but stays dense, and why."""

    name: str
    module: nn.Module
    reason: str


def check_model(model: nn.Module) -> nn.Module:
    """Return ``model`` when it is a module."""
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(expected("model", "a torch.nn.Module", type(model).__name__))
    return model


def sparse_modules(model: nn.Module) -> Iterator[tuple[str, SparseModule]]:
    """Iterate over ``(dotted name, module)`` of all sparse modules, a shared one once."""
    for name, module in check_model(model).named_modules():
        if isinstance(module, SparseModule):
            yield name, module


def masks_of(model: nn.Module) -> Mask:
    """Masks of the model's sparse modules by dense parameter name (``"fc1.weight"``), a tied weight once.

    The names are those that ``named_parameters()`` of the dense model gives. Empty when the model has no sparse module.
    """
    found: dict[int, tuple[str, Tensor]] = {}
    for name, module in sparse_modules(model):
        if id(module.values) not in found:
            found[id(module.values)] = (qualified(name, "weight"), module.mask)
    return Mask(dict(found.values()))


def find_masks(model: nn.Module) -> Mask:
    """Masks that a model carries, by dense parameter name.

    Taken per parameter from the first that applies: a sparse module's own; ``torch.nn.utils.prune``; a parametrization
    that multiplies by a mask (``torch.ao.pruning``); exact zeros in the weight of a Linear, Conv1d or Conv2d. Zeros say
    nothing in a weight that holds nothing else (a layer initialised to zero), or that no sparse layer can replace.

    Raises:
        ArgumentError: nothing is pruned in the model.
    """
    return Mask(discover(ModuleTree(check_model(model)))[0])


def discover(tree: ModuleTree) -> tuple[dict[str, Tensor], list[Skipped]]:
    """Masks found in the model, and the weights with zeros that are left as they are. See :func:`find_masks`."""
    found: dict[str, Tensor] = {}
    skipped: list[Skipped] = []
    seen: set[int] = set()
    for module in tree.modules:
        module_name, weight = tree.names[id(module)], weight_of(module)
        if isinstance(module, SparseModule):
            if id(weight) not in seen:
                found[qualified(module_name, "weight")] = module.mask
            seen.add(id(weight))
            continue
        masks = reparam_masks(module)
        found.update({qualified(module_name, name): mask for name, mask in masks.items()})
        if masks or weight is None or id(weight) in seen or weight.is_meta or is_lazy(weight):
            continue
        if not issubclass(dense_type(module), tuple(DENSE_CLASSES)):
            continue
        seen.add(id(weight))
        mask = dense_weight(module) != 0
        if bool(mask.all()):
            continue
        if reason := _why_not_zeros(tree, module, mask):
            skipped.append(Skipped(module_name, module, reason))
        else:
            found[qualified(module_name, "weight")] = mask
    if not found:
        zeros = "".join(f"; {item.name} has zeros, but {item.reason}" for item in skipped)
        what = "masks of torch.nn.utils.prune or torch.ao.pruning, or exact zeros in weights"
        raise ArgumentError(expected("model", what, "none") + (zeros or "; prune it first, or give masks"))
    return found, skipped


def _why_not_zeros(tree: ModuleTree, module: nn.Module, mask: Tensor) -> str | None:
    """Why exact zeros in a weight are not taken for a mask; None when they are."""
    if reason := refusal_of(module):
        return reason
    if not bool(mask.any()):
        return "all of it is zero, which may be an initialisation; give a mask to prune it"
    try:
        tree.sharing(module, "weight")
    except ArgumentError as error:
        return str(error).partition(", but ")[2]
    return None


def requests_for(tree: ModuleTree, masks: Mapping[str, Tensor]) -> list[Request]:
    """Check ``masks`` against the model and group them by weight: one request for each, however many names it has."""
    if not isinstance(masks, Mapping):
        raise ArgumentTypeError(expected("masks", "a mapping {parameter name: bool tensor}", type(masks).__name__))
    if not masks:
        raise ArgumentError(expected("masks", "at least one mask", "an empty mapping"))
    requests: dict[int, Request] = {}
    for name, mask in masks.items():
        argument = f"masks[{name!r}]"
        if not isinstance(name, str):
            raise ArgumentTypeError(expected("masks", "parameter names as keys", name))
        module = tree.locate(name)
        if reason := refusal_of(module):
            raise ArgumentError(f"{argument}: expected the weight of a plain layer, but {reason}")
        weight = weight_of(module)
        assert weight is not None  # refusal_of has seen it
        shape = module.layout.shape if isinstance(module, SparseModule) else tuple(weight.shape)
        mask = check_weight_mask(mask, shape, argument).to(weight.device)
        refuse_revival(mask, current_mask(module), argument)
        sharing = tree.sharing(module, argument)
        request = requests.setdefault(id(weight), Request(name, mask, sharing))
        if not bool((request.mask == mask).all()):
            raise ArgumentError(expected(argument, f"the mask of {request.name}, the same weight", "another one"))
    return list(requests.values())

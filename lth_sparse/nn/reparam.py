"""What a dense layer's weight really is: plain, masked by ``torch.nn.utils.prune``, or masked by a parametrization.

Both pruning tools of torch keep a dense parameter under another name and multiply it by a mask at every forward. Here
the two are told from everything else that can hang on a layer (hooks, spectral norm, subclasses), which a sparse layer
could not honour and which is therefore refused rather than lost.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

__all__ = [
    "dense_type",
    "dense_weight",
    "lost_hooks",
    "parametrizations",
    "refusal",
    "reparam_masks",
    "weight_mask",
    "weight_parameter",
]

#: Everything that ``nn.Module`` calls at some moment of a module's life.
_HOOKS = {
    "_forward_pre_hooks": "forward pre-hooks",
    "_forward_hooks": "forward hooks",
    "_backward_pre_hooks": "backward pre-hooks",
    "_backward_hooks": "backward hooks",
    "_state_dict_pre_hooks": "state_dict hooks",
    "_state_dict_hooks": "state_dict hooks",
    "_load_state_dict_pre_hooks": "load_state_dict hooks",
    "_load_state_dict_post_hooks": "load_state_dict hooks",
}


def dense_type(module: nn.Module) -> type[nn.Module]:
    """The module's class, seen through the subclass that a parametrization puts in its place."""
    return parametrize.type_before_parametrizations(module)


def parametrizations(module: nn.Module) -> dict[str, Any]:
    """Parameter name -> its ``ParametrizationList``, for the parameters that have one."""
    chains: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
    return dict(chains.items())


def _pruned_names(module: nn.Module) -> list[str]:
    """Parameters that ``torch.nn.utils.prune`` has reparametrised."""
    hooks = module._forward_pre_hooks.values()
    return [str(hook._tensor_name) for hook in hooks if isinstance(hook, BasePruningMethod)]


def _pruned_parts(module: nn.Module, name: str) -> tuple[Parameter, Tensor]:
    """The dense parameter and the mask that prune keeps for the parameter ``name``."""
    original, mask = module._parameters[f"{name}_orig"], module._buffers[f"{name}_mask"]
    assert original is not None
    assert mask is not None
    return original, mask


def _parametrized_mask(module: nn.Module, name: str) -> Tensor | None:
    """The mask of a parametrization that multiplies by one, such as torch.ao.pruning's; told by what it computes.

    torch.ao.pruning may leave torch one day, so its classes are not named here.
    """
    chain = parametrizations(module).get(name)
    if chain is None or len(chain) != 1:
        return None
    mask, original = getattr(chain[0], "mask", None), getattr(chain, "original", None)
    if not isinstance(mask, Tensor) or not isinstance(original, Parameter) or mask.shape != original.shape:
        return None
    with torch.no_grad():
        return mask if torch.equal(chain[0](original), original * mask) else None


def weight_mask(module: nn.Module, name: str = "weight") -> Tensor | None:
    """Bool mask that the parameter ``name`` is multiplied by at every forward, or None when there is none."""
    mask = _pruned_parts(module, name)[1] if name in _pruned_names(module) else _parametrized_mask(module, name)
    return None if mask is None else mask.detach().ne(0)


def reparam_masks(module: nn.Module) -> dict[str, Tensor]:
    """All masks that the module's parameters are multiplied by, under the parameters' own names."""
    masks = {name: weight_mask(module, name) for name in (*_pruned_names(module), *parametrizations(module))}
    return {name: mask for name, mask in masks.items() if mask is not None}


def weight_parameter(module: nn.Module) -> Parameter | None:
    """The dense trainable tensor behind ``module.weight``; None when there is no single one."""
    if "weight" in _pruned_names(module):
        return _pruned_parts(module, "weight")[0]
    if chain := parametrizations(module).get("weight"):
        original = getattr(chain, "original", None)
        return original if isinstance(original, Parameter) else None
    return module._parameters.get("weight")


@torch.no_grad()
def dense_weight(module: nn.Module) -> Tensor:
    """The weight of the module's next forward, detached. Prune's is computed afresh: the one it caches may be old."""
    if "weight" in _pruned_names(module):
        original, mask = _pruned_parts(module, "weight")
        return original * mask.to(original.dtype)
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def lost_hooks(module: nn.Module) -> str | None:
    """Name what hangs on the module and would be lost with it, prune's own hook on the weight excepted."""
    for attribute, words in _HOOKS.items():
        hooks = getattr(module, attribute).values()
        if any(not (isinstance(hook, BasePruningMethod) and hook._tensor_name == "weight") for hook in hooks):
            return f"it has {words}, which would be lost"
    if "forward" in vars(module):
        return "its forward has been replaced on the instance"
    return None


def refusal(module: nn.Module, dense_classes: tuple[type[nn.Module], ...]) -> str | None:
    """Why no sparse layer can take this module's place, as a clause for an error message; None when one can."""
    kind = dense_type(module)
    if kind not in dense_classes:
        names = " and ".join(cls.__name__ for cls in dense_classes)
        if issubclass(kind, dense_classes):
            return f"{kind.__name__} is a subclass, whose forward may differ; only {names} themselves are converted"
        return f"{kind.__name__} has no sparse form; only {names} have"
    if set(parametrizations(module)) - {"weight"}:
        return "it has parametrizations on other parameters than its weight"
    if parametrizations(module) and weight_mask(module) is None:
        return "its weight has a parametrization that is more than a mask"
    if "bias" not in module._parameters:
        return "its bias is not a Parameter"
    return lost_hooks(module) or _weight_refusal(weight_parameter(module))


def _weight_refusal(weight: Parameter | None) -> str | None:
    """Why the tensor cannot be made compact; None when it can."""
    if type(weight) is not Parameter or weight.layout != torch.strided:
        return "its weight is not an ordinary dense Parameter"
    if not weight.dtype.is_floating_point:
        return f"its weight has dtype {weight.dtype}, not a floating one"
    if weight.is_meta:
        return "its weight is on the meta device and has no data"
    if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None):
        return "its weight has gradient hooks, which would be lost"
    return None

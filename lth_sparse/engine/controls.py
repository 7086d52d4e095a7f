"""What a ticket is compared with: the same sparsity without the ticket's initial weights, or without their places.

    "reinit"           same mask, fresh weights from the distribution that theta_0 came from; trained from step 0
    "shuffled"         the ticket's counts per layer, positions shuffled within each layer; weights of the same network
    "random"           both: random positions within each layer, and fresh weights
    "global_shuffled"  positions shuffled over all layers together: not even the counts per layer are the ticket's
    "dm_reinit"        same mask, each layer's weights drawn with replacement from the ticket's own initial weights (the
                       paper's distribution D_m)
    "prune_at_0"       as many weights in each layer, those with the largest |theta_0|: pruning before any training

These judge: where one of them is as accurate as the ticket, the ticket's own weights and places have not been shown to
matter. The others keep a part of what the ticket is, to find out which part matters, and do not judge:

    "noise_0.5", "noise_1", "noise_2", "noise_3"   theta_0 plus Gaussian noise of so many times its layer's deviation
    "signed_constant"  every weight the deviation of its layer's theta_0, with its own sign (Zhou et al. 2019)
    "rescaled"         theta_0 over the square root of the share of incoming weights that its unit has left, so that
                       sums keep the variance that they had in the dense network
    "reordered"        the ticket itself, trained from the same weights with other random states: another data order,
                       other dropout. Between the two lies the error barrier of linear mode connectivity
                       (``engine/analyses/barrier.py``). The only one that the dense network, level 0, can have too

A control trains as the ticket does, from random states of its own seed; with rewinding to step k, "theta_0" above is
theta_k wherever weights of the ticket are kept. (Frankle & Carbin 2018, section 2 and appendix F; for the shuffled ones
Frankle et al. 2020, "Pruning neural networks at initialization: why are we missing the mark?")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.engine.granularity import Granularity
from lth_sparse.errors import ArgumentError, expected
from lth_sparse.formats import Mask

__all__ = [
    "CONTROLS",
    "FRESH",
    "JUDGES",
    "REORDERED",
    "REQUIRED",
    "altered",
    "control_masks",
    "reinitialise_",
    "rescaled",
    "shuffled",
]

#: Kind -> what a person reads.
CONTROLS = {
    "reinit": "random reinitialisation",
    "shuffled": "shuffled mask",
    "random": "random mask and weights",
    "global_shuffled": "mask shuffled over all layers",
    "dm_reinit": "reinitialisation from D_m",
    "prune_at_0": "mask of the largest initial weights",
    "noise_0.5": "theta_0 with noise of 0.5 sigma",
    "noise_1": "theta_0 with noise of 1 sigma",
    "noise_2": "theta_0 with noise of 2 sigma",
    "noise_3": "theta_0 with noise of 3 sigma",
    "signed_constant": "signed constants",
    "rescaled": "theta_0 rescaled to its sparsity",
    "reordered": "network itself in another data order",
}
#: A ticket is called winning only if these were trained and do worse.
REQUIRED = ("reinit", "shuffled")
#: A ticket is not called winning if one of these does as well.
JUDGES = (*REQUIRED, "random", "global_shuffled", "dm_reinit", "prune_at_0")
#: The one that is no control of the masks or weights, and may be trained at level 0.
REORDERED = "reordered"
#: Those with fresh weights of the whole network, which therefore train from step 0.
FRESH = ("reinit", "random")


def control_masks(
    kind: str,
    masks: Mapping[str, Tensor],
    theta: Mapping[str, Tensor],
    granularity: Granularity,
    generator: torch.Generator,
) -> Mask:
    """The masks of a control.

    Args:
        kind: one of ``CONTROLS``.
        masks: the ticket's.
        theta: dense initial weights by name, for "prune_at_0".
        granularity: tiles that live or die as a whole.
        generator: for what is drawn.
    """
    if kind in ("shuffled", "random"):
        return shuffled(masks, granularity, generator)
    if kind == "global_shuffled":
        return _shuffled_together(masks, granularity, generator)
    if kind == "prune_at_0":
        return Mask({name: _largest(mask, theta[name], granularity) for name, mask in masks.items()})
    return Mask(masks)


def altered(
    kind: str, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """The weights of a control whose weights are made of the ticket's; all others as they are.

    Args:
        kind: one of ``CONTROLS``; those of ``FRESH`` have other weights, see :func:`reinitialise_`.
        tensors: the rewound network's parameters and buffers by name, dense.
        masks: the ticket's; layers that it does not prune are altered too, as the paper reinitialises them too.
        generator: for what is drawn.
    """
    result = dict(tensors)
    for name, mask in masks.items():
        weight = tensors[name]
        kept = mask.to(weight.device)
        if not weight.numel():
            continue
        sigma = weight.std(correction=0)
        if kind == "dm_reinit":
            values = weight[kept]
            if len(values):
                drawn = torch.randint(len(values), weight.shape, generator=generator)
                result[name] = values[drawn.to(weight.device)]
        elif kind.startswith("noise_"):
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
            result[name] = weight + float(kind.removeprefix("noise_")) * sigma * noise
        elif kind == "signed_constant":
            result[name] = weight.sign() * sigma
        elif kind == "rescaled":
            result[name] = rescaled(weight, kept)
    return result


def rescaled(weight: Tensor, mask: Tensor) -> Tensor:
    """``w / sqrt(d)`` for each output unit, d the share of its incoming weights that ``mask`` keeps.

    A sum of d n independent terms has d times the variance of one of n; the factor gives it back. Units without any
    incoming weight stay as they are.
    """
    rows = mask.reshape(mask.shape[0], -1)
    share = rows.to(torch.float64).mean(1) if rows.shape[1] else rows.new_ones(len(rows), dtype=torch.float64)
    factor = torch.where(share > 0, share, torch.ones_like(share)).rsqrt()
    return weight * factor.to(weight.dtype).view(-1, *(1,) * (weight.dim() - 1))


@torch.no_grad()
def reinitialise_(
    model: nn.Module, weights: Iterable[str], reset: Callable[[nn.Module], Any] | None = None
) -> nn.Module:
    """Draw fresh parameters in place, from the global random states, and return ``model``.

    ``reset(model)`` does it when given. Otherwise every module that has ``reset_parameters()`` is asked to, children
    before their parents, so that a network with an initialisation of its own has the last word.

    Args:
        model: a dense model.
        weights: names of the weights that must have changed afterwards.

    Raises:
        ArgumentError: a module has parameters but no ``reset_parameters``, or a weight did not change.
    """
    names = list(weights)
    before = {name: model.get_parameter(name).clone() for name in names}
    if reset is not None:
        reset(model)
    else:
        resettable = [module for module in model.modules() if callable(getattr(module, "reset_parameters", None))]
        covered = {id(parameter) for module in resettable for parameter in module.parameters()}
        for name, parameter in model.named_parameters():
            if id(parameter) not in covered:
                what = "a callable (model) -> None that draws fresh parameters"
                got = f"None, and no module that holds {name} has reset_parameters()"
                raise ArgumentError(expected("reset_parameters", what, got))
        model.apply(_reset_module)
    for name in names:
        if before[name].numel() and torch.equal(model.get_parameter(name), before[name]):
            raise ArgumentError(expected("reset_parameters", f"fresh values for {name}", "the values it had before"))
    return model


def shuffled(masks: Mapping[str, Tensor], granularity: Granularity, generator: torch.Generator) -> Mask:
    """Masks that keep as many weights in every layer as ``masks``, at random positions.

    See :meth:`Granularity.shuffled` for what changes places with what.
    """
    return Mask({name: granularity.shuffled(mask, generator) for name, mask in masks.items()})


def _shuffled_together(masks: Mapping[str, Tensor], granularity: Granularity, generator: torch.Generator) -> Mask:
    """Tiles change places over all pruned layers, with tiles of their own size; the whole count stays exact."""
    names = [name for name, mask in masks.items() if not bool(mask.all())]
    parts = [granularity.pool(masks[name].cpu()) > 0 for name in names]
    if not parts:
        return Mask(masks)
    if granularity.of is not None:
        groups = granularity.shuffled_groups([masks[name] for name in names], generator)
        return Mask({**masks, **dict(zip(names, groups, strict=True))})
    tiles = torch.cat(parts)
    sizes = torch.cat([granularity.sizes(masks[name].shape) for name in names])
    for size in sizes.unique().tolist():
        (places,) = (sizes == size).nonzero(as_tuple=True)
        tiles[places] = tiles[places[torch.randperm(len(places), generator=generator)]]
    split = tiles.split([len(part) for part in parts])
    new = {
        name: granularity.expand(part, masks[name].shape).to(masks[name].device)
        for name, part in zip(names, split, strict=True)
    }
    return Mask({name: new.get(name, mask) for name, mask in masks.items()})


def _largest(mask: Tensor, weight: Tensor, granularity: Granularity) -> Tensor:
    """A mask of as many tiles of each size as ``mask`` has, those with the largest sum of |weight|.

    Ties go by position.
    """
    sizes = granularity.sizes(mask.shape)
    alive = granularity.pool(mask.cpu()) > 0
    score = granularity.pool(weight.detach().cpu().abs())
    if granularity.of is not None:  # what "N:M" never prunes comes before all others
        first = granularity.protected(weight.detach().cpu().abs(), torch.ones_like(mask, device="cpu"))
        score = torch.where(first, score + score.max() + 1, score)
    kept = torch.zeros_like(alive)
    for size in sizes.unique().tolist():
        (places,) = (sizes == size).nonzero(as_tuple=True)
        best = torch.sort(score[places], descending=True, stable=True).indices[: int(alive[places].sum())]
        kept[places[best]] = True
    return granularity.expand(kept, mask.shape).to(mask.device)


def _reset_module(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()

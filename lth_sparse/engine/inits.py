"""Initial weights by name: the distributions that tickets are compared over.

With fan_in and fan_out the number of weights into and out of a unit of the dense layer:

    glorot_normal     N(0, 2 / (fan_in + fan_out)): the paper's own (Glorot & Bengio 2010)
    glorot_truncated  the same deviation from a normal distribution cut at two of its deviations, as TensorFlow draws it
    kaiming_normal    N(0, 2 / fan_in) (He et al. 2015)
    orthogonal        rows (or columns) of the matrix view orthonormal (Saxe et al. 2014)
    signed_constant   +- the deviation of glorot_normal, signs by chance (Zhou et al. 2019)

Biases are 0. The rescaling of a ticket to its sparsity is a control, "rescaled", see ``engine/controls.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lth_sparse.engine.selection import PRUNABLE
from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected

__all__ = ["INITS", "initialise_"]

INITS = ("glorot_normal", "glorot_truncated", "kaiming_normal", "orthogonal", "signed_constant")

#: Deviation of the standard normal distribution cut at -2 and 2.
TRUNCATED = 0.8796256610342398


@torch.no_grad()
def initialise_(model: nn.Module, scheme: str, generator: torch.Generator | None = None) -> nn.Module:
    """Draw the weights of every Linear, Conv1d and Conv2d anew, in place, and return ``model``.

    Their biases become 0; what else the model has (BatchNorm) stays as it is. As ``reset_parameters`` of a search:
    ``lambda model: initialise_(model, "kaiming_normal")``.

    Args:
        model: dense.
        scheme: one of ``INITS``.
        generator: on the CPU; the global one by default.

    Raises:
        ArgumentTypeError, ArgumentError: no module, an unknown scheme.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(expected("model", "a torch.nn.Module", type(model).__name__))
    if scheme not in INITS:
        raise ArgumentError(expected("scheme", f"one of {', '.join(map(repr, INITS))}", repr(scheme)))
    for module in model.modules():
        if isinstance(module, PRUNABLE):
            module.weight.copy_(_drawn(module.weight, scheme, generator))
            if module.bias is not None:
                module.bias.zero_()
    return model


def _drawn(weight: Tensor, scheme: str, generator: torch.Generator | None) -> Tensor:
    """A tensor like ``weight``, drawn on the CPU in float32, so that every device and dtype gets the same numbers."""
    drawn = torch.empty(weight.shape, dtype=torch.float32)
    if not drawn.numel():
        return drawn
    taps = math.prod(weight.shape[2:])
    sigma = math.sqrt(2.0 / ((weight.shape[0] + weight.shape[1]) * taps))
    if scheme == "glorot_normal":
        return drawn.normal_(0.0, sigma, generator=generator)
    if scheme == "glorot_truncated":
        wide = sigma / TRUNCATED
        return nn.init.trunc_normal_(drawn, 0.0, wide, -2 * wide, 2 * wide, generator=generator)
    if scheme == "kaiming_normal":
        return nn.init.kaiming_normal_(drawn, nonlinearity="relu", generator=generator)
    if scheme == "orthogonal":
        return nn.init.orthogonal_(drawn, generator=generator)
    return torch.randint(0, 2, drawn.shape, generator=generator).mul_(2).sub_(1).to(torch.float32) * sigma

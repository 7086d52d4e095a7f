"""Pruning as research code usually has it: dense layers whose weight is multiplied by its mask in each forward."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn


class Masked(nn.Module):
    """A dense Linear or Conv2d that computes with `weight * mask`; so its gradient is masked too."""

    mask: Tensor

    def __init__(self, module: nn.Linear | nn.Conv2d, mask: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mask", mask.to(module.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.module.weight * self.mask
        if isinstance(self.module, nn.Linear):
            return F.linear(x, weight, self.module.bias)
        return self.module._conv_forward(x, weight, self.module.bias)


def mask_(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Wrap the layers named by their weights in `Masked`, in place."""
    for name, mask in masks.items():
        path, _, layer = name.removesuffix(".weight").rpartition(".")
        parent = model.get_submodule(path)
        module = getattr(parent, layer)
        assert isinstance(module, (nn.Linear, nn.Conv2d))
        setattr(parent, layer, Masked(module, mask))
    return model

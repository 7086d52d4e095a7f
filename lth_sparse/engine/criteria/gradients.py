"""Criteria of the gradient g = dL/dw over ``score_batches``: gradient, taylor, snip and grasp.

L is the mean of ``score_loss`` over the batches, of the masked network in train mode: BatchNorm normalises by the batch
and dropout drops, by random states that descend from the seed. The networks and their buffers are throw-away copies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lth_sparse.engine.criteria.context import Scoring, ScoringContext, add_

__all__ = ["gradient", "grasp", "taylor"]


def gradient(context: ScoringContext) -> Tensor:
    """|g|."""
    return context.gradient.abs()


def taylor(context: ScoringContext) -> Tensor:
    """|w g|, the first-order estimate of how much the loss changes without w.

    Molchanov et al. 2017 (1611.06440, section 2.2), with single weights in place of feature maps. g is the gradient of
    the loss over all batches, so it is the change over all of them (Molchanov et al. 2019 square w g batch by batch).

    At initialisation this is the connection sensitivity of SNIP (Lee et al. 2019, 1810.02340, equation 5): the gradient
    with respect to a factor c = 1 of the weight, |dL/dc| = |w g|, but for the common divisor.
    """
    return (context.weight * context.gradient).abs()


def grasp(context: ScoringContext) -> Tensor:
    """w (H g): what the squared norm of the gradient loses without w, to first order and by half.

    GraSP (Wang et al. 2020, 2002.07376, equation 8 and algorithm 1) calls S = -w (H g) the effect of removing w and
    removes the *largest* S, those without which the gradient flows most freely. Here the smallest scores are pruned,
    so the score is -S. H is the Hessian of L, g its gradient with respect to the surviving weights of every Linear and
    Conv, frozen ones included. GraSP's division of the logits by a temperature belongs into ``score_loss``.
    """
    product: Tensor = context.scoring.once(hessian_gradient)[context.name]
    return context.weight * product


def hessian_gradient(scoring: Scoring) -> dict[str, Tensor]:
    """H g of every weight, on the CPU: the gradient of <dL/dw, g> with g held fixed, batch by batch."""
    model, parameters = scoring.prepared()
    masks = [scoring.masks[name].to(p.device) for name, p in zip(scoring.weights, parameters, strict=True)]
    fixed = [g * mask for g, mask in zip(scoring.mean_gradients(model, parameters), masks, strict=True)]
    sums, count = [torch.zeros_like(p) for p in parameters], 0
    for inputs, targets in scoring.batches(model):
        loss = scoring.loss(model, inputs, targets)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        flow = sum((g * f).sum() for g, f in zip(gradients, fixed, strict=True) if g is not None)
        if isinstance(flow, Tensor) and flow.requires_grad:  # not where the loss is linear in the weights
            add_(sums, torch.autograd.grad(flow, parameters, allow_unused=True))
        count += 1
    return scoring.on_cpu(total / count for total in sums)

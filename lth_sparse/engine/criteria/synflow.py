"""SynFlow (Tanaka et al. 2020, 2006.05467): pruning at initialisation without any data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lth_sparse.engine.criteria.context import Scoring, ScoringContext
from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError, expected

__all__ = ["synflow"]


def synflow(context: ScoringContext) -> Tensor:
    """|w| dR/d|w| with R = sum of f(1; |theta|): the network's outputs for an input of ones under absolute weights.

    Evaluated in float64, in eval mode (dropout off, BatchNorm by its running statistics, whose mean counts as 0, as at
    initialisation). Whatever the layers, their scores add up to the same R as long as biases and BatchNorm add nothing
    (section 4); so a layer with few weights has large scores, and rescoring while pruning in many small steps, at the
    densities (1 - p)^(r / n) of rounds r = 1 ... n = 100, avoids that a layer is pruned to nothing (algorithm 1).
    """
    scores: Tensor = context.scoring.once(synaptic_flow)[context.name]
    return scores


def synaptic_flow(scoring: Scoring) -> dict[str, Tensor]:
    """Scores of every weight, float64 on the CPU.

    Raises:
        ArgumentError, ArgumentTypeError: naming ``score_shape`` or ``model``.
        RunError: no flow reaches the output, or it overflows.
    """
    model = scoring.model().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean.zero_()
    parameters = [model.get_parameter(name).requires_grad_(True) for name in scoring.weights]
    flow = _output(model, scoring).sum()
    if not flow.requires_grad:
        raise ArgumentError(expected("model", "an output that depends on the weights", "one without gradient"))
    gradients = torch.autograd.grad(flow, parameters, allow_unused=True)
    scores = {
        name: torch.zeros_like(p).cpu() if g is None else (p * g).detach().cpu()
        for name, p, g in zip(scoring.weights, parameters, gradients, strict=True)
    }
    if not all(bool(values.isfinite().all()) for values in scores.values()):
        raise RunError("criterion 'synflow': the flow through the network overflows; scale its weights down")
    if not any(bool(values.any()) for values in scores.values()):
        raise RunError("criterion 'synflow': nothing flows from an input of ones to the output of the network")
    return scores


def _output(model: nn.Module, scoring: Scoring) -> Tensor:
    shape = scoring.data.input_shape()
    ones = torch.ones((1, *shape), dtype=torch.float64, device=next(model.parameters()).device)
    try:
        output = model(ones)
    except RuntimeError as error:
        got = f"{shape}, which the model does not take ({error})"
        raise ArgumentError(expected("score_shape", "the shape of one input without the batch", got)) from error
    if not isinstance(output, Tensor):
        what = "a tensor as its output with criterion='synflow'"
        raise ArgumentTypeError(expected("model", what, type(output).__name__))
    return output

"""The inputs that layers see when a model runs on a sample, caught without leaving a trace in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected

__all__ = ["call_model", "conv_options", "layer_inputs"]


def layer_inputs(model: nn.Module, modules: Iterable[nn.Module], sample_input: Any) -> dict[int, Tensor]:
    """Run ``model`` on ``sample_input`` and return the first input of each of ``modules``, by the module's id.

    The model runs in eval mode; training flags and torch's random state come back afterwards, and BatchNorm statistics
    and gradients do not move. A module that the sample does not reach is missing from the result. An input that
    requires a gradient is one whose gradient a training step computes: that of a network's first layer does not.

    Args:
        sample_input: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
    """
    if not isinstance(sample_input, (Tensor, tuple, Mapping)):
        what = "a tensor, a tuple of arguments or a mapping of keyword arguments"
        raise ArgumentTypeError(expected("sample_input", what, type(sample_input).__name__))
    inputs: dict[int, Tensor] = {}

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        if id(module) not in inputs and isinstance(x, Tensor):
            inputs[id(module)] = x.detach().requires_grad_(x.requires_grad)

    flags = [(module, module.training) for module in model.modules()]
    handles = [module.register_forward_pre_hook(catch, with_kwargs=True) for module in modules]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
            model.eval()
            call_model(model, sample_input)
    except Exception as error:
        raise ArgumentError(f"sample_input: expected an input that the model takes, but it raised: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, training in flags:
            module.training = training
    return inputs


def call_model(model: Callable[..., Any], sample_input: Any) -> Any:
    """``model`` called with a tensor, a tuple of arguments or a mapping of keyword arguments."""
    if isinstance(sample_input, Tensor):
        return model(sample_input)
    return model(*sample_input) if isinstance(sample_input, tuple) else model(**sample_input)


def conv_options(module: nn.Module) -> dict[str, Any] | None:
    """A convolution's keyword arguments of ``functional.conv1d`` / ``conv2d``; None for a linear layer."""
    options = ("stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(module, name) for name in options} if hasattr(module, "padding_mode") else None

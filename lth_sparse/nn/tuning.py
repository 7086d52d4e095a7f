"""``tune``: let the Triton kernels of a model's layers find their launch configurations on this GPU, once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from lth_sparse.errors import ArgumentError, ArgumentTypeError, expected
from lth_sparse.kernels.candidates import LIMIT
from lth_sparse.kernels.launch import Problem
from lth_sparse.nn.masks import check_model
from lth_sparse.nn.sample import layer_inputs
from lth_sparse.ops import tuning
from lth_sparse.ops.gpu_clock import GraphClock
from lth_sparse.ops.tuning import Call, TuneReport

__all__ = ["tune"]


def tune(
    model: nn.Module | None = None,
    sample_input: Any = None,
    *,
    problems: Sequence[Problem] = (),
    gradients: bool = True,
    again: bool = False,
    limit: int = LIMIT,
    progress: Callable[[float, str], None] | None = None,
) -> TuneReport:
    """Time launch configurations for a model's block-sparse and CSR layers on its GPU, and keep the fastest.

    Nobody has to: without it, configurations come from shipped tables and from a heuristic. The winners are kept on
    disk beside the planner's timings (``LTH_SPARSE_CACHE=0`` switches both off), for this device and these versions of
    torch, Triton and this library, and serve every later process; and layers of other sizes, where they are near. A
    launch takes about half a minute, most of which is compiling. The model is left as it is.

    Args:
        model: with layers made by ``sparsify_``, of layout ``"bsr"`` or ``"csr"``, on a CUDA device.
        sample_input: what to call it with (a tensor, a tuple of arguments, a mapping of keyword arguments). Its sizes
            are those that are tuned for.
        problems: products of linear layers to tune instead, or as well: ``Problem(product, dtype, block, tokens, rows,
            cols, density)`` with product ``"forward"``, ``"input_gradient"`` or ``"weight_gradient"``; of CSR layers
            ``"csr_forward"`` and so on, with block ``(1, 1)``.
        gradients: False tunes the forward pass alone.
        again: also what was tuned before.
        limit: configurations tried for a launch, at least 2.
        progress: called now and then with the share of the work done, and words.

    Raises:
        BackendError: no CUDA device, or no Triton.
        ArgumentError, ArgumentTypeError: naming the argument; a model none of whose layers runs by a Triton kernel.

    Example::

        ls.sparsify_(model.cuda().bfloat16(), masks, layout="bsr", block=(64, 64))
        print(ls.tune(model, x))
    """
    tuning.gpu()
    if model is None and not problems:
        raise ArgumentError(expected("model", "a model with its sample_input, or problems", "neither"))
    calls: list[Iterable[Call]] = []
    place = torch.device("cuda")
    if model is not None:
        check_model(model)
        calls.append(tuning.record(lambda: layer_inputs(model, (), sample_input), gradients=gradients))
        place = next((parameter.device for parameter in model.parameters() if parameter.is_cuda), place)
    for problem in problems:
        if not isinstance(problem, Problem):
            raise ArgumentTypeError(expected("problems", "Problem", type(problem).__name__))
        calls.append(tuning.calls_of_problem(problem, place))
    with torch.no_grad():
        every = itertools.chain.from_iterable(calls)
        return tuning.tune_calls(every, GraphClock(place), again=again, limit=limit, progress=progress)

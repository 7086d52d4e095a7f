"""Searches in data parallel: ``find_ticket`` or ``levels`` called on every rank of the default process group.

Rank 0 alone opens the run directory and decides: theta_0, masks, rewind points, random states, tickets, and what is
finished already. The others receive that before they go on, so all have the same; tensors travel as they are, masks as
packed bits, and an error of rank 0 in any of that is raised on all ranks. The training is the user's, with
DistributedDataParallel around ``level.model``: its gradients are as compact as its weights. What a training raises on
one rank ends that rank; the others then lose their connection, or are ended by torchrun.

Random states are the same on all ranks at the start of a level. So every rank draws the same permutation and takes its
share, and a training at equal global batch is that of a single process; a loop with dropout, which is then alike on all
ranks, may seed what it draws after that by rank. Metrics, history and seconds are those of rank 0. Callbacks, criteria,
``rewind_error`` and the engine's warnings are rank 0's alone, so none of them may use collectives.

Without a process group, or with one of a single rank, everything here does nothing.
"""

from __future__ import annotations

import functools
import io
import pickle
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from lth_sparse.engine.rewinding import Moment
from lth_sparse.engine.rng import for_every_device
from lth_sparse.engine.snapshot import Snapshot
from lth_sparse.errors import ArgumentError, ArgumentTypeError, RunError, expected
from lth_sparse.nn import sparse_modules

__all__ = [
    "ReducedBytes",
    "check_alike",
    "gathered",
    "leads",
    "led",
    "reduced_bytes",
    "shared",
    "shared_captures",
    "warn",
    "world",
]

T = TypeVar("T")
P = ParamSpec("P")

#: Whether this is rank 0 inside of something whose outcome the other ranks are waiting for.
_deciding: ContextVar[bool] = ContextVar("deciding", default=False)


def world() -> int:
    """Ranks of the default process group; 1 where there is none."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return torch.distributed.get_world_size()


def leads() -> bool:
    """Whether this process decides: it is rank 0, or alone."""
    return world() == 1 or torch.distributed.get_rank() == 0


def shared(work: Callable[[], T]) -> T:
    """``work()``, which only rank 0 calls: its result on every rank.

    Every rank has to come here. Inside ``work`` the same is an ordinary call.

    Raises:
        Exception: whatever ``work`` raised on rank 0, on every rank.
    """
    if world() == 1 or _deciding.get():
        return work()
    if not leads():
        return cast(T, _receive())
    token = _deciding.set(True)
    try:
        result = work()
    except Exception as error:
        _send(error, failed=True)
        raise
    finally:
        _deciding.reset(token)
    _send(result, failed=False)
    return result


def led(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: calls go through :func:`shared`."""

    @functools.wraps(function)
    def everywhere(*args: P.args, **kwargs: P.kwargs) -> T:
        return shared(lambda: function(*args, **kwargs))

    return everywhere


def shared_captures(captured: dict[Moment, Snapshot]) -> dict[Moment, Snapshot]:
    """Rank 0's captures on every rank, with the random state of rank 0's GPU for that of each."""
    if world() == 1:
        return captured
    return shared(lambda: {moment: replace(one, rng=for_every_device(one.rng)) for moment, one in captured.items()})


def gathered(fact: Any) -> list[Any]:
    """The small ``fact`` of every rank, by rank."""
    facts = [fact] * world()
    if len(facts) > 1:
        torch.distributed.all_gather_object(facts, fact)
    return facts


def check_alike(asked: str) -> None:
    """Check that every rank asks for the same search.

    Raises:
        ArgumentError: on all ranks, naming the first whose ``asked`` is not that of rank 0.
    """
    everybody = gathered(asked)
    for rank, other in enumerate(everybody):
        if other != everybody[0]:
            got = f"other settings or another model on rank {rank}"
            raise ArgumentError(expected("find_ticket", "the same search on every rank of the process group", got))


def warn(message: str) -> None:
    """A UserWarning, on rank 0 alone."""
    if leads():
        warnings.warn(message, UserWarning, stacklevel=3)


# --- bytes of the gradients ------------------------------------------------------------------------------------------


@dataclass
class ReducedBytes:
    """What the gradient all-reduces of a DistributedDataParallel model move; ``str()`` is a line for a report.

    Attributes:
        dense: bytes of the gradients of the same network without sparse layers, those of one step.
        total: bytes that were reduced so far, counted in every bucket; steps: backward passes that reduced.
    """

    dense: int
    total: int = 0
    steps: int = 0
    _group: Any = field(default=None, repr=False)

    @property
    def per_step(self) -> float:
        """Bytes of one step; NaN before the first."""
        return self.total / self.steps if self.steps else float("nan")

    @property
    def share(self) -> float:
        """``per_step`` over ``dense``: about the network's density."""
        return self.per_step / self.dense

    def reduce(self, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        """The hook: count a bucket, and average it over the ranks as it would be without."""
        gradients = bucket.buffer()
        self.total += gradients.numel() * gradients.element_size()
        self.steps += int(bucket.is_last())
        work = torch.distributed.all_reduce(gradients.div_(self._group.size()), group=self._group, async_op=True)
        future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
        return future

    def __str__(self) -> str:
        if not self.steps:
            return f"gradient all-reduce: none yet; dense {self.dense:,} bytes a step"
        return f"gradient all-reduce: {self.per_step:,.0f} bytes a step, {self.share:.1%} of dense ({self.dense:,})"


def reduced_bytes(model: nn.parallel.DistributedDataParallel) -> ReducedBytes:
    """Count what the gradient all-reduces of ``model`` move, by a communication hook that averages as without one.

    Call it before the first backward pass. DistributedDataParallel takes one hook only.

    Raises:
        ArgumentTypeError: ``model`` is no DistributedDataParallel. RunError: it has a hook already.
    """
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        raise ArgumentTypeError(expected("model", "a DistributedDataParallel", type(model).__name__))
    layers = {id(module.values): module for _, module in sparse_modules(model.module)}
    dense = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            layer = layers.get(id(parameter))
            elements = parameter.numel() if layer is None else layer.mask.numel()
            dense += elements * parameter.element_size()
    count = ReducedBytes(dense, _group=model.process_group)
    try:
        # Without annotations: those of this file are strings, which DistributedDataParallel refuses.
        model.register_comm_hook(count, lambda state, bucket: state.reduce(bucket))
    except RuntimeError as error:
        raise RunError(f"model: expected a DistributedDataParallel without a communication hook ({error})") from error
    return count


# --- from rank 0 to the others ---------------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    """Pickles everything but tensors, which it puts aside."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []
        self._places: dict[int, int] = {}

    def persistent_id(self, thing: Any) -> int | None:
        if not isinstance(thing, Tensor):
            return None
        if id(thing) not in self._places:
            self._places[id(thing)] = len(self.tensors)
            self.tensors.append(thing)
        return self._places[id(thing)]


class _Unpickler(pickle.Unpickler):
    """Puts the tensors back."""

    def __init__(self, data: bytes, tensors: list[Tensor]) -> None:
        super().__init__(io.BytesIO(data))
        self._tensors = tensors

    def persistent_load(self, place: Any) -> Tensor:
        return self._tensors[place]


def _send(result: Any, failed: bool) -> None:
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(result)
        if failed:  # some exceptions can be stored, but not be made again
            pickle.loads(file.getvalue())
    except Exception as error:
        # The others are waiting: they have to hear something.
        result = f"rank 0: {type(result).__name__}: {result}" if failed else f"rank 0 cannot share its result: {error}"
        _broadcast_facts([True, pickle.dumps(RunError(result)), []])
        if failed:
            return
        raise
    shapes = [(list(tensor.shape), tensor.dtype) for tensor in pickler.tensors]
    _broadcast_facts([failed, file.getvalue(), shapes])
    for tensor in pickler.tensors:
        _broadcast(_as_bytes(tensor))


def _receive() -> Any:
    failed, data, shapes = _broadcast_facts([None, None, None])
    tensors = []
    for shape, dtype in shapes:
        like = torch.empty(shape, dtype=dtype)
        size = -(-like.numel() // 8) if dtype is torch.bool else like.numel() * like.element_size()
        tensors.append(_from_bytes(_broadcast(torch.empty(size, dtype=torch.uint8)), like))
    result = _Unpickler(data, tensors).load()
    if failed:
        raise result
    return result


def _as_bytes(tensor: Tensor) -> Tensor:
    """uint8 [n]: the elements as they lie in memory, those of a mask packed into bits."""
    tensor = tensor.detach().cpu().contiguous().reshape(-1)
    if tensor.dtype is torch.bool:
        return torch.from_numpy(np.packbits(tensor.numpy()))
    return tensor.view(torch.uint8)


def _from_bytes(data: Tensor, like: Tensor) -> Tensor:
    if like.dtype is torch.bool:
        return torch.from_numpy(np.unpackbits(data.numpy(), count=like.numel()).astype(bool)).reshape(like.shape)
    return data.view(like.dtype).reshape(like.shape)


def _broadcast(data: Tensor) -> Tensor:
    if data.numel():
        moved = data.to(_device())
        torch.distributed.broadcast(moved, 0)
        data = moved.cpu()
    return data


def _broadcast_facts(facts: list[Any]) -> list[Any]:
    torch.distributed.broadcast_object_list(facts, 0, device=_device())
    return facts


def _device() -> torch.device:
    """Where the process group takes tensors from; groups of several backends take them from the CPU too."""
    if torch.distributed.get_backend() == torch.distributed.Backend.NCCL:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")

"""The ticket: a mask, the weights to start from, the weights that training ended with, and where it came from.

On disk it is one safetensors file (no pickle). Of a masked weight only the survivors are stored, in flat (row-major)
order, so a ticket shrinks with its density:

    mask/<name>      uint8 [ceil(numel / 8)], numpy.packbits of the flattened mask
    initial/<name>   theta_0 (or theta_k): [nnz] of a masked weight, the whole tensor of anything else, buffers included
    trained/<name>   the same after training

The rest is JSON: level, control, parent's hash, shapes, hyperparameters, metrics, history, versions, content hash.
Nothing that changes from run to run (times, paths, process ids) is inside: the same search gives the same bytes.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth_sparse._version import __version__
from lth_sparse.engine import container
from lth_sparse.errors import ArgumentError, ArgumentTypeError, TicketError, expected
from lth_sparse.formats import Mask
from lth_sparse.nn import sparsify_
from lth_sparse.nn.resize import resize_

__all__ = ["Ticket", "versions"]

KIND = "ticket"
WEIGHTS = ("initial", "trained")


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    return {"lth_sparse": __version__, "torch": torch.__version__, "numpy": np.__version__}


@dataclass(frozen=True)
class Ticket:
    """One level's outcome. Tensors are on the CPU.

    Attributes:
        masks: parameter name -> bool tensor, of every Linear and Conv weight; all True for one that was never pruned.
        initial: name -> the weights to start from (theta_0, or theta_k when rewinding to step k): survivors ``[nnz]``
            of a masked weight, whole tensors of other parameters and of buffers.
        trained: the same at the end of this level's training.
        level: 0 is dense.
        control: None, or the control that this is.
        parent: content hash of the ticket of the level before (for a control: of its own level); None at level 0.
        aliases: names in the model's state_dict of tensors that are stored under another name (tied weights).
        hyperparameters: of the search; metrics, history: as recorded while training; versions: of the libraries.
        conversion: empty, or how :func:`lth_sparse.convert` made it from ``parent``: method, target, options, under
            "layouts" how each converted layer is stored, and under "shapes" the former shapes of tensors that have
            become smaller.
    """

    masks: Mask
    initial: dict[str, Tensor]
    trained: dict[str, Tensor]
    level: int = 0
    control: str | None = None
    parent: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)
    conversion: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        masks: Mapping[str, Tensor],
        initial: Mapping[str, Tensor],
        trained: Mapping[str, Tensor],
        **description: Any,
    ) -> Ticket:
        """Make a ticket from dense tensors; only the survivors of masked ones are kept."""
        masks = Mask({name: mask.cpu() for name, mask in masks.items()})
        return cls(masks, _compact(initial, masks), _compact(trained, masks), **description)

    @property
    def density(self) -> float:
        """Share of the weights that are kept; P_m of the paper is 100 times this."""
        return self.masks.density

    @property
    def hash(self) -> str:
        """sha256 of the content, in hexadecimal."""
        return container.content_hash(KIND, self._tensors(), self._content())

    def state_dict(self, weights: str = "initial") -> dict[str, Tensor]:
        """Dense tensors under the names of the original model's ``state_dict()``, zeros where pruned.

        Args:
            weights: "initial" or "trained".
        """
        if weights not in WEIGHTS:
            raise ArgumentError(expected("weights", "'initial' or 'trained'", repr(weights)))
        state: dict[str, Tensor] = {}
        for name, tensor in getattr(self, weights).items():
            mask = self.masks.get(name)
            state[name] = tensor.clone() if mask is None else _scatter(mask, tensor)
        state.update({alias: state[name] for alias, name in self.aliases.items()})
        return state

    def apply(
        self,
        model: nn.Module,
        weights: str = "initial",
        *,
        layout: str = "auto",
        block: tuple[int, int] | None = None,
        channels_last: bool = False,
        cover: str | None = None,
        sample_input: Any = None,
        inplace: bool = False,
    ) -> nn.Module:
        """The ticket as a sparse model, ready to train ("initial") or to use ("trained").

        Args:
            model: the plain architecture that the ticket was found in; its own weights do not matter.
            weights: "initial" or "trained".
            layout, block, channels_last, cover, sample_input: as for :func:`lth_sparse.sparsify_`. With ``"auto"``, the
                layers of a converted ticket are stored as the conversion says, the others as ``sparsify_`` chooses.
            inplace: change ``model`` itself instead of a deep copy.

        Raises:
            ArgumentError: ``model`` has other names or shapes; the message names the first that differs.
        """
        model = self.architecture(model, inplace=inplace)
        model.load_state_dict(self.state_dict(weights), strict=True)
        pruned = {name: mask for name, mask in self.masks.items() if not bool(mask.all())}
        given: dict[str, Any] = {"block": block, "channels_last": channels_last, "cover": cover}
        layouts = self.conversion.get("layouts", {}) if layout == "auto" else {}
        for name, stored in layouts.items():
            mask = pruned.pop(name, None)
            if mask is not None:
                chosen = {**stored, "block": tuple(stored["block"]) if stored.get("block") else None}
                sparsify_(model, {name: mask}, **chosen)
        if pruned:
            sparsify_(model, pruned, layout=layout, **given, sample_input=sample_input)
        return model

    def architecture(self, model: nn.Module, *, inplace: bool = False) -> nn.Module:
        """A plain copy of ``model`` in the ticket's sizes, its weights undefined.

        They are the model's own unless a conversion has removed dead channels; then the model may be the original
        architecture or the small one.

        Raises:
            ArgumentError: as :meth:`apply`.
        """
        if not isinstance(model, nn.Module):
            raise ArgumentTypeError(expected("model", "a torch.nn.Module", type(model).__name__))
        shapes = self.conversion.get("shapes", {})
        wanted = {name: list(tensor.shape) for name, tensor in self.state_dict().items()}
        _check_architecture(model, wanted, shapes)
        model = model if inplace else copy.deepcopy(model)
        return resize_(model, {name: wanted[name] for name in shapes}) if shapes else model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, completely or not at all.

        Raises:
            RunError: it cannot be written (full disk, missing or read-only directory).
        """
        container.write(path, KIND, self._tensors(), self._content())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ticket:
        """Read a ticket file and verify its content hash.

        Raises:
            TicketError: missing, damaged, truncated, no ticket, or from a newer version; the message says which, and
                what to do.
        """
        tensors, content, _ = container.read(path, KIND)
        try:
            return cls._from_content(tensors, content)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TicketError(f"{path}: its parts do not fit together ({error}); make the ticket again") from error

    @classmethod
    def _from_content(cls, tensors: Mapping[str, Tensor], content: dict[str, Any]) -> Ticket:
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in ("mask", *WEIGHTS)}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        shapes = content.pop("shapes")
        masks = Mask({name: _unpack(name, parts["mask"][name], shape) for name, shape in shapes.items()})
        order = content.pop("order")
        initial, trained = ({name: parts[weights][name] for name in order} for weights in WEIGHTS)
        for values in (initial, trained):
            for name, mask in masks.items():
                if list(values[name].shape) != [int(mask.sum())]:
                    raise TicketError(f"{name} has {values[name].numel()} values for {int(mask.sum())} places")
        return cls(masks, initial, trained, **content)

    def _tensors(self) -> dict[str, Tensor]:
        packed = {f"mask/{name}": _pack(mask) for name, mask in self.masks.items()}
        initial = {f"initial/{name}": tensor for name, tensor in self.initial.items()}
        return {**packed, **initial, **{f"trained/{name}": tensor for name, tensor in self.trained.items()}}

    def _content(self) -> dict[str, Any]:
        names = ("level", "control", "parent", "aliases", "hyperparameters", "metrics", "history", "versions")
        content = {name: getattr(self, name) for name in names}
        if self.conversion:  # left out of others, whose hashes are older than conversions
            content["conversion"] = self.conversion
        return {
            **content,
            # Keys are sorted in the file, but the order of a state_dict matters, so it is kept by itself.
            "shapes": {name: list(mask.shape) for name, mask in self.masks.items()},
            "order": list(self.initial),
        }

    def __repr__(self) -> str:
        kind = f", control={self.control!r}" if self.control else ""
        kind += f", conversion={self.conversion['method']!r}" if self.conversion else ""
        return f"Ticket(level={self.level}{kind}, density={self.density:.4g}, hash={self.hash[:12]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ticket) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)


def _compact(state: Mapping[str, Tensor], masks: Mask) -> dict[str, Tensor]:
    compact: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        compact[name] = tensor[masks[name]].clone() if name in masks else tensor.clone()
    return compact


def _scatter(mask: Tensor, values: Tensor) -> Tensor:
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    dense[mask] = values
    return dense


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.reshape(-1).numpy()))


def _unpack(name: str, packed: Tensor, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != -(-count // 8):
        raise TicketError(f"the mask of {name} has {packed.numel()} bytes for {count} weights")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count).astype(bool)).reshape(shape)


def _check_architecture(
    model: nn.Module, wanted: Mapping[str, Sequence[int]], before: Mapping[str, Sequence[int]]
) -> None:
    """Refuse a model of other names or shapes; ``before`` has the shapes that some tensors had before a conversion."""
    theirs = model.state_dict()
    what = "the architecture that the ticket was found in"
    missing = [name for name in wanted if name not in theirs]
    unknown = [name for name in theirs if name not in wanted]
    if missing or unknown:
        got = f"a model without {missing[0]!r}" if missing else f"a model with {unknown[0]!r}, which the ticket lacks"
        more = len(missing) + len(unknown) - 1
        raise ArgumentError(expected("model", what, got + (f" ({more} more names differ)" if more else "")))
    for name, shape in wanted.items():
        found = list(theirs[name].shape)
        if found not in (list(shape), list(before.get(name, shape))):
            raise ArgumentError(expected("model", what, f"{name} of shape {found} instead of {list(shape)}"))

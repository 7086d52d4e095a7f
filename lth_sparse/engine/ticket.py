"""The ticket: a mask, the weights to start from, the weights that training ended with, and where it came from.

On disk it is one safetensors file (no pickle). Of a masked weight only the survivors are stored, in flat (row-major)
order, so a ticket shrinks with its density:

    mask/<name>      uint8 [ceil(numel / 8)], numpy.packbits of the flattened mask
    initial/<name>   theta_0 (or theta_k): [nnz] of a masked weight, the whole tensor of anything else, buffers included
    trained/<name>   the same after training

The rest is JSON: level, control, parent's hash, shapes, hyperparameters, metrics, history, versions, content hash.
Nothing that changes from run to run (times, paths, process ids) is inside: the same search gives the same bytes.

A ticket that holds the weights of one moment only, made by :meth:`Ticket.reduced`, is a file for inference: instead of
masks it has code/<name>, uint8, see :mod:`lth_sparse.formats.coding`, and its values may be 16 bits wide.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth_sparse._version import __version__
from lth_sparse.engine import container
from lth_sparse.engine.transfer import fresh_names, fresh_state, sized
from lth_sparse.errors import ArgumentError, ArgumentTypeError, TicketError, expected
from lth_sparse.formats import Mask
from lth_sparse.formats.coding import decode_mask, encode_mask
from lth_sparse.nn import sparsify_

__all__ = ["Ticket", "versions"]

#: Kinds of file: both sets of weights, or one.
KIND, REDUCED = "ticket", "reduced ticket"
WEIGHTS = ("initial", "trained")
#: What the values of a reduced ticket may be stored as.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
        trained: the same at the end of this level's training. A reduced ticket holds one of both, the other is empty.
        level: 0 is dense.
        control: None, or the control that this is.
        parent: content hash of the ticket of the level before (for a control: of its own level); None at level 0.
        aliases: names in the model's state_dict of tensors that are stored under another name (tied weights).
        hyperparameters: of the search; metrics, history: as recorded while training; versions: of the libraries.
        conversion: empty, or how :func:`lth_sparse.convert` made it from ``parent``: method, target, options, under
            "layouts" how each converted layer is stored, and under "shapes" the former shapes of tensors that have
            become smaller.
        source: content hash of the whole ticket that a reduced one was made of; None for a whole one.
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
    source: str | None = None

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
        state: dict[str, Tensor] = {}
        for name, tensor in self.compact(weights).items():
            mask = self.masks.get(name)
            state[name] = tensor.clone() if mask is None else _scatter(mask, tensor)
        state.update({alias: state[name] for alias, name in self.aliases.items()})
        return state

    def compact(self, weights: str = "initial") -> dict[str, Tensor]:
        """``initial`` or ``trained`` by name, survivors alone of masked weights.

        Raises:
            ArgumentError: another name, or the set that this reduced ticket is without.
        """
        if weights not in WEIGHTS:
            raise ArgumentError(expected("weights", "'initial' or 'trained'", repr(weights)))
        found: dict[str, Tensor] = getattr(self, weights)
        if self._held and not found:
            what = f"{self._held!r}, the only ones that this reduced ticket holds"
            raise ArgumentError(expected("weights", what, repr(weights)))
        return found

    @property
    def _held(self) -> str | None:
        """The one set of weights of a reduced ticket; None for a whole ticket."""
        if bool(self.initial) == bool(self.trained):
            return None
        return "initial" if self.initial else "trained"

    def reduced(self, weights: str = "trained", dtype: torch.dtype | None = None) -> Ticket:
        """The ticket with one set of weights and without its history: what inference needs, in the smallest file.

        Args:
            weights: "trained" or "initial".
            dtype: float16 or bfloat16 (or float32) to store the values of pruned weights in, and whatever else has two
                dimensions or more; biases, normalisation and statistics stay as they are. None keeps all.

        Raises:
            ArgumentError: other weights or dtypes, or a value that ``dtype`` cannot hold.
        """
        if dtype is not None and dtype not in DTYPES:
            raise ArgumentError(expected("dtype", f"None or one of {', '.join(map(str, DTYPES))}", f"{dtype}"))
        values = {name: self._rounded(name, tensor, dtype) for name, tensor in self.compact(weights).items()}
        sets: dict[str, Any] = {**{name: {} for name in WEIGHTS}, weights: values}
        return replace(self, **sets, history=[], source=self.source or self.hash)

    def _rounded(self, name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        wide = tensor.is_floating_point() and (name in self.masks or tensor.dim() > 1)
        if dtype is None or not wide:
            return tensor
        rounded = tensor.to(dtype)
        if bool((rounded.isinf() & ~tensor.isinf()).any()):
            what = f"one that holds all values of {name}"
            raise ArgumentError(expected("dtype", what, f"{dtype}, where some are infinite"))
        return rounded

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
        fresh: str | Iterable[str] | Mapping[str, float] = (),
    ) -> nn.Module:
        """The ticket as a sparse model, ready to train ("initial") or to use ("trained").

        The weights take the dtype and the device of ``model``.

        Args:
            model: the plain architecture that the ticket was found in; its own weights matter where ``fresh`` says.
            weights: "initial" or "trained".
            layout, block, channels_last, cover, sample_input: as for :func:`lth_sparse.sparsify_`. With ``"auto"``, the
                layers of a converted ticket are stored as the conversion says, the others as ``sparsify_`` chooses.
            inplace: change ``model`` itself instead of a deep copy.
            fresh: layers that keep the weights of ``model``, and may differ from the ticket's in shape or be missing on
                either side: the output layer of another problem, the input layer of other data. Names or globs, as for
                ``freeze`` of :func:`lth_sparse.find_ticket`. They stay dense; ``{"output": 0.2}`` prunes the layer to
                that density, by the magnitude of its fresh weights.

        Raises:
            ArgumentError: ``model`` has other names or shapes; the message names the first that differs. Or a name in
                ``fresh`` that neither has, or nothing of the ticket is left.
        """
        _check_model(model)
        state, masks, before = self.state_dict(weights), dict(self.masks), self._former_shapes
        if names := fresh_names(fresh, model, state, self.aliases):
            state, masks = fresh_state(fresh, names, model, state, masks)
        model = sized(model, state, before, fresh=names, inplace=inplace)
        model.load_state_dict(state, strict=True)
        pruned = {name: mask for name, mask in masks.items() if not bool(mask.all())}
        given: dict[str, Any] = {"block": block, "channels_last": channels_last, "cover": cover}
        layouts = self.conversion.get("layouts", {}) if layout == "auto" else {}
        for name, stored in layouts.items():
            mask = None if name in names else pruned.pop(name, None)
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
        _check_model(model)
        state = self.state_dict("trained" if self._held == "trained" else "initial")
        return sized(model, state, self._former_shapes, inplace=inplace)

    @property
    def _former_shapes(self) -> dict[str, list[int]]:
        """Shapes before a conversion, of tensors that it made smaller."""
        shapes: dict[str, list[int]] = self.conversion.get("shapes", {})
        return shapes

    def save(self, path: str | os.PathLike[str], weights: str | None = None, dtype: torch.dtype | None = None) -> None:
        """Write the file, completely or not at all.

        Args:
            path: of the file.
            weights: "trained" or "initial" writes these alone, see :meth:`reduced`, and masks in as few bytes as they
                need: about the density times the bytes of the dense weights. None writes all that the ticket holds.
            dtype: see :meth:`reduced`; only with ``weights``.

        Raises:
            RunError: it cannot be written (full disk, missing or read-only directory).
            ArgumentError: as :meth:`reduced`.
        """
        if weights is not None:
            self.reduced(weights, dtype).save(path)
        elif dtype is not None:
            raise ArgumentError(expected("dtype", "weights='trained' or 'initial' beside it", "weights=None"))
        elif self._held:
            container.write(path, REDUCED, self._tensors("code", encode_mask), self._content())
        else:
            container.write(path, KIND, self._tensors(), self._content())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ticket:
        """Read a ticket file and verify its content hash.

        Raises:
            TicketError: missing, damaged, truncated, no ticket, or from a newer version; the message says which, and
                what to do.
        """
        tensors, content, _ = container.read(path, KIND, REDUCED)
        try:
            return cls._from_content(tensors, content)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TicketError(f"{path}: its parts do not fit together ({error}); make the ticket again") from error

    @classmethod
    def _from_content(cls, tensors: Mapping[str, Tensor], content: dict[str, Any]) -> Ticket:
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in ("mask", "code", *WEIGHTS)}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        shapes, order, held = content.pop("shapes"), content.pop("order"), content.pop("held", None)
        sets: dict[str, dict[str, Tensor]] = {name: {} for name in WEIGHTS}
        for weights in (held,) if held else WEIGHTS:
            sets[weights] = {name: parts[weights][name] for name in order}
        if held:
            values = sets[held]
            masks = {n: decode_mask(parts["code"][n], tuple(s), values[n].numel()) for n, s in shapes.items()}
        else:
            masks = {name: _unpack(name, parts["mask"][name], shape) for name, shape in shapes.items()}
        for values in filter(None, sets.values()):
            for name, mask in masks.items():
                if list(values[name].shape) != [int(mask.sum())]:
                    raise TicketError(f"{name} has {values[name].numel()} values for {int(mask.sum())} places")
        return cls(Mask(masks), sets["initial"], sets["trained"], **content)

    def _tensors(self, part: str = "mask", coded: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """What is stored: masks under ``part``, as ``coded`` gives them, by default plain bits; and the weights."""
        masks = {f"{part}/{name}": (coded or _pack)(mask) for name, mask in self.masks.items()}
        initial = {f"initial/{name}": tensor for name, tensor in self.initial.items()}
        return {**masks, **initial, **{f"trained/{name}": tensor for name, tensor in self.trained.items()}}

    def _content(self) -> dict[str, Any]:
        names = ("level", "control", "parent", "aliases", "hyperparameters", "metrics", "history", "versions")
        content = {name: getattr(self, name) for name in names}
        if self.conversion:  # left out of others, whose hashes are older than conversions
            content["conversion"] = self.conversion
        reduced = {"held": self._held, "source": self.source} if self._held else {}
        return {
            **content,
            **reduced,
            # Keys are sorted in the file, but the order of a state_dict matters, so it is kept by itself.
            "shapes": {name: list(mask.shape) for name, mask in self.masks.items()},
            "order": list(self.initial or self.trained),
        }

    def __repr__(self) -> str:
        kind = f", control={self.control!r}" if self.control else ""
        kind += f", conversion={self.conversion['method']!r}" if self.conversion else ""
        kind += f", {self._held} weights only" if self._held else ""
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


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(expected("model", "a torch.nn.Module", type(model).__name__))

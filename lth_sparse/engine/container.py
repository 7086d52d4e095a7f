"""One safetensors file with one JSON text in it and a hash over both: what tickets and snapshots are stored as.

The bytes are canonical: the same content gives the same file. safetensors writes the entries of its metadata in random
order, so everything goes into a single entry, ``"lth_sparse"``. Nothing is pickled, so nothing is executed at load.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lth_sparse._files import atomic_write
from lth_sparse.errors import ArgumentError, TicketError

__all__ = ["FORMAT", "canonical_json", "content_hash", "raw_bytes", "read", "write"]

#: Raised with every change that older code could not read.
FORMAT = 1

ENTRY = "lth_sparse"

ADVICE = "restore it from a copy or make it again"


def canonical_json(content: Any) -> str:
    """The one JSON text of ``content``: sorted keys, no spaces, no NaN.

    Raises:
        ArgumentError: something in it has no JSON form.
    """
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"metadata: expected plain numbers, strings, lists and dicts ({error})") from error


def raw_bytes(tensor: Tensor) -> bytes:
    """The tensor's elements as they lie in memory, row-major; any dtype and device."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def content_hash(kind: str, tensors: Mapping[str, Tensor], content: Any) -> str:
    """sha256 over kind, canonical JSON of ``content``, and name, dtype, shape and bytes of each tensor by name."""
    digest = hashlib.sha256(canonical_json([FORMAT, kind, content]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def write(path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], content: Any) -> str:
    """Write the file, completely or not at all, and return its content hash.

    Raises:
        RunError: the file cannot be written.
        ArgumentError: ``content`` has no JSON form.
    """
    digest = content_hash(kind, tensors, content)
    text = canonical_json({"format": FORMAT, "kind": kind, "content": content, "hash": digest})
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, save(ready, {ENTRY: text}))
    return digest


def read(path: str | os.PathLike[str], kind: str, *others: str) -> tuple[dict[str, Tensor], Any, str]:
    """Read a file of the given kind, or of one of ``others``: its tensors, its content, its hash.

    Raises:
        TicketError: it is missing, damaged, truncated, of another kind or from a newer version; the message says which.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TicketError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        tensors = load(data)
        (length,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, RuntimeError, struct.error) as error:
        raise TicketError(f"{path}: not a safetensors file, or damaged or truncated ({error}); {ADVICE}") from error
    if ENTRY not in metadata:
        raise TicketError(f"{path}: a safetensors file, but not written by lth_sparse; expected a {kind} file")
    try:
        header = json.loads(metadata[ENTRY])
        version, found, content, digest = (header[key] for key in ("format", "kind", "content", "hash"))
    except (ValueError, KeyError, TypeError) as error:
        raise TicketError(f"{path}: its header is damaged; {ADVICE}") from error
    if version != FORMAT:
        advice = "update lth_sparse" if isinstance(version, int) and version > FORMAT else "make it again"
        raise TicketError(f"{path}: expected file format {FORMAT}, got {version!r}; {advice}")
    if found not in (kind, *others):
        raise TicketError(f"{path}: expected a {kind} file, got a {found} file")
    if content_hash(found, tensors, content) != digest:
        raise TicketError(f"{path}: damaged: its content does not match its hash; {ADVICE}")
    return tensors, content, digest

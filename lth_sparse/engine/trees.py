"""Plain state (numbers, strings, lists, dicts, tensors, arrays) to JSON plus tensors, and back: storage without pickle.

Enough for the state_dict of optimisers, schedulers and gradient scalers, and for random states; int keys and tuples
survive.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lth_sparse.errors import ArgumentTypeError, expected

__all__ = ["decode", "encode"]


def encode(tree: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """JSON form of ``tree``; its tensors are cloned to the CPU and added to ``tensors`` under ``where`` and a number.

    Raises:
        ArgumentTypeError: an object of another type, naming ``where`` it was met.
    """
    if tree is None or isinstance(tree, (bool, str)) or type(tree) is int:
        return tree
    if type(tree) is float:
        return tree if math.isfinite(tree) else ["float", repr(tree)]
    if isinstance(tree, Tensor):
        key = f"{where}#{len(tensors)}"
        tensors[key] = tree.detach().cpu().clone()
        return ["tensor", key]
    if isinstance(tree, np.ndarray) and tree.dtype.kind in "iubf":
        key = f"{where}#{len(tensors)}"
        # Integers as int64: torch and safetensors of some versions lack unsigned types.
        tensors[key] = torch.from_numpy(tree.copy() if tree.dtype.kind == "f" else tree.astype(np.int64))
        return ["array", key, tree.dtype.str]
    if isinstance(tree, np.generic):
        return encode(tree.item(), where, tensors)
    if isinstance(tree, (list, tuple)):
        if len(tree) > 32 and all(type(item) is int and 0 <= item < 2**32 for item in tree):
            key = f"{where}#{len(tensors)}"  # Python's random state: 625 words
            tensors[key] = torch.tensor(list(tree), dtype=torch.int64)
            return ["words", key, "tuple" if isinstance(tree, tuple) else "list"]
        return ["tuple" if isinstance(tree, tuple) else "list", [encode(item, where, tensors) for item in tree]]
    if isinstance(tree, dict):
        items = [[encode(k, where, tensors), encode(v, f"{where}.{k}", tensors)] for k, v in tree.items()]
        return ["counter" if isinstance(tree, Counter) else "dict", items]
    what = "numbers, strings, tensors, lists and dicts only in a state_dict"
    raise ArgumentTypeError(expected(where, what, f"a {type(tree).__name__}"))


def decode(form: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree that :func:`encode` was given; tensors are fresh copies."""
    if not isinstance(form, list):
        return form
    tag, content = form[0], form[1]
    if tag == "float":
        return float(content)
    if tag == "tensor":
        return tensors[content].clone()
    if tag == "array":
        return tensors[content].numpy().astype(form[2])
    if tag == "words":
        return (tuple if form[2] == "tuple" else list)(tensors[content].tolist())
    if tag in ("list", "tuple"):
        return (tuple if tag == "tuple" else list)(decode(item, tensors) for item in content)
    pairs = {decode(key, tensors): decode(value, tensors) for key, value in content}
    return Counter(pairs) if tag == "counter" else pairs

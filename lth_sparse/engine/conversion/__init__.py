"""From mask to blocks: conversion of an unstructured ticket, with an honest ledger.

``methods.py`` remakes the mask of a layer, ``layer.py`` decides whether that pays, ``conversion.py`` puts the converted
ticket together. ``ledger.py`` measures every method on one ticket, and ``entries.py`` says which is the best.
"""

from __future__ import annotations

from lth_sparse.engine.conversion.conversion import Conversion, convert
from lth_sparse.engine.conversion.entries import Best, Entry, Ledger
from lth_sparse.engine.conversion.layer import LayerConversion
from lth_sparse.engine.conversion.ledger import STANDARD, ledger
from lth_sparse.engine.conversion.methods import METHODS, Method

__all__ = [
    "METHODS",
    "STANDARD",
    "Best",
    "Conversion",
    "Entry",
    "LayerConversion",
    "Ledger",
    "Method",
    "convert",
    "ledger",
]

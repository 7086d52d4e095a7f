"""From mask to blocks: conversion of an unstructured ticket, with an honest ledger.

methods     the mask of a layer, remade
order       channels permuted through the network first, so that blocks get fuller
layer       what becomes of one layer, and whether that pays
shrinking   dead channels removed from the network
conversion  ``convert``: the converted ticket
ledger      every method on one ticket, measured
entries     the rows of the ledger, and which of them is the best
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

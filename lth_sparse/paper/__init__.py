"""Frankle & Carbin 2018 as printed: the networks, the data sets, the hyperparameters and the training loop.

preset = PRESETS["lenet"].quick()
data = preset.load_data()
model = build_model(preset.model, data, seed=0, dropout=preset.dropout)
result = lth_sparse.find_ticket(model, make_train(preset, data), levels=preset.levels, rates=preset.rates, seed=0)
"""

from __future__ import annotations

from lth_sparse.paper.data import DATASETS, DataSet, Split, load_dataset
from lth_sparse.paper.models import MODELS, PaperNet, build_model
from lth_sparse.paper.presets import PRESETS, Preset
from lth_sparse.paper.training import evaluate, make_train, score_batches

__all__ = [
    "DATASETS",
    "MODELS",
    "PRESETS",
    "DataSet",
    "PaperNet",
    "Preset",
    "Split",
    "build_model",
    "evaluate",
    "load_dataset",
    "make_train",
    "score_batches",
]

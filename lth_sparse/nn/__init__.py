"""Sparse layers, and the way from a dense model to a sparse one and back.

``sparsify_`` replaces ``nn.Linear``, ``nn.Conv1d`` and ``nn.Conv2d`` by layers whose parameter is the compact
``values`` of the weights that a mask keeps; ``densify_`` undoes it. The model computes the same in both directions.
"""

from __future__ import annotations

from lth_sparse.nn.base import SparseModule
from lth_sparse.nn.channels import (
    ChannelGroups,
    ShrinkReport,
    channel_groups,
    permute_channels_,
    permute_state,
    reorder_model,
    shrink_,
)
from lth_sparse.nn.convert import dense_state_dict, densify_, sparsify_
from lth_sparse.nn.dynamic import update_entries_, update_mask_
from lth_sparse.nn.feature_major import feature_major_
from lth_sparse.nn.fused import fuse_activations_, fuse_relu_
from lth_sparse.nn.layers import SparseConv1d, SparseConv2d, SparseLinear
from lth_sparse.nn.masks import find_masks, masks_of, sparse_modules
from lth_sparse.nn.plan_table import LayerPlan, PlanTable
from lth_sparse.nn.planning import plan
from lth_sparse.nn.report import LayerReport, SparsifyReport
from lth_sparse.nn.stack import LinearStack, SparseLinearStack
from lth_sparse.nn.tuning import tune

__all__ = [
    "ChannelGroups",
    "LayerPlan",
    "LayerReport",
    "LinearStack",
    "PlanTable",
    "ShrinkReport",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SparseLinearStack",
    "SparseModule",
    "SparsifyReport",
    "channel_groups",
    "dense_state_dict",
    "densify_",
    "feature_major_",
    "find_masks",
    "fuse_activations_",
    "fuse_relu_",
    "masks_of",
    "permute_channels_",
    "permute_state",
    "plan",
    "reorder_model",
    "shrink_",
    "sparse_modules",
    "sparsify_",
    "tune",
    "update_entries_",
    "update_mask_",
]

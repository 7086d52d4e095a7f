"""A finished model leaves for other runtimes: ONNX, and programs of ``torch.export``.

Dense files need nothing of this library: pruned weights are zeros there. Sparse ones compute on its kernels.
"""

from __future__ import annotations

from lth_sparse.integrations.onnx_export import export_onnx
from lth_sparse.integrations.prepare import inference_copy
from lth_sparse.integrations.program import export_program

__all__ = ["export_onnx", "export_program", "inference_copy"]

"""Triton kernels for GPUs: imported as ``lth_sparse.kernels``, kept in ``kernels/`` in the repository's root.

``bsr_linear`` and ``bsr_linear_backward`` have the three products of a block-sparse (BSR) linear layer, ``bsr_conv``
and ``bsr_conv_backward`` those of a convolution, ``bsr_conv_nhwc`` what is its own of one over a channels_last weight,
``conv_tiles`` what they share; ``csr_linear`` has those of an unstructured linear layer, and ``bitmap_linear``
multiplies a few tokens straight from the bitmap of the dense layout. ``epilogue`` has the activations that a product
ends with. ``launch`` (with ``tables``, ``candidates`` and ``trials``) and ``launch_csr`` choose the configurations.
Files have the stem of their op: ``bsr_linear.py`` beside ``tests/kernels/test_bsr_linear.py``. What has no kernel here
(unstructured convolutions but 1x1, float64) is served on CUDA by the plain torch reference of ``lth_sparse.ops``:
right, but not faster than dense, and reported as the backend ``reference``.

The kernels are proven by Triton's interpreter (``make test``) and by ahead-of-time compilation for several GPUs
(``make gpu-compile``). They have not run on a device yet, and no speed is claimed.

What belongs here: functions that launch a kernel on tensors that were checked above. What does not: formats, autograd,
modules. This package imports nothing from the rest of ``lth_sparse``, and only a machine with Triton can import its
kernels.
"""

from __future__ import annotations

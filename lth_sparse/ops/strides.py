"""Feature-major activations: the batch contiguous, as the CPU kernels want it.

A tensor ``[N, *features]`` is *feature-major* when its memory holds ``[*features, N]``: strides ``(1, N)`` for a
matrix, ``(1, H W N, W N, N)`` for images. As with torch's channels_last the strides carry the format: an operator that
is given a feature-major input returns a feature-major output, gradients take the format of what they are gradients of,
and everything else is contiguous. Elementwise functions of torch keep the strides, so a chain of sparse layers
rearranges its activations at its two ends and nowhere between.

An operator over a *channels_last* layout (:class:`lth_sparse.formats.BSR`) knows one format more, on every backend: it
returns channels_last images for channels_last ones. Those that are contiguous as well (of one channel, or one pixel)
count as channels_last there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "batch_major",
    "empty_activations",
    "empty_gradient",
    "empty_owed",
    "feature_major",
    "flattened",
    "in_one_format",
    "is_channels_last",
    "is_feature_major",
    "kept_format",
    "pointer_of",
    "strides_of",
]


def is_feature_major(x: Tensor) -> bool:
    """True when the memory of ``x`` ``[N, *features]`` is exactly ``[*features, N]`` and is not contiguous as well."""
    batch = x.shape[0]
    if batch < 2 or x.stride(0) != 1:
        return False
    expected, differs = batch, False
    for dim in range(x.dim() - 1, 0, -1):
        if x.shape[dim] != 1:
            if x.stride(dim) != expected:
                return False
            expected *= x.shape[dim]
            differs = True
    return differs


def is_channels_last(x: Tensor) -> bool:
    """True for images ``[N, C, H, W]`` whose memory is ``[N, H, W, C]``."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def feature_major(x: Tensor) -> Tensor:
    """``x`` ``[N, *features]`` with feature-major strides: itself when it has them, else a copy. Differentiable.

    The copy goes through a matrix, which torch transposes block by block, several times faster than any other strides.
    """
    if is_feature_major(x) or x.numel() == 0 or x.dim() < 2:
        return x
    return x.reshape(x.shape[0], -1).t().contiguous().view(*x.shape[1:], x.shape[0]).movedim(-1, 0)


def batch_major(x: Tensor) -> Tensor:
    """``x`` contiguous: the way back from :func:`feature_major`."""
    if not is_feature_major(x):
        return x.contiguous()
    return flattened(x).contiguous().view(x.shape)


def flattened(x: Tensor) -> Tensor:
    """Feature-major ``[N, *features]`` as a feature-major matrix ``[N, prod(features)]``, without a copy."""
    return x.movedim(0, -1).reshape(-1, x.shape[0]).t()


def empty_activations(like: Tensor, size: Sequence[int], in_feature_major: bool) -> Tensor:
    """Uninitialised activations of ``size`` ``[N, *features]``, feature-major or contiguous, of dtype and device of
    ``like``."""
    if not in_feature_major:
        return like.new_empty(size)
    return like.new_empty((*size[1:], size[0])).movedim(-1, 0)


def empty_owed(x: Tensor, like: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    """Uninitialised images in the format that a convolution given ``x`` owes, of dtype and device of ``like``.

    ``channels_last`` says whether the layout is one."""
    if channels_last and is_channels_last(x):
        return like.new_empty((size[0], *size[2:], size[1])).movedim(-1, 1)
    return empty_activations(like, size, is_feature_major(x))


def pointer_of(tensor: Tensor | None) -> int:
    """Address of the first element; 0, the extension's null, for None."""
    return 0 if tensor is None else tensor.data_ptr()


def strides_of(matrix: Tensor | None) -> tuple[int, int]:
    """Strides of a matrix, zeros for None."""
    if matrix is None:
        return 0, 0
    batch, feature = matrix.stride()
    return batch, feature


def empty_gradient(x: Tensor) -> Tensor:
    """Uninitialised gradient of ``x``: feature-major if ``x`` is, else contiguous."""
    if x.is_contiguous() or is_feature_major(x):
        return torch.empty_like(x)
    return x.new_empty(x.shape)


def in_one_format(grad: Tensor, activated: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both feature-major or both contiguous. Where they differ, as ``activated`` is: that is the layer's own format."""
    if activated is None:
        return grad if is_feature_major(grad) else grad.contiguous(), None
    activated = activated if is_feature_major(activated) else activated.contiguous()
    return kept_format(grad, activated), activated


def kept_format(y: Tensor, x: Tensor, channels_last: bool = False) -> Tensor:
    """``y`` in the format that an operator given ``x`` owes: feature-major if ``x`` is, else contiguous; channels_last
    if ``x`` and the layout are."""
    if channels_last and is_channels_last(x):
        return y.contiguous(memory_format=torch.channels_last)
    return feature_major(y) if is_feature_major(x) else batch_major(y)

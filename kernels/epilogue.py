"""What follows a product while its tile is still in registers: the activations that kernels apply before they round.

``relu(v) = max(v, 0)``; ``gelu(v) = v Phi(v)`` with the normal distribution's Phi by the error function; ``gelu_tanh``
is Hendrycks and Gimpel's approximation of it, torch's ``approximate="tanh"``; ``silu(v) = v sigmoid(v)``. All in
float32, from the unrounded sum: a pass over the activations less, and no rounding between the two.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["ACTIVATIONS", "activate"]

#: The names that kernels take as ``ACTIVATION``.
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")


@triton.jit
def sigmoid(z):  # type: ignore[no-untyped-def]
    """``1 / (1 + exp(-z))`` without an overflow, and with full relative accuracy in both tails."""
    small = tl.exp(-tl.abs(z))
    return tl.where(z >= 0.0, 1.0, small) / (1.0 + small)


@triton.jit
def activate(v, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """``ACTIVATION`` of every element of ``v``, float32."""
    if ACTIVATION == "relu":
        # a comparison keeps NaN, which a maximum may drop
        v = tl.where(v <= 0.0, 0.0, v)
    elif ACTIVATION == "gelu":
        v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # 1/2 (1 + tanh(u)) = sigmoid(2 u), u = sqrt(2 / pi) (v + 0.044715 v^3)
        v = v * sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))
    elif ACTIVATION == "silu":
        v = v * sigmoid(v)
    return v

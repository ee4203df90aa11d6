"""The gates of feed-forward units, in float32."""

from __future__ import annotations

from typing import Literal

import triton
import triton.language as tl

from triptych_kernels.reference import SWIGLU_ALPHA, SWIGLU_LIMIT

Gate = Literal["silu", "gelu_tanh", "clamped_swiglu"]
GATES: dict[Gate, int] = {"silu": 0, "gelu_tanh": 1, "clamped_swiglu": 2}

_ALPHA = tl.constexpr(SWIGLU_ALPHA)
_LIMIT = tl.constexpr(SWIGLU_LIMIT)


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (1.0 + tl.exp(x + x))


@triton.jit
def gated(gate, up, GATE: tl.constexpr):
    """act(gate) × up; the twins are in `triptych_kernels.reference`. NaN stays NaN."""
    if GATE == 0:
        return gate / (1.0 + tl.exp(-gate)) * up
    elif GATE == 1:
        inner = (gate + gate * gate * gate * 0.044715) * 0.7978845608028654
        return gate * 0.5 * (1.0 + _tanh(inner)) * up
    else:
        gate = tl.where(gate > _LIMIT, _LIMIT, gate)
        up = tl.where(up > _LIMIT, _LIMIT, tl.where(up < -_LIMIT, -_LIMIT, up))
        return gate / (1.0 + tl.exp(gate * -_ALPHA)) * (up + 1.0)

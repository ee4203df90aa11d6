"""Rounding to small types by integer arithmetic: to nearest even, the same bits on every device.

Triton's interpreter cuts off where GPUs round, and GPUs before sm_89 know no e4m3.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triptych_kernels.triton.common import UPCAST

_ROUND = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 → dtype, to nearest even."""
    if UPCAST and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        kept = tl.where(x == x, rounded, (bits >> 16) | 0x40)
        return kept.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def round_whole(x):
    """To the nearest whole number, ties to even, for |x| < 2²²."""
    return (x + _ROUND) - _ROUND


@triton.jit
def to_e4m3(x):
    """float32 of at most 448 in size → the bits of float8 e4m3fn, uint8."""
    bits = x.to(tl.uint32, bitcast=True)
    sign = (bits >> 31) << 7
    size = bits & 0x7FFFFFFF
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    small = round_whole(tl.minimum(tl.abs(x), 1.0) * 512.0).to(tl.uint32)  # steps of 2⁻⁹
    code = tl.where(size >= (121 << 23), normal, small)
    return (tl.where(x == x, code, 0x7F) | sign).to(tl.uint8)


@triton.jit
def from_e4m3(code):
    """The bits of float8 e4m3fn, uint8 → float32."""
    code = code.to(tl.uint32)
    size = code & 0x7F
    normal = ((size << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    x = tl.where(size >= 8, normal, size.to(tl.float32) * 0.001953125)
    x = tl.where(size == 0x7F, float("nan"), x)
    return tl.where(code >= 0x80, -x, x)

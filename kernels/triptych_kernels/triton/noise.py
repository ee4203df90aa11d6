"""Gumbel noise by counter, on the device: the twin of `triptych_kernels.sampling.token_noise`,
equal to the bit.

The hash is 64-bit integer arithmetic. The two logs are sums, products and quotients of float64,
each rounded once as IEEE 754 wants it, so there is no last bit to argue about: no libm, no
approximate instruction. What could break it is a compiler that fuses a product with a sum; that is
what NO_FUSION is for, and cases that are `exact` are checked for it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triptych_kernels.triton.common import LOG2E

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_FIRST = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_SECOND = tl.constexpr(0x94D049BB133111EB)
_ROOT_HALF = tl.constexpr(0x3FE6A09E667F3BCD)  # the bits of √½ as a float64
_LN2_HIGH = tl.constexpr(float.fromhex("0x1.62e42fefa38p-1"))
_LN2_LOW = tl.constexpr(float.fromhex("0x1.ef35793c7673p-45"))
_HALF_STEP = tl.constexpr(2.0**-25)
_STEP = tl.constexpr(2.0**-24)
_BITS = tl.constexpr(1 << 24)
# Wider than all roundings between the bound of a score and the score.
_MARGIN = tl.constexpr(2.0**-10)
_MARGIN_OF_BEST = tl.constexpr(2.0**-20)


@triton.jit
def _mix(x):
    """SplitMix64's finaliser on uint64."""
    x = (x ^ (x >> 30)) * _MIX_FIRST
    x = (x ^ (x >> 27)) * _MIX_SECOND
    return x ^ (x >> 31)


@triton.jit
def noise_key(seed, position):
    """seed, position int64 → uint64, see `triptych_kernels.sampling.noise_key`."""
    mixed = _mix(seed.to(tl.uint64, bitcast=True))
    return _mix(mixed + position.to(tl.uint64, bitcast=True) * _GOLDEN)


@triton.jit
def noise_bits(key, tokens):
    """tokens int32 [n] ≥ 0 → the 24 bits [n] int32 that are each token's own."""
    counters = (tokens.to(tl.uint64) + 1) * _GOLDEN + key
    return (_mix(counters) >> 40).to(tl.int32)


@triton.jit
def _log(x):
    """Natural log of positive float64 [n]; the steps of `triptych_kernels.sampling._log`."""
    bits = x.to(tl.int64, bitcast=True)
    exponent = (bits - _ROOT_HALF) >> 52
    f = (bits - (exponent << 52)).to(tl.float64, bitcast=True) - 1.0
    e = exponent.to(tl.float64)
    s = f / (f + 2.0)
    z = s * s
    series = tl.full(x.shape, 2 / 23, tl.float64)
    for odd in tl.static_range(21, 1, -2):
        series = series * z + 2 / odd
    half_square = f * 0.5 * f
    tail = s * (half_square + series * z) + e * _LN2_LOW
    return e * _LN2_HIGH - ((half_square - tail) - f)


@triton.jit
def noise_of_bits(bits):
    """bits int32 [n] → −log(−log u), u = (bits + ½) · 2⁻²⁴; float32 [n]."""
    u = (bits.to(tl.float64) + 0.5) * _STEP
    return -(_log(-_log(u)).to(tl.float32))


@triton.jit
def may_beat(scores, bits, best):
    """Tokens [n] whose score with noise may reach `best`; few of those that cannot.

    From −log u ≥ 1 − u follows noise ≤ −log(1 − u), so a token below `best` by d must have
    1 − u ≤ e^−d: one rough exponential instead of two logs.
    """
    complement = (-bits + _BITS).to(tl.float32) * _STEP - _HALF_STEP
    low = best - (tl.abs(best) * _MARGIN_OF_BEST + _MARGIN)
    return tl.exp2((scores - low) * LOG2E) >= complement

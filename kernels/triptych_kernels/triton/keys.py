"""Choosing the first k of a long row without sorting it, by a radix search on monotone keys.

A row is walked once for each digit of the threshold; counts and masses are whole numbers, so their
sums depend on no order. Of equal values the lowest place comes first, as everywhere here.
"""

from __future__ import annotations

import triton
import triton.language as tl

DIGIT_BITS = tl.constexpr(4)
DIGITS = tl.constexpr(16)
_SIGN = tl.constexpr(0x80000000)
_ALL = tl.constexpr(0xFFFFFFFF)


@triton.jit
def order_key(x):
    """float32 → uint32 in the same order; ±0 are one key, NaN must not occur."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 != 0, bits ^ _ALL, bits ^ _SIGN)


@triton.jit
def token_key(key, token):
    """order_key and id as one uint64: greater logits are greater, of equal ones the lower id is."""
    return key.to(tl.uint64) << 32 | ((-token - 1).to(tl.uint32, bitcast=True)).to(tl.uint64)


@triton.jit
def value_of_key(key):
    """The float32 behind an `order_key`."""
    bits = tl.where(key >> 31 != 0, key ^ _SIGN, key ^ _ALL)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def digit_sums(keys, amounts, prefix, shift: tl.constexpr):
    """amounts [n] int64 of the keys that begin with `prefix`, by their digit at `shift`: [16]."""
    wide = keys.to(tl.uint64)  # a shift by all 32 bits is none
    inside = wide >> (shift + DIGIT_BITS) == prefix.to(tl.uint64)
    digit = (wide >> shift).to(tl.int32) & (DIGITS - 1)
    hot = inside[:, None] & (digit[:, None] == tl.arange(0, DIGITS)[None, :])
    return tl.sum(tl.where(hot, amounts[:, None], 0), 0)


@triton.jit
def crossing_digit(sums, wanted):
    """Where the amounts, of greatest digits first, reach `wanted` ≥ 1, at most all of them.

    sums [16] int64 → that digit (int32), and what is still wanted of it (int64).
    """
    from_here = tl.cumsum(sums, 0, reverse=True)
    digit = tl.maximum(tl.sum((from_here >= wanted).to(tl.int32), 0) - 1, 0)
    above = tl.sum(tl.where(tl.arange(0, DIGITS) > digit, sums, 0), 0)
    return digit, wanted - above

"""Drawing tokens in plain torch: filters, counter-based noise (the truth for faster twins).

A token is drawn by Gumbel-max: argmax(logits + g), where g depends only on (request seed, absolute
position, token id). So the token of a position is a function of the logits and the seed, whoever
computes it and whenever: speculation, retries and moved streams draw the same one.

Every number here is defined to the bit: one rounding per written operation, sums over whole numbers
only. So a twin that takes the same steps draws the same token, not almost always but always.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

GREEDY_BELOW = 1e-5  # temperature; logits divided by less than that overflow
NO_TOKEN = -1  # drawn from a row without any logit above −∞

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_WEIGHT_BITS = 40
_LOG2_E = float.fromhex("0x1.715476p+0")
_ROUND = 1.5 * 2.0**23  # a small float32 that is added to it becomes whole
# 2^f on [−½, ½], the highest power first; float32, relative error 1e-7.
_EXP2 = tuple(
    float.fromhex(digits)
    for digits in (
        *("0x1.5bba14p-10", "0x1.3cea88p-7", "0x1.c6b752p-5"),
        *("0x1.ebf9bcp-3", "0x1.62e42ap-1", "0x1p+0"),
    )
)


class Draw(NamedTuple):
    """One row and how its token is drawn."""

    logits: Tensor  # [V] float32; what is no number counts as −∞
    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    position: int = 0  # of the drawn token


DrawTokens = Callable[[Sequence[Draw]], list[int]]
TokenLaw = Callable[[Draw], Tensor]


def draw_tokens(draws: Sequence[Draw]) -> list[int]:
    """A token for each row, or NO_TOKEN. Among equal scores the lowest id wins."""
    return [_draw_token(draw) for draw in draws]


def token_law(draw: Draw) -> Tensor:
    """P(token) [V] float32 under the seeds' noise; all 0 where `draw_tokens` finds NO_TOKEN."""
    logits = _kept_logits(draw)
    greatest = logits.max()
    if draw.temperature >= GREEDY_BELOW and greatest.isfinite():
        return logits.softmax(-1)
    law = torch.zeros_like(logits)
    if greatest > -torch.inf:
        law[logits.argmax()] = 1.0
    return law


def _draw_token(draw: Draw) -> int:
    logits = _kept_logits(draw)
    if draw.temperature >= GREEDY_BELOW:
        logits = logits + gumbel_noise(draw.seed, draw.position, logits.shape[0])
    token = int(logits.argmax())
    return token if logits[token] > -torch.inf else NO_TOKEN


def _kept_logits(draw: Draw) -> Tensor:
    """What the token is drawn from, [V] float32; −∞: dropped."""
    logits = torch.where(draw.logits.isnan(), -torch.inf, draw.logits)
    if draw.temperature < GREEDY_BELOW:
        return logits
    return filter_logits(
        logits * inverse_temperature(draw.temperature),
        top_k=draw.top_k,
        top_p=draw.top_p,
        min_p=draw.min_p,
    )


def inverse_temperature(temperature: float) -> float:
    """What logits are multiplied with, after rounding to float32; never 0."""
    return max(1.0 / temperature, 1e-30)


def min_p_log(min_p: float) -> float:
    """What a logit may be below the greatest; to be rounded to float32. −∞: anything."""
    return min(0.0, math.log(min_p)) if min_p > 0.0 else -math.inf


def gumbel_noise(seed: int, position: int, vocab_size: int) -> Tensor:
    """`token_noise` of all tokens, [vocab_size]."""
    return token_noise(seed, position, torch.arange(vocab_size))


def token_noise(seed: int, position: int, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise [n] float32 of token_ids [n] int64 at `position` of a request.

    Bits: the 64-bit key (seed, position) and the token id go through SplitMix64's finaliser
    (Steele, Lea, Flood 2014), twice for the key; the 24 high ones count.
    """
    key = noise_key(seed, position)
    counters = (token_ids + 1) * _signed(_GOLDEN) + _signed(key)
    return noise_of_bits(_shift_right(_mix_tensor(counters), 40))


def noise_key(seed: int, position: int) -> int:
    """64 bits that look random, whatever the two look like."""
    return _mix((_mix(seed & _MASK64) + position * _GOLDEN) & _MASK64)


def noise_of_bits(bits: Tensor) -> Tensor:
    """bits int64 below 2²⁴. u = (bits + ½) · 2⁻²⁴ lies in (0, 1), g = −log(−log u), float32.

    The logs are in float64, so that float32 rounding is the only one that shows: all 2²⁴ values are
    the exact ones rounded once.
    """
    u = (bits.double() + 0.5) * 2.0**-24
    return -_log(-_log(u)).float()


def _log(x: Tensor) -> Tensor:
    """Natural log of positive float64, right to 1 ulp; torch's own differs between systems.

    x = 2^e · m with m in [√½, √2), log m = 2 artanh(s) with s = (m − 1) / (m + 1).
    """
    m, e = torch.frexp(x)
    small = m < math.sqrt(0.5)
    f = torch.where(small, m + m, m) - 1.0
    e = e.double() - small.double()
    s = f / (2.0 + f)
    z = s * s
    series = torch.full_like(z, 2 / 23)
    for odd in range(21, 1, -2):
        series = series * z + 2 / odd
    half_square = 0.5 * f * f
    # ln 2 in two parts; e times the first is exact. 2s = f − s·f, so that the greatest term has no
    # rounding error.
    tail = s * (half_square + series * z) + e * float.fromhex("0x1.ef35793c7673p-45")
    return e * float.fromhex("0x1.62e42fefa38p-1") - ((half_square - tail) - f)


def filter_logits(
    logits: Tensor, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """logits [V] float32 (already divided by the temperature) with dropped tokens at −inf.

    Order as in the common engines: top-k, then top-p on what is left, then min-p. Ties at the
    boundary of top-k and top-p fall to the lower id; the most likely token always stays. No number
    must be a NaN.
    """
    if top_k <= 0 and top_p >= 1.0 and min_p <= 0.0:
        return logits
    vocab_size = logits.shape[0]
    if 0 < top_k < vocab_size or top_p < 1.0:
        ranked, order = torch.sort(logits, descending=True, stable=True)
        keep = min(top_k, vocab_size) if top_k > 0 else vocab_size
        if top_p < 1.0:
            keep = _count_likely(ranked[:keep], top_p)
        kept = torch.full_like(logits, -torch.inf)
        kept[order[:keep]] = logits[order[:keep]]
        logits = kept
    if min_p > 0.0:
        floor = logits.max() + min_p_log(min_p)
        logits = torch.where(logits < floor, -torch.inf, logits)
    return logits


def _count_likely(ranked: Tensor, top_p: float) -> int:
    """How many of the tokens, most likely first, it takes to hold the share `top_p`."""
    mass = token_weights(ranked, ranked[0]).cumsum(0)
    total = int(mass[-1])
    wanted = min(max(math.ceil(top_p * float(total)), 1), total)
    return int((mass < wanted).sum()) + 1


def token_weights(logits: Tensor, greatest: Tensor) -> Tensor:
    """2⁴⁰ · e^(logit − greatest) as whole numbers [V] int64: sums of them depend on no order.

    Relative error below 4e-6, each step one float32 operation. Tokens e^27.7 times less likely than
    the first one weigh nothing.
    """
    gap = torch.where(logits == greatest, 0.0, logits - greatest).clamp(min=-30.0)
    power = gap * _LOG2_E
    n = power + _ROUND - _ROUND
    f = power - n
    p = torch.full_like(f, _EXP2[0])
    for term in _EXP2[1:]:
        p = p * f + term
    scale = ((n.int() + _WEIGHT_BITS + 127) << 23).view(torch.float32)
    return (p * scale).long()


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def _mix_tensor(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64; products wrap as in uint64."""
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x

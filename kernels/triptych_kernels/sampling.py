"""Sampling in plain torch: filters and the counter-based noise (the truth for faster twins).

A token is drawn by Gumbel-max: argmax(logits + g), where g depends only on (request seed, absolute
position, token id). So the token of a position is a function of the logits and the seed, whoever
computes it and whenever: speculation, retries and moved streams draw the same one.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1


def gumbel_noise(seed: int, position: int, vocab_size: int) -> Tensor:
    """Standard Gumbel noise [vocab_size] float32 for the token at `position` of a request.

    Bits: the 64-bit key (seed, position) and the token id go through SplitMix64's finaliser
    (Steele, Lea, Flood 2014), twice for the key. u = (24 high bits + ½) · 2⁻²⁴ lies in (0, 1), g =
    −log(−log u), the logs in float64 so that float32 rounding is the only one that shows.
    """
    key = _mix((_mix(seed & _MASK64) + position * 0x9E3779B97F4A7C15) & _MASK64)
    ids = torch.arange(1, vocab_size + 1, dtype=torch.int64)
    bits = _mix_tensor(ids * _signed(0x9E3779B97F4A7C15) + _signed(key))
    u = (_shift_right(bits, 40).double() + 0.5) * 2.0**-24
    return -torch.log(-torch.log(u)).float()


def filter_logits(
    logits: Tensor, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """logits [V] float32 (already divided by the temperature) with dropped tokens at −inf.

    Order as in the common engines: top-k, then top-p on what is left, then min-p. Ties at the
    boundary of top-k fall to the lower id; the most likely token always stays.
    """
    if top_k <= 0 and top_p >= 1.0 and min_p <= 0.0:
        return logits
    vocab_size = logits.shape[0]
    if 0 < top_k < vocab_size or top_p < 1.0:
        ranked, order = torch.sort(logits, descending=True, stable=True)
        keep = min(top_k, vocab_size) if top_k > 0 else vocab_size
        ranked = ranked[:keep]
        if top_p < 1.0:
            mass = torch.softmax(ranked, dim=-1).cumsum(-1)
            keep = min(keep, int((mass < top_p).sum()) + 1)
        kept = torch.full_like(logits, -torch.inf)
        kept[order[:keep]] = logits[order[:keep]]
        logits = kept
    if min_p > 0.0:
        floor = logits.max() + torch.log(torch.tensor(min_p))
        logits = torch.where(logits < floor, -torch.inf, logits)
    return logits


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

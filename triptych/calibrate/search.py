"""The scale of sparse attention at which a given share of the tiles is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

_STEPS = 10  # halvings of a range of some twelve octaves
_CLOSE = 0.01  # shares that near are the same
_LEAST = 1.0


def scale_for(wanted: float, share_at: Callable[[float], float], tokens: int) -> float:
    """`share_at`: share left out at a scale, growing with it. Halves the range of log scale.

    Never above tokens / 2: there λ, which must stay below 1, is a half. What that leaves out may be
    less than `wanted`.
    """
    low, high = _LEAST, max(_LEAST, tokens / 2)
    if share_at(high) <= wanted:
        return high
    for _ in range(_STEPS):
        middle = math.sqrt(low * high)
        share = share_at(middle)
        if abs(share - wanted) <= _CLOSE:
            return middle
        low, high = (middle, high) if share < wanted else (low, middle)
    return math.sqrt(low * high)


def one_scale(scales: Sequence[float]) -> float:
    """For all lengths, to two digits: the rule divides by the length itself, so they are alike."""
    mean = math.exp(sum(map(math.log, scales)) / len(scales))
    return float(f"{mean:.2g}")

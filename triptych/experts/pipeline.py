"""How long a layer takes when a step's rows go round in micro-batches: attention, link, FFN, link.

While one micro-batch is with the FFN workers, attention computes the next. A micro-batch may start
its next layer when it is back, so the period of a layer is that of the busiest stage, or one way
round if nothing else has to wait:

    P(m) = max(m·T_a, m·T_e, m·T_c, T_a + T_e + 2·T_c)

with stage times of one micro-batch. That is exact in the steady state; MegaScale-Infer's condition
m ≥ 2·(1 + T_c / T_f) (arXiv 2504.02263) is its special case T_a = T_e.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import erf, exp, pi, sqrt
from typing import NamedTuple, Protocol

MOST = 4  # micro-batches: more only repeat what every one of them costs
_ALIKE = 1.02  # times as long is as good: every micro-batch costs what no stage shows
_JITTERY = 0.25  # relative deviation of stage times from which slack is worth a micro-batch


class Timed(Protocol):
    def at(self, rows: float) -> float:
        """Seconds that `rows` rows take."""


@dataclass(frozen=True, slots=True)
class Stages:
    """Of one layer, by rows of a micro-batch."""

    attention: Timed
    ffn: Timed
    link: Timed  # one way

    def times(self, rows: float) -> tuple[float, float, float]:
        return self.attention.at(rows), self.ffn.at(rows), self.link.at(rows)


class StallShares(NamedTuple):
    """Part of the time in which a side waits."""

    attention: float
    ffn: float


def period(count: int, attention: float, ffn: float, link: float) -> float:
    """Seconds per layer with `count` micro-batches; the others: stage times of one of them."""
    busiest = count * max(attention, ffn, link)
    return max(busiest, attention + ffn + 2 * link)


def jittered_period(count: int, attention: float, ffn: float, link: float, cv: float) -> float:
    """The same where attention and FFN times vary with `cv` (standard deviation / mean).

    A layer takes the longest of three sums of random times, taken as normal and independent
    (Clark, 1961). Against event simulations of lognormal times: within 6 % for cv ≤ 0.5.
    """
    if cv <= 0:
        return period(count, attention, ffn, link)
    spread = sqrt(count) * cv
    busiest = _longer((count * attention, spread * attention), (count * ffn, spread * ffn))
    around = attention + ffn + 2 * link, cv * sqrt(attention**2 + ffn**2)
    return max(_longer(busiest, around)[0], count * link)


def stall_shares(count: int, attention: float, ffn: float, link: float) -> StallShares:
    whole = period(count, attention, ffn, link)
    if whole == 0:
        return StallShares(0.0, 0.0)
    return StallShares(1 - count * attention / whole, 1 - count * ffn / whole)


def choose_count(
    stages: Stages,
    rows: int,
    cv: float = 0.0,
    most: int = MOST,
    refused: Collection[int] = (),
) -> int:
    """The number of micro-batches with the shortest period for a step of `rows` rows, fewer where
    that is nearly as short; never more than rows, nor one of `refused`.

    With `cv` of service times ≥ 0.25 periods are those of `jittered_period`.
    """
    counts = [n for n in range(1, max(1, min(most, rows)) + 1) if n not in refused]
    spread = cv if cv >= _JITTERY else 0.0
    periods = {n: jittered_period(n, *stages.times(rows / n), spread) for n in counts}
    enough = _ALIKE * min(periods.values())
    return next(n for n in counts if periods[n] <= enough)


def _longer(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Mean and deviation of the greater of two independent normal variables."""
    (a, sa), (b, sb) = one, other
    apart = sqrt(sa * sa + sb * sb)
    if apart == 0:
        return max(one, other)
    z = (a - b) / apart
    upper = 0.5 * (1 + erf(z / sqrt(2)))
    density = exp(-z * z / 2) / sqrt(2 * pi)
    mean = a * upper + b * (1 - upper) + apart * density
    square = (a * a + sa * sa) * upper + (b * b + sb * sb) * (1 - upper)
    square += (a + b) * apart * density
    return mean, sqrt(max(0.0, square - mean * mean))

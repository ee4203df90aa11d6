"""How much KV a decoding slot holds, from the lengths of requests.

A slot is refilled as soon as its request ends, so at a random step it is more likely to hold a long
answer than a short one (renewal-reward). Its mean load is not prompt + output, but

    theta = Σ (P·D + D·(D−1)/2) / Σ D

over requests with prompts of P and outputs of D tokens; higher moments alike. For geometric outputs
that is E[P] + E[D] − 1, for constant ones E[P] + (D−1)/2, for heavy tails more than E[P] + E[D].
Of statistic and barrier: "Theoretically Optimal Attention/FFN Ratios", arXiv 2601.21351.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import erf, exp, factorial, sqrt
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Law(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def moments(self) -> tuple[float, float, float, float]:
        """E[X], E[X²], E[X³], E[X⁴]."""
        raise NotImplementedError


class Constant(_Law):
    law: Literal["constant"] = "constant"
    mean: int = Field(ge=1)

    def moments(self) -> tuple[float, float, float, float]:
        x = float(self.mean)
        return x, x**2, x**3, x**4


class Geometric(_Law):
    """1, 2, 3, …: every token is the last one with probability 1 / mean."""

    law: Literal["geometric"] = "geometric"
    mean: float = Field(ge=1)

    def moments(self) -> tuple[float, float, float, float]:
        go_on = 1 - 1 / self.mean
        # Of falling factorials; then Stirling's numbers.
        f1, f2, f3, f4 = (factorial(k) * go_on ** (k - 1) * self.mean**k for k in range(1, 5))
        return f1, f2 + f1, f3 + 3 * f2 + f1, f4 + 6 * f3 + 7 * f2 + f1


class Uniform(_Law):
    """low, …, high, all alike."""

    law: Literal["uniform"] = "uniform"
    low: int = Field(ge=1)
    high: int

    @model_validator(mode="after")
    def _check(self) -> Uniform:
        if self.high < self.low:
            raise ValueError(f"high: {self.high} is below low ({self.low}); swap them")
        return self

    def moments(self) -> tuple[float, float, float, float]:
        x = np.arange(self.low, self.high + 1, dtype=np.float64)
        one, two, three, four = (float((x**k).mean()) for k in range(1, 5))
        return one, two, three, four


class Lognormal(_Law):
    """exp(N(·, sigma²)) of this mean; heavy tails from sigma = 1 or so."""

    law: Literal["lognormal"] = "lognormal"
    mean: float = Field(ge=1)
    sigma: float = Field(gt=0, le=3)

    def moments(self) -> tuple[float, float, float, float]:
        one, two, three, four = (
            self.mean**k * exp(self.sigma**2 * (k * k - k) / 2) for k in range(1, 5)
        )
        return one, two, three, four


Law: TypeAlias = Annotated[Constant | Geometric | Uniform | Lognormal, Field(discriminator="law")]


@dataclass(frozen=True, slots=True)
class SlotLoad:
    """Cached tokens of one slot at a random step."""

    theta: float  # mean
    nu: float  # standard deviation
    skew: float  # third standardised moment
    mean_prompt: float  # tokens of a request
    mean_output: float
    error: float = 0.0  # standard error of theta, relative, from the size of the trace


def load_of_laws(prompt: Law, output: Law) -> SlotLoad:
    """Prompts and outputs independent of each other."""
    p1, p2, p3, _ = prompt.moments()
    d1, d2, d3, d4 = output.moments()
    s1, s2, s3 = (d2 - d1) / 2, (2 * d3 - 3 * d2 + d1) / 6, (d4 - 2 * d3 + d2) / 4
    first = p1 * d1 + s1
    second = p2 * d1 + 2 * p1 * s1 + s2
    third = p3 * d1 + 3 * p2 * s1 + 3 * p1 * s2 + s3
    return _slot_load(first / d1, second / d1, third / d1, p1, d1, 0.0)


def load_of_trace(requests: Sequence[tuple[int, int]]) -> SlotLoad:
    """(prompt, output) tokens of each request; outputs of no token do not count."""
    p, d = np.array([pair for pair in requests if pair[1] > 0], np.float64).T
    s1, s2 = d * (d - 1) / 2, (d - 1) * d * (2 * d - 1) / 6
    tokens = d.sum()
    first = p * d + s1
    theta = float(first.sum() / tokens)
    second = float((p**2 * d + 2 * p * s1 + s2).sum() / tokens)
    third = float((p**3 * d + 3 * p**2 * s1 + 3 * p * s2 + s1**2).sum() / tokens)
    error = sqrt(float(((first - theta * d) ** 2).sum())) / float(tokens) / theta
    return _slot_load(theta, second, third, float(p.mean()), float(d.mean()), error)


def _slot_load(
    first: float, second: float, third: float, prompt: float, output: float, error: float
) -> SlotLoad:
    variance = max(0.0, second - first**2)
    central = third - 3 * first * second + 2 * first**3
    skew = central / variance**1.5 if variance > 1e-9 * second else 0.0
    return SlotLoad(first, sqrt(variance), skew, prompt, output, error)


@lru_cache(maxsize=4096)
def slowest_of(count: int) -> float:
    """Mean of the greatest of `count` standard normal variables: 0, 0.564, 0.846, 1.03, …

    E[max] = ∫ (1 − Φ(x)^n) dx over x > 0 less ∫ Φ(x)^n dx over x < 0, by the trapezoid rule.
    """
    x = np.linspace(0.0, 9.0, 3601)
    upper = np.array([0.5 * (1 + erf(value / sqrt(2))) for value in x])
    return float(np.trapezoid(1 - upper**count - (1 - upper) ** count, x))

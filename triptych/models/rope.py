"""Rotary position embedding: which frequencies a checkpoint was trained with.

Scalings whose frequencies depend on the sequence's length ("dynamic", "longrope") are refused: a
row's result would depend on how long its sequence is by then, and cached KV would become wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.models.fields import Fields


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """All positions are divided by `factor`."""

    factor: float
    attention_scaling = 1.0

    def rescale(self, inv_freq: Tensor, theta: float) -> Tensor:
        return inv_freq / self.factor


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_len: int
    attention_scaling = 1.0

    def rescale(self, inv_freq: Tensor, theta: float) -> Tensor:
        wavelength = 2 * math.pi / inv_freq
        span = self.high_freq_factor - self.low_freq_factor
        kept = (self.original_len / wavelength - self.low_freq_factor) / span
        blended = (1 - kept) * inv_freq / self.factor + kept * inv_freq
        stretched = torch.where(kept < 0, inv_freq / self.factor, blended)
        return torch.where(kept > 1, inv_freq, stretched)


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): a ramp over dimensions, and attention sharpened a little."""

    factor: float
    original_len: int
    beta_fast: float
    beta_slow: float
    attention_scaling: float
    truncate: bool

    def rescale(self, inv_freq: Tensor, theta: float) -> Tensor:
        half = inv_freq.shape[0]
        low, high = (self._dimension(turns, half, theta) for turns in self._betas)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        span = high - low if high != low else 0.001
        stretched = ((torch.arange(half, dtype=torch.float32) - low) / span).clamp(0, 1)
        return inv_freq / self.factor * stretched + inv_freq * (1 - stretched)

    @property
    def _betas(self) -> tuple[float, float]:
        return self.beta_fast, self.beta_slow

    def _dimension(self, turns: float, half: int, theta: float) -> float:
        """The dimension that makes `turns` turns over the original context."""
        return half * math.log(self.original_len / (turns * 2 * math.pi)) / math.log(theta)


@dataclass(frozen=True, slots=True)
class Rope:
    """One set of frequencies. Layers with equal ropes share their cosines and sines."""

    theta: float
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None

    @property
    def attention_scaling(self) -> float:
        """Factor on cosines and sines."""
        return 1.0 if self.scaling is None else self.scaling.attention_scaling

    def inverse_frequencies(self, head_dim: int) -> Tensor:
        """float32 [head_dim / 2]."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        inv_freq = 1.0 / self.theta**exponents
        return inv_freq if self.scaling is None else self.scaling.rescale(inv_freq, self.theta)


def parse_rope(section: Fields, theta: float, max_model_len: int) -> Rope:
    """One `rope_scaling` mapping, or one `rope_parameters` mapping with its own `rope_theta`.

    Raises ModelError for kinds that are not supported.
    """
    if section.number("partial_rotary_factor", 1.0) != 1.0:
        raise section.error("partial_rotary_factor", "partial rotary embeddings are not supported")
    theta = section.positive("rope_theta", theta)
    kind = section.text("rope_type", section.text("type", "default"))
    original_len = section.size("original_max_position_embeddings", max_model_len)
    match kind:
        case "default":
            return Rope(theta)
        case "linear":
            return Rope(theta, LinearScaling(section.positive("factor")))
        case "llama3":
            low, high = section.positive("low_freq_factor"), section.positive("high_freq_factor")
            if not high > low:
                raise section.error("high_freq_factor", f"expected more than {low}, found {high}")
            return Rope(theta, Llama3Scaling(section.positive("factor"), low, high, original_len))
        case "yarn":
            return Rope(theta, _parse_yarn(section, original_len, max_model_len))
    raise section.error(
        "rope_type", f"{kind!r} is not supported; supported: default, linear, llama3, yarn"
    )


def _parse_yarn(section: Fields, original_len: int, max_model_len: int) -> YarnScaling:
    factor = section.positive("factor", max_model_len / original_len)
    mscale, mscale_all = (section.number(key, 0.0) for key in ("mscale", "mscale_all_dim"))
    implied = yarn_mscale(factor, 1.0)
    if mscale and mscale_all:
        implied = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all)
    return YarnScaling(
        factor,
        original_len,
        beta_fast=section.positive("beta_fast", 32.0),
        beta_slow=section.positive("beta_slow", 1.0),
        attention_scaling=section.positive("attention_factor", implied),
        truncate=section.flag("truncate", True),
    )


def yarn_mscale(factor: float, mscale: float) -> float:
    """How much sharper attention is made over a context stretched by `factor`."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

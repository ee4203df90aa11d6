"""Matrices in e4m3 with a scale for every 128 × 128 weights (DeepSeek-V3, arXiv 2412.19437, section
3.3). Pure functions in plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FP8_BLOCK = 128  # rows and columns that share a scale
FP8_MAX = 448.0


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A matrix [N, K]: w[n, k] = scale[n // 128, k // 128] × q[n, k]."""

    q: Tensor  # float8_e4m3fn [N, K]
    scale: Tensor  # float32 [ceil(N / 128), ceil(K / 128)]

    @property
    def nbytes(self) -> int:
        return self.q.nbytes + self.scale.nbytes


def quantise_fp8(weight: Tensor) -> Fp8Weight:
    """weight [N, K] of any floating type; a scale is the largest size of its block over 448, so
    what was stored on such grids gets its numbers back. Raises ValueError when a weight is not
    finite.
    """
    rows, columns = weight.shape
    if not weight.isfinite().all():
        raise ValueError("weights are not finite numbers")
    padded = torch.nn.functional.pad(
        weight.float(), (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK)
    )
    tiles = padded.view(padded.shape[0] // FP8_BLOCK, FP8_BLOCK, -1, FP8_BLOCK)
    scale = (tiles.abs().amax((1, 3)) / FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    q = (tiles / scale[:, None, :, None]).view_as(padded)[:rows, :columns]
    return Fp8Weight(q.to(torch.float8_e4m3fn).contiguous(), scale)


def dequantise_fp8(weight: Fp8Weight) -> Tensor:
    """float32 [N, K]."""
    out = weight.q.float()
    wide = weight.scale.float().repeat_interleave(FP8_BLOCK, dim=1)[:, : out.shape[1]]
    for block, of_rows in enumerate(torch.split(out, FP8_BLOCK)):
        of_rows *= wide[block]
    return out

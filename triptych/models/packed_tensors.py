"""Weights of 8 and 4 bits in safetensors, as the numbers that they stand for. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych_kernels.fp8 import FP8_BLOCK, Fp8Weight, dequantise_fp8

__all__ = ["FP8_BLOCK", "MXFP4_GROUP", "from_fp8", "from_mxfp4"]

MXFP4_GROUP = 32  # neighbours in a row that share a scale

# e2m1 by its four bits: sign, two of exponent, one of mantissa.
_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1 = torch.tensor([*_HALF, *(-value for value in _HALF)])
_EXPONENT_BIAS = 127  # of e8m0


def from_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """DeepSeek-V3's block scaling (arXiv 2412.19437, section 3.3.2): weight [N, K] float8_e4m3fn
    times scale [⌈N / 128⌉, ⌈K / 128⌉] float32 → float32 [N, K].
    """
    return dequantise_fp8(Fp8Weight(weight, scale))


def from_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """OCP microscaling formats, version 1.0, section 5.3: blocks [N, K / 32, 16] uint8, two values
    a byte, the lower bits first; scales [N, K / 32] uint8, powers of two → bfloat16 [N, K], exact.
    """
    values = torch.stack([blocks & 0xF, blocks >> 4], dim=-1).flatten(-2)  # [N, K / 32, 32]
    exponents = scales.to(torch.int32)[..., None] - _EXPONENT_BIAS
    return torch.ldexp(_E2M1[values.int()], exponents).to(torch.bfloat16).flatten(-2)

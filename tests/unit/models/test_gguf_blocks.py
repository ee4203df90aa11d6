"""GGUF blocks as grids: the numbers are those of the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from triptych.models.gguf_blocks import read_affine, read_dense
from triptych_kernels.quant import dequantise

SIMPLE = [GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")]
SUPER = [GGMLQuantizationType[name] for name in ("Q4_K", "Q5_K")]
OTHERS = [GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q6_K", "Q3_K", "IQ4_XS")]


def simple_rows(kind: GGMLQuantizationType, scale: float = 1.0) -> NDArray[np.uint8]:
    weight = np.random.default_rng(0).standard_normal((24, 320), dtype=np.float32) * scale
    return np.asarray(gguf.quantize(weight, kind))


def super_rows(kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Random blocks of 256 with sane float16 scales in front. The package cannot write these."""
    source = np.random.default_rng(0)
    blocks = source.integers(0, 256, (24, 2, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    blocks[..., :4] = source.uniform(1e-4, 1e-2, (24, 2, 2)).astype(np.float16).view(np.uint8)
    return blocks.reshape(24, -1)


@pytest.mark.parametrize("kind", SIMPLE)
def test_simple_blocks_keep_every_bit(kind: GGMLQuantizationType) -> None:
    rows = simple_rows(kind)
    expected = torch.from_numpy(gguf.dequantize(rows, kind))
    affine, dense = read_affine(rows, kind), read_dense(rows, kind)
    assert affine is not None and affine.group == 32
    assert affine.bits == (4 if kind.name.startswith("Q4") else 8)
    assert torch.equal(dequantise(affine), expected)
    assert dense is not None and torch.equal(dense, expected)


@pytest.mark.parametrize("kind", SUPER)
def test_k_quants_keep_their_integers_and_round_their_scales(kind: GGMLQuantizationType) -> None:
    rows = super_rows(kind)
    expected = torch.from_numpy(gguf.dequantize(rows, kind))
    affine, dense = read_affine(rows, kind), read_dense(rows, kind)
    assert dense is not None and torch.equal(dense, expected)
    assert affine is not None and affine.bits == (4 if kind.name == "Q4_K" else 8)
    # Weights are differences: what rounding a scale costs is measured against the group's size.
    size = expected.abs().view(24, -1, 32).amax(-1, keepdim=True)
    wrong = (dequantise(affine) - expected).view(24, -1, 32).abs()
    assert (wrong <= size * 2e-3 + 1e-6).all()


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_left_to_requantising(kind: GGMLQuantizationType) -> None:
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    rows = np.zeros((4, 512 // block_size * block_bytes), np.uint8)
    assert read_affine(rows, kind) is None and read_dense(rows, kind) is None


def test_scales_beyond_float16_are_left_to_requantising() -> None:
    rows = simple_rows(GGMLQuantizationType.Q8_0, scale=4e4)  # −128 × scale is no float16
    assert read_affine(rows, GGMLQuantizationType.Q8_0) is None
    expected = torch.from_numpy(gguf.dequantize(rows, GGMLQuantizationType.Q8_0))
    dense = read_dense(rows, GGMLQuantizationType.Q8_0)
    assert dense is not None and torch.equal(dense, expected)

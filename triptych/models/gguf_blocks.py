"""GGUF's block formats whose weights lie on affine grids, taken as they are stored.

Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 are blocks of 32 weights with float16 scales: an `Affine` holds the
same numbers. Q4_K and Q5_K have a float16 scale per 256 weights times a small integer per 32; that
product is rounded to float16 (by at most 1 in 2,048).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from triptych_kernels.quant import Affine, on_grid

GROUP = 32

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
# q [N, G, 32], scale and low [N, G]
Grids = tuple[Bytes, Floats, Floats]


def read_affine(rows: Bytes, kind: GGMLQuantizationType) -> Affine | None:
    """rows [N, bytes] as stored → [N, K] in groups of 32.

    None for formats that are no grids of 32, and for scales beyond float16.
    """
    if kind not in _READERS:
        return None
    bits, _ = _READERS[kind]
    q, scale, low = _grids(rows, kind)
    with np.errstate(over="ignore"):  # checked below
        halves = scale.astype(np.float16), low.astype(np.float16)
    if not all(np.isfinite(half).all() for half in halves):
        return None
    scales, lows = map(torch.from_numpy, halves)
    return Affine(torch.from_numpy(q), scales, lows, bits, GROUP)


def read_dense(rows: Bytes, kind: GGMLQuantizationType) -> Tensor | None:
    """rows [N, bytes] → float32 [N, K] with the bits of gguf.dequantize; None for other formats."""
    if kind not in _READERS:
        return None
    q, scale, low = map(torch.from_numpy, _grids(rows, kind))
    return on_grid(q, scale, low, GROUP, torch.empty(q.shape))


def grid_bits(kind: GGMLQuantizationType) -> int | None:
    """Bits of the `Affine` that `read_affine` gives; None for formats that are no grids of 32."""
    return _READERS[kind][0] if kind in _READERS else None


def _grids(rows: Bytes, kind: GGMLQuantizationType) -> Grids:
    _, reader = _READERS[kind]
    blocks = rows.reshape(len(rows), -1, GGML_QUANT_SIZES[kind][1])
    with np.errstate(over="ignore", invalid="ignore"):  # damaged scales; whoever computes will see
        q, scale, low = reader(blocks)
    num_groups = scale.size // len(rows)
    return q.reshape(len(rows), -1), scale.reshape(-1, num_groups), low.reshape(-1, num_groups)


def _q4_0(blocks: Bytes) -> Grids:
    scale = _half(blocks, 0)
    return _nibbles(blocks[..., 2:], 16), scale, scale * -8


def _q4_1(blocks: Bytes) -> Grids:
    return _nibbles(blocks[..., 4:], 16), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Grids:
    scale = _half(blocks, 0)
    return _with_fifth_bits(blocks[..., 2:]), scale, scale * -16


def _q5_1(blocks: Bytes) -> Grids:
    return _with_fifth_bits(blocks[..., 4:]), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Grids:
    scale = _half(blocks, 0)
    return blocks[..., 2:] ^ np.uint8(128), scale, scale * -128  # from signed to 0 … 255


def _q4_k(blocks: Bytes) -> Grids:
    scale, low = _k_scales(blocks)
    return _nibbles(blocks[..., 16:], 32), scale, low


def _q5_k(blocks: Bytes) -> Grids:
    scale, low = _k_scales(blocks)
    q = _nibbles(blocks[..., 48:], 32)
    high = blocks[..., 16:48]
    for group in range(8):
        q[..., group, :] |= (high >> np.uint8(group) & np.uint8(1)) << np.uint8(4)
    return q, scale, low


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at a byte offset of each block."""
    halves = np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)
    return halves[..., 0].astype(np.float32)


def _nibbles(packed: Bytes, width: int) -> Bytes:
    """[..., P] → [..., 2P / 32, 32]: of each `width` bytes, all low halves, then all high ones."""
    shape = (*packed.shape[:-1], -1, width)
    packed = packed.reshape(shape) if packed.shape[-1] != width else packed[..., None, :]
    q = np.empty((*packed.shape[:-1], 2, width), np.uint8)
    np.bitwise_and(packed, 15, out=q[..., 0, :])
    np.right_shift(packed, 4, out=q[..., 1, :])
    return q.reshape(*packed.shape[:-2], -1, GROUP)


def _with_fifth_bits(packed: Bytes) -> Bytes:
    """[..., 4 + 16]: 32 fifth bits, then the lower four."""
    q = _nibbles(packed[..., 4:], 16)
    fifth = np.unpackbits(packed[..., :4], axis=-1, bitorder="little")
    q |= (fifth << 4)[..., None, :]
    return q


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """[..., 8] each: float16 scales of the block times six-bit integers of its groups."""
    first, second, rest = (blocks[..., at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate([first & 63, rest & 15 | first >> 2 & 48], axis=-1)
    lows = np.concatenate([second & 63, rest >> 4 | second >> 2 & 48], axis=-1)
    return _half(blocks, 0)[..., None] * scales, -_half(blocks, 2)[..., None] * lows


_READERS: dict[GGMLQuantizationType, tuple[int, Callable[[Bytes], Grids]]] = {
    GGMLQuantizationType.Q4_0: (4, _q4_0),
    GGMLQuantizationType.Q4_1: (4, _q4_1),
    GGMLQuantizationType.Q5_0: (8, _q5_0),
    GGMLQuantizationType.Q5_1: (8, _q5_1),
    GGMLQuantizationType.Q8_0: (8, _q8_0),
    GGMLQuantizationType.Q4_K: (4, _q4_k),
    GGMLQuantizationType.Q5_K: (8, _q5_k),
}

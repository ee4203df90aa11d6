"""What happens between the QKV projection and attention, in one pass: norms of single heads,
rotation, and keys and values into their slots of the paged pool.

A pool is given as views [blocks, block tokens, KV heads, D] of any strides: the layouts of
triptych/kv/layout.py, whose values lie transposed, are such views.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION
from triptych_kernels.triton.rounding import narrow

_LARGEST_BF16 = tl.constexpr(float.fromhex("0x1.fep127"))
_NAN = tl.constexpr(float("nan"))


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norms of each query and key head by itself, before the rotation (Qwen3)."""

    query: Tensor  # float32 [D]
    key: Tensor  # float32 [D]
    eps: float


def rope_append(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    num_heads: int,
    norms: HeadNorms | None = None,
) -> Tensor:
    """qkv [M, (Hq + 2·Hkv)·D] → the rotated queries [M, Hq, D]; keys and values go into the pool.

    cos, sin float32 [M, R/2]: the first R numbers of a head are rotated, by halves. slots int64
    [M]: block · block_tokens + offset, −1: nowhere. A value that is not finite, even as a bfloat16,
    is stored as zeros beside a key of NaN, as `put_kv` of the CPU does: rows that see the position
    become NaN by its score, and no others.
    """
    rows = qkv.shape[0]
    block_tokens, kv_heads, dim = keys.shape[1:]
    assert keys.shape == values.shape and keys.dtype == values.dtype
    assert qkv.shape[1] == (num_heads + 2 * kv_heads) * dim and qkv.stride(1) == 1
    assert cos.is_contiguous() and sin.is_contiguous() and cos.dtype == torch.float32
    queries = torch.empty(rows, num_heads, dim, dtype=qkv.dtype, device=qkv.device)
    _rope_append[(rows, num_heads + kv_heads)](
        qkv,
        cos,
        sin,
        slots,
        cos if norms is None else norms.query,
        cos if norms is None else norms.key,
        queries,
        keys,
        values,
        qkv.stride(0),
        *keys.stride(),
        *values.stride(),
        0.0 if norms is None else norms.eps,
        block_tokens,
        num_heads,
        kv_heads,
        cos.shape[1],
        DIM=dim,
        TILE=triton.next_power_of_2(dim),
        NORMED=norms is not None,
        num_warps=1,
        **NO_FUSION,
    )
    return queries


@triton.jit
def _head(x, weight, cos, sin, half, eps, DIM: tl.constexpr, TILE: tl.constexpr,
          NORMED: tl.constexpr):  # fmt: skip
    """One head at x, normed and rotated: float32 [TILE]."""
    at = tl.arange(0, TILE)
    value = tl.load(x + at, mask=at < DIM, other=0.0).to(tl.float32)
    # The other half's number, which a rotation mixes in.
    other = tl.where(at < half, at + half, at - half)
    rotates = at < 2 * half
    mixed = tl.load(x + other, mask=rotates, other=0.0).to(tl.float32)
    if NORMED:
        factor = 1.0 / tl.sqrt_rn(tl.sum(value * value, 0) / DIM + eps)
        value = value * factor * tl.load(weight + at, mask=at < DIM, other=0.0)
        mixed = mixed * factor * tl.load(weight + other, mask=rotates, other=0.0)
    angle = tl.where(at < half, at, at - half)
    c = tl.load(cos + angle, mask=rotates, other=1.0)
    s = tl.load(sin + angle, mask=rotates, other=0.0)
    return value * c + tl.where(at < half, -mixed, mixed) * s


@triton.jit
def _rope_append(qkv, cos, sin, slots, query_weight, key_weight, queries, keys, values, stride,
                 key_block, key_token, key_head, key_dim, value_block, value_token, value_head,
                 value_dim, eps, block_tokens, num_heads, kv_heads, half, DIM: tl.constexpr,
                 TILE: tl.constexpr, NORMED: tl.constexpr):  # fmt: skip
    """A head of a row per program: queries first, then pairs of key and value."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at = tl.arange(0, TILE)
    x = qkv + row * stride + head * DIM
    cos += row * half
    sin += row * half
    if head < num_heads:
        query = _head(x, query_weight, cos, sin, half, eps, DIM, TILE, NORMED)
        to = queries + (row * num_heads + head) * DIM + at
        tl.store(to, narrow(query, queries.dtype.element_ty), mask=at < DIM)
    else:
        slot = tl.load(slots + row)
        inside = at < tl.where(slot >= 0, DIM, 0)
        block, token = slot // block_tokens, slot % block_tokens
        kv_head = head - num_heads
        key = _head(x, key_weight, cos, sin, half, eps, DIM, TILE, NORMED)
        value = tl.load(x + kv_heads * DIM + at, mask=at < DIM, other=0.0).to(tl.float32)
        sound = tl.min((tl.abs(value) <= _LARGEST_BF16).to(tl.int32), 0) > 0
        key = tl.where(sound, key, _NAN)
        value = tl.where(sound, value, 0.0)
        to_key = keys + block * key_block + token * key_token + kv_head * key_head + at * key_dim
        to_value = values + block * value_block + token * value_token + kv_head * value_head
        tl.store(to_key, narrow(key, keys.dtype.element_ty), mask=inside)
        tl.store(to_value + at * value_dim, narrow(value, values.dtype.element_ty), mask=inside)


_PLACES = ("key_block", "key_token", "key_head", "value_block", "value_token", "value_head")

AOT_CASES = (
    AotCase(
        "rope_append/bf16/d128",
        _rope_append,
        {
            **dict.fromkeys(("qkv", "queries", "keys", "values"), "*bf16"),
            **dict.fromkeys(("cos", "sin", "query_weight", "key_weight"), "*fp32"),
            **dict.fromkeys((*_PLACES, "stride"), "i32"),
            **dict.fromkeys(("block_tokens", "num_heads", "kv_heads", "half"), "i32"),
            "slots": "*i64",
            "eps": "fp32",
        },
        {"key_dim": 1, "value_dim": 1, "DIM": 128, "TILE": 128, "NORMED": True},
        num_warps=1,
        aligned=("qkv", "cos", "sin", "queries", "keys", "values", "stride", "half", *_PLACES),
        mma=False,
        exact=True,
    ),
)

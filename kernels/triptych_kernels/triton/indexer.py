"""The token indexer of DeepSeek's sparse attention: which tokens of the past a row will read.

The twin is `triptych_kernels.reference_sparse.index_logits`; the choice itself is `select_best`.
All heads of a row are the narrow side of one product with a tile of keys.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION, dot

TILE = 128  # keys of a program

_INF = tl.constexpr(math.inf)


def index_logits(
    q: Tensor,
    weights: Tensor,
    keys: Tensor,
    starts: Tensor,
    ends: Tensor,
    width: int,
    key_scales: Tensor | None = None,
) -> Tensor:
    """float32 [T, width]. q [T, J, D], J and D powers of two from 16 on; weights float32 [T, J];
    keys [N, D], of the type of q; starts, ends int32 [T]. All contiguous.

    key_scales float32 [N] of keys of float8_e4m3fn; those of q belong into the weights (for sm_89
    and later).
    """
    rows, heads, dim = q.shape
    assert q.is_contiguous() and keys.is_contiguous() and weights.is_contiguous()
    assert q.dtype == keys.dtype and weights.shape == (rows, heads)
    logits = torch.empty(rows, width, dtype=torch.float32, device=q.device)
    _index_logits[(rows, triton.cdiv(width, TILE))](
        q,
        weights,
        keys,
        weights if key_scales is None else key_scales,
        starts,
        ends,
        logits,
        width,
        SCALED=key_scales is not None,
        HEADS=heads,
        DIM=dim,
        TILE=TILE,
        **NO_FUSION,
    )
    return logits


@triton.jit
def _index_logits(q, weights, keys, key_scales, starts, ends, logits, width, SCALED: tl.constexpr,
                  HEADS: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    start = tl.load(starts + row)
    seen = column < tl.load(ends + row) - start
    place = (start + column).to(tl.int64)
    head, at = tl.arange(0, HEADS), tl.arange(0, DIM)
    queries = tl.load(q + row * HEADS * DIM + head[None, :] * DIM + at[:, None])
    key = tl.load(keys + place[:, None] * DIM + at[None, :], mask=seen[:, None], other=0.0)
    products = dot(key, queries)
    if SCALED:  # positive, so they may be multiplied before the ReLU
        products = products * tl.load(key_scales + place, mask=seen, other=0.0)[:, None]
    weight = tl.load(weights + row * HEADS + head)
    # A NaN stays one, and `select_best` takes it.
    sums = tl.sum(tl.where(products < 0.0, 0.0, products) * weight[None, :], 1)
    tl.store(logits + row * width + column, tl.where(seen, sums, -_INF), mask=column < width)


AOT_CASES = tuple(
    AotCase(
        f"index_logits/{name}",
        _index_logits,
        {
            **dict.fromkeys(("q", "keys"), of),
            **dict.fromkeys(("weights", "key_scales", "logits"), "*fp32"),
            **dict.fromkeys(("starts", "ends"), "*i32"),
            "width": "i32",
        },
        {"SCALED": scaled, "HEADS": 64, "DIM": 128, "TILE": TILE},
        aligned=("q", "keys", "weights", "logits"),
        least=least,
    )
    for name, of, scaled, least in (("bf16", "*bf16", False, 80), ("fp8", "*fp8e4nv", True, 89))
)

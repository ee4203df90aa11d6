"""Native sparse attention: compressed blocks, the scores that they give, and chosen blocks.

The twins are in `triptych_kernels.reference_sparse`. The rows of a product are the query heads of
one position that share a KV head, since they share its choice of blocks; fewer than 16 are filled
up. Blocks are walked in ascending order whatever the batch is, one row's bits depend on that row
alone.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.reference_sparse import NsaShape
from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import LOG2E, NO_FUSION, dot
from triptych_kernels.triton.rounding import narrow

_TILE = 64  # compressed blocks of a step
_BLOCKS = 16  # selectable blocks that one program scores
_LEAST_ROWS = 16  # of a product

_INF = tl.constexpr(math.inf)
_LN2 = tl.constexpr(math.log(2.0))


def compressed_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor,
    positions: Tensor,
    shape: NsaShape,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """q [T, Hq, D]; keys, values [C, Hkv, D], contiguous; starts, positions int32 [T]."""
    rows, heads, dim = q.shape
    kv_heads = keys.shape[1]
    assert q.is_contiguous() and keys.is_contiguous() and values.is_contiguous()
    out, lse = torch.empty_like(q), q.new_empty(rows, heads, dtype=torch.float32)
    _compressed[(rows, kv_heads)](
        q,
        keys,
        values,
        starts,
        positions,
        out,
        lse,
        scale,
        kv_heads,
        heads // kv_heads,
        LENGTH=shape.length,
        STRIDE=shape.stride,
        DIM=dim,
        TILE=_TILE,
        **_room(heads // kv_heads, dim),
        **NO_FUSION,
    )
    return out, lse


def block_scores(
    q: Tensor,
    keys: Tensor,
    lse: Tensor,
    starts: Tensor,
    positions: Tensor,
    shape: NsaShape,
    scale: float,
    num_blocks: int,
) -> Tensor:
    """float32 [T, Hkv, num_blocks]; arguments as above, lse of that."""
    rows, heads, dim = q.shape
    kv_heads = keys.shape[1]
    scores = q.new_empty(rows, kv_heads, num_blocks, dtype=torch.float32)
    _block_scores[(rows, kv_heads, triton.cdiv(num_blocks, _BLOCKS))](
        q,
        keys,
        lse,
        starts,
        positions,
        scores,
        scale,
        kv_heads,
        heads // kv_heads,
        num_blocks,
        LENGTH=shape.length,
        STRIDE=shape.stride,
        SELECTED=shape.selected,
        INITIAL=shape.initial,
        LOCAL=shape.local,
        DIM=dim,
        BLOCKS=_BLOCKS,
        SPAN=_span(shape),
        **_room(heads // kv_heads, dim),
        **NO_FUSION,
    )
    return scores


def selected_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    sequences: Tensor,
    positions: Tensor,
    chosen: Tensor,
    block_tokens: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """q [T, Hq, D]; keys, values views [pages, page tokens, Hkv, D] of any strides; tables [B, P],
    sequences [T], positions [T], chosen [T, Hkv, S]: int32. `block_tokens` is a power of two.
    """
    rows, heads, dim = q.shape
    page_tokens, kv_heads = keys.shape[1:3]
    assert q.is_contiguous() and chosen.is_contiguous() and tables.stride(1) == 1
    out, lse = torch.empty_like(q), q.new_empty(rows, heads, dtype=torch.float32)
    _selected[(rows, kv_heads)](
        q,
        keys,
        values,
        tables,
        sequences,
        positions,
        chosen,
        out,
        lse,
        *keys.stride(),
        *values.stride(),
        tables.stride(0),
        scale,
        kv_heads,
        heads // kv_heads,
        chosen.shape[2],
        PAGE=page_tokens,
        TOKENS=block_tokens,
        DIM=dim,
        **_room(heads // kv_heads, dim),
        num_stages=3,
        **NO_FUSION,
    )
    return out, lse


def _room(group: int, dim: int) -> dict[str, int]:
    """Sizes of tiles; they follow from the model."""
    return {
        "ROWS": max(_LEAST_ROWS, triton.next_power_of_2(group)),
        "WIDTH": max(16, triton.next_power_of_2(dim)),
    }


def _span(shape: NsaShape) -> int:
    """Room for all compressed blocks that reach into _BLOCKS selectable ones."""
    units = _BLOCKS * shape.selected // shape.stride
    span: int = triton.next_power_of_2(units + shape.length // shape.stride - 1)
    return span


@triton.jit
def _queries(q, row, head, kv_heads, group, DIM: tl.constexpr, ROWS: tl.constexpr,
             WIDTH: tl.constexpr):  # fmt: skip
    """Those of one position and KV head: [ROWS, WIDTH], zeros where there is none."""
    member, at = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    heads = row * kv_heads * group + head * group + member
    return tl.load(q + heads * DIM + at, mask=(member < group) & (at < DIM), other=0.0)


@triton.jit
def _seen(position, LENGTH: tl.constexpr, STRIDE: tl.constexpr):
    """How many compressed blocks end at or before a position."""
    return tl.where(position + 1 >= LENGTH, (position + 1 - LENGTH) // STRIDE + 1, 0)


@triton.jit
def _step(state, exponents, values):
    """Softmax goes on: exponents of 2 [ROWS, n], −∞ what is not seen; values [n, WIDTH]."""
    best, total, out = state
    top = tl.maximum(best, tl.max(exponents, 1))
    base = tl.where(top == -_INF, 0.0, top)
    shares = tl.exp2(exponents - base[:, None])
    kept = tl.exp2(best - base)
    total = total * kept + tl.sum(shares, 1)
    out = out * kept[:, None] + dot(narrow(shares, values.dtype), values)
    return top, total, out


@triton.jit
def _store_rows(state, out, lse, row, head, kv_heads, group, DIM: tl.constexpr, ROWS: tl.constexpr,
                WIDTH: tl.constexpr):  # fmt: skip
    best, total, sums = state
    member, at = tl.arange(0, ROWS), tl.arange(0, WIDTH)[None, :]
    heads = row * kv_heads * group + head * group + member
    some = total > 0.0
    answer = sums / tl.where(some, total, 1.0)[:, None]
    to = out + heads[:, None] * DIM + at
    inside = (member < group)[:, None] & (at < DIM)
    tl.store(to, narrow(answer, out.dtype.element_ty), mask=inside)
    log_sum = (best + tl.log2(tl.where(some, total, 1.0))) * _LN2
    tl.store(lse + heads, tl.where(some, log_sum, -_INF), mask=member < group)


@triton.jit
def _compressed(q, keys, values, starts, positions, out, lse, scale, kv_heads, group,
                LENGTH: tl.constexpr, STRIDE: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr,
                ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows = _queries(q, row, head, kv_heads, group, DIM, ROWS, WIDTH)
    count = _seen(tl.load(positions + row), LENGTH, STRIDE)
    first = (tl.load(starts + row).to(tl.int64) * kv_heads + head) * DIM
    at = tl.arange(0, WIDTH)
    best = tl.full((ROWS,), -_INF, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    for begin in range(0, count, TILE):
        block = begin + tl.arange(0, TILE)
        places = first + block.to(tl.int64) * kv_heads * DIM
        inside = (block < count)[:, None] & (at < DIM)[None, :]
        k = tl.load(keys + places[:, None] + at[None, :], mask=inside, other=0.0)
        v = tl.load(values + places[:, None] + at[None, :], mask=inside, other=0.0)
        exponents = dot(rows, tl.trans(k)) * (scale * LOG2E)
        exponents = tl.where((block < count)[None, :], exponents, -_INF)
        best, total, sums = _step((best, total, sums), exponents, v)
    _store_rows((best, total, sums), out, lse, row, head, kv_heads, group, DIM, ROWS, WIDTH)


@triton.jit
def _block_scores(q, keys, lse, starts, positions, scores, scale, kv_heads, group, num_blocks,
                  LENGTH: tl.constexpr, STRIDE: tl.constexpr, SELECTED: tl.constexpr,
                  INITIAL: tl.constexpr, LOCAL: tl.constexpr, DIM: tl.constexpr,
                  BLOCKS: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
                  WIDTH: tl.constexpr):  # fmt: skip
    row, head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    rows = _queries(q, row, head, kv_heads, group, DIM, ROWS, WIDTH)
    position = tl.load(positions + row)
    count = _seen(position, LENGTH, STRIDE)
    chosen = part * BLOCKS + tl.arange(0, BLOCKS)
    # The first compressed block that reaches into the first of them.
    block = part * BLOCKS * (SELECTED // STRIDE) - (LENGTH // STRIDE - 1) + tl.arange(0, SPAN)
    seen = (block >= 0) & (block < count)
    first = (tl.load(starts + row).to(tl.int64) * kv_heads + head) * DIM
    at = tl.arange(0, WIDTH)
    places = first + block.to(tl.int64) * kv_heads * DIM
    inside = seen[:, None] & (at < DIM)[None, :]
    k = tl.load(keys + places[:, None] + at[None, :], mask=inside, other=0.0)
    member = tl.arange(0, ROWS)
    heads = row * kv_heads * group + head * group + member
    log_sum = tl.load(lse + heads, mask=member < group, other=_INF)
    exponents = (dot(rows, tl.trans(k)) * scale - log_sum[:, None]) * LOG2E
    valid = seen[None, :] & (member < group)[:, None]
    shares = tl.sum(tl.where(valid, tl.exp2(exponents), 0.0), 0)
    # How many strides of a compressed block lie in a selectable one.
    begin, end = block[:, None] * STRIDE, block[:, None] * STRIDE + LENGTH
    common = tl.minimum(end, (chosen[None, :] + 1) * SELECTED) - tl.maximum(
        begin, chosen[None, :] * SELECTED
    )
    strides = tl.maximum(common // STRIDE, 0).to(tl.float32)
    score = tl.sum(strides * shares[:, None], 0)
    own = position // SELECTED
    score = tl.where((chosen < INITIAL) | (chosen > own - LOCAL), _INF, score)
    score = tl.where(chosen > own, -_INF, score)
    to = scores + (row * kv_heads + head) * num_blocks + chosen
    tl.store(to, score, mask=chosen < num_blocks)


@triton.jit
def _selected(q, keys, values, tables, sequences, positions, chosen, out, lse, key_page, key_token,
              key_head, key_dim, value_page, value_token, value_head, value_dim, table_stride,
              scale, kv_heads, group, count, PAGE: tl.constexpr, TOKENS: tl.constexpr,
              DIM: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows = _queries(q, row, head, kv_heads, group, DIM, ROWS, WIDTH)
    position = tl.load(positions + row)
    table = tables + tl.load(sequences + row).to(tl.int64) * table_stride
    chosen += (row * kv_heads + head) * count
    keys += head * key_head
    values += head * value_head
    at = tl.arange(0, WIDTH)
    best = tl.full((ROWS,), -_INF, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    for number in range(count):
        block = tl.load(chosen + number)
        token = block * TOKENS + tl.arange(0, TOKENS)
        seen = (token >= 0) & (token <= position)
        page = tl.load(table + token // PAGE, mask=seen, other=0).to(tl.int64)
        offset = token % PAGE
        inside = seen[:, None] & (at < DIM)[None, :]
        of_key, of_value = page * key_page + offset * key_token, page * value_page
        of_value += offset * value_token
        k = tl.load(keys + of_key[:, None] + at[None, :] * key_dim, mask=inside, other=0.0)
        v = tl.load(values + of_value[:, None] + at[None, :] * value_dim, mask=inside, other=0.0)
        exponents = dot(rows, tl.trans(k)) * (scale * LOG2E)
        exponents = tl.where(seen[None, :], exponents, -_INF)
        best, total, sums = _step((best, total, sums), exponents, v)
    _store_rows((best, total, sums), out, lse, row, head, kv_heads, group, DIM, ROWS, WIDTH)


_HEADS = {"DIM": 128, "ROWS": 16, "WIDTH": 128}
_BY_STRIDE = {"LENGTH": 32, "STRIDE": 16}
_ROW = {
    **dict.fromkeys(("q", "keys"), "*bf16"),
    **dict.fromkeys(("kv_heads", "group"), "i32"),
    "positions": "*i32",
    "lse": "*fp32",
    "scale": "fp32",
}
_POOL = ("key_page", "key_token", "key_head", "value_page", "value_token", "value_head")

AOT_CASES = (
    AotCase(
        "nsa/compressed/bf16/d128",
        _compressed,
        {**_ROW, "values": "*bf16", "out": "*bf16", "starts": "*i32"},
        {**_HEADS, **_BY_STRIDE, "TILE": _TILE},
        num_stages=3,
        aligned=("q", "keys", "values", "out"),
        async_copies=32,
    ),
    AotCase(
        "nsa/block_scores/bf16/d128",
        _block_scores,
        {**_ROW, "scores": "*fp32", "starts": "*i32", "num_blocks": "i32"},
        {
            **_HEADS,
            **_BY_STRIDE,
            "SELECTED": 64,
            "INITIAL": 1,
            "LOCAL": 2,
            "BLOCKS": _BLOCKS,
            "SPAN": _span(NsaShape()),
        },
        aligned=("q", "keys"),
    ),
    AotCase(
        "nsa/selected/bf16/d128",
        _selected,
        {
            **_ROW,
            **dict.fromkeys(("values", "out"), "*bf16"),
            **dict.fromkeys(("tables", "sequences", "chosen"), "*i32"),
            **dict.fromkeys((*_POOL, "table_stride", "count"), "i32"),
        },
        {**_HEADS, "key_dim": 1, "value_dim": 1, "PAGE": 16, "TOKENS": 64},
        num_stages=3,
        aligned=("q", "keys", "values", "out", *_POOL),
    ),
)

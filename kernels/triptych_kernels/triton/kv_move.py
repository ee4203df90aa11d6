"""KV from pool to pool: between layouts, block sizes, and numbers of tensor-parallel ranks.

A pool's keys, or values, are a view [blocks, block tokens, KV heads, D] of any strides, so
head-major and token-major pools, transposed values and a buffer that is to be sent are all the same
here. A sequence's positions are copied as they are: whole blocks are written, and behind the last
position zeros, so that nothing of a former owner is left where a kernel may read it.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION


class HeadMove(NamedTuple):
    """KV head `source_head` of a rank's pool is `target_head` of another rank's."""

    source_rank: int
    source_head: int
    target_rank: int
    target_head: int


def heads_of_rank(kv_heads: int, ranks: int, rank: int) -> range:
    """The model's KV heads that a rank holds. With more ranks than heads each is held by several.

    Raises ValueError where they cannot be shared evenly.
    """
    if ranks <= kv_heads:
        if kv_heads % ranks:
            raise ValueError(f"{kv_heads} KV heads are not shared evenly by {ranks} ranks")
        share = kv_heads // ranks
        return range(rank * share, (rank + 1) * share)
    if ranks % kv_heads:
        raise ValueError(f"{ranks} ranks are no multiple of {kv_heads} KV heads")
    head = rank // (ranks // kv_heads)
    return range(head, head + 1)


def head_moves(kv_heads: int, source_ranks: int, target_ranks: int) -> list[HeadMove]:
    """What each target rank fetches, each of its heads once.

    Of several ranks that hold a head it is the one whose place among them is that of the target
    among those that want it, so that copies spread.
    """
    holders: dict[int, list[tuple[int, int]]] = {}
    for rank in range(source_ranks):
        for place, head in enumerate(heads_of_rank(kv_heads, source_ranks, rank)):
            holders.setdefault(head, []).append((rank, place))
    moves, asked = [], dict.fromkeys(range(kv_heads), 0)
    for rank in range(target_ranks):
        for place, head in enumerate(heads_of_rank(kv_heads, target_ranks, rank)):
            source, source_head = holders[head][asked[head] % len(holders[head])]
            asked[head] += 1
            moves.append(HeadMove(source, source_head, rank, place))
    return moves


def move_kv(
    source: Tensor,
    source_blocks: Tensor,
    source_heads: Tensor,
    target: Tensor,
    target_blocks: Tensor,
    target_heads: Tensor,
    num_tokens: int,
) -> None:
    """Positions [0, num_tokens) of a sequence; keys and values each need a call, and so do the
    scales of int8 (as D = 1).

    source, target [blocks, block tokens, KV heads, D], of one type; blocks int32 [n], in the order
    of the sequence; heads int32 [h], pairwise.
    """
    assert source.dtype == target.dtype, "KV is moved, not converted"
    assert source.shape[3] == target.shape[3] and len(source_heads) == len(target_heads)
    assert len(target_blocks) * target.shape[1] >= num_tokens, "the target has too few blocks"
    assert len(source_blocks) * source.shape[1] >= num_tokens, "the source has too few blocks"
    tokens, dim = target.shape[1], target.shape[3]
    _move_kv[(triton.cdiv(num_tokens, tokens), len(source_heads))](
        source,
        source_blocks,
        source_heads,
        target,
        target_blocks,
        target_heads,
        *source.stride(),
        *target.stride(),
        source.shape[1],
        num_tokens,
        TOKENS=tokens,
        DIM=dim,
        TOKENS_ROOM=triton.next_power_of_2(tokens),
        DIM_ROOM=triton.next_power_of_2(dim),
        **NO_FUSION,
    )


@triton.jit(do_not_specialize=["num_tokens"])  # one code for every batch
def _move_kv(source, source_blocks, source_heads, target, target_blocks, target_heads, source_block,
             source_token, source_head, source_dim, target_block, target_token, target_head,
             target_dim, source_tokens, num_tokens, TOKENS: tl.constexpr, DIM: tl.constexpr,
             TOKENS_ROOM: tl.constexpr, DIM_ROOM: tl.constexpr):  # fmt: skip
    """One head of one target block per program; its tokens may come from several source blocks."""
    number, pair = tl.program_id(0), tl.program_id(1)
    token = tl.arange(0, TOKENS_ROOM)
    at = tl.arange(0, DIM_ROOM)[None, :]
    position = number * TOKENS + token
    inside = (token < TOKENS) & (position < num_tokens)
    block = tl.load(source_blocks + position // source_tokens, mask=inside, other=0).to(tl.int64)
    from_token = block * source_block + (position % source_tokens) * source_token
    from_head = tl.load(source_heads + pair).to(tl.int64) * source_head
    where = source + from_head + from_token[:, None] + at * source_dim
    moved = tl.load(where, mask=inside[:, None] & (at < DIM), other=0)
    to_block = tl.load(target_blocks + number).to(tl.int64) * target_block
    to_head = tl.load(target_heads + pair).to(tl.int64) * target_head
    to = target + to_block + to_head + token[:, None] * target_token + at * target_dim
    tl.store(to, moved, mask=(token < TOKENS)[:, None] & (at < DIM))


_BLOCK_STRIDES = ("source_block", "target_block")
_STRIDES = ("source_token", "source_head", "target_token", "target_head")

AOT_CASES = (
    AotCase(
        "move_kv/bf16/d128",
        _move_kv,
        {
            **dict.fromkeys(("source", "target"), "*bf16"),
            **dict.fromkeys(
                ("source_blocks", "source_heads", "target_blocks", "target_heads"), "*i32"
            ),
            **dict.fromkeys((*_BLOCK_STRIDES, *_STRIDES, "source_tokens", "num_tokens"), "i32"),
        },
        {
            **dict.fromkeys(("source_dim", "target_dim"), 1),
            **dict.fromkeys(("TOKENS", "TOKENS_ROOM"), 16),
            **dict.fromkeys(("DIM", "DIM_ROOM"), 128),
        },
        aligned=("source", "target", *_BLOCK_STRIDES, *_STRIDES),
        mma=False,
    ),
)

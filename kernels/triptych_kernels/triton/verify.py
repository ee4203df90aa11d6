"""Which nodes of drafts are right, on the device: the twins of `decode_worker.speculate.verify` and
of `triptych_kernels.verification`, without a probability tensor.

By equality nothing but drawn tokens is compared. The rules that keep the law read p and q where
they need them; what a residual needs of the vocabulary is summed in one walk over it. Like the
reference they agree with plain decoding in law, and the same round gives the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION
from triptych_kernels.triton.filters import TILE
from triptych_kernels.triton.laws import Laws, chance, chance_drafted, reach

ROOT = -1  # parent of the first nodes
NO_NODE = -2  # parent of what fills up shorter drafts
_LANES = 128  # drafts that one program compares

_PAD = tl.constexpr(-1)
_BEHIND_ALL = tl.constexpr((1 << 31) - 1)
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True, slots=True)
class Drafts:
    """N drafts of up to T nodes; siblings in the order in which they were drawn."""

    parents: Tensor  # int32 [N, T]: of a node an earlier one, ROOT, or NO_NODE
    tokens: Tensor  # int32 [N, T]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is right of N drafts. Rows are filled up with −1."""

    path: Tensor  # int32 [N, T], the right nodes from the root down
    count: Tensor  # int32 [N], how many
    tokens: Tensor  # int32 [N, T + 1]: theirs, then the one behind them


def equality(drafts: Drafts, drawn: Tensor) -> Verdict:
    """A node is right if its parent is and it is the token drawn there; of equal ones the first.

    drawn int32 [N, T + 1]: behind the sequence, then behind each node.
    """
    verdict = _room_for(drafts)
    count, nodes = drafts.parents.shape
    _walk_equal[(triton.cdiv(count, _LANES),)](
        drafts.parents,
        drafts.tokens,
        drawn,
        verdict.path,
        verdict.count,
        verdict.tokens,
        count,
        nodes,
        LANES=_LANES,
        **NO_FUSION,
    )
    return verdict


def rejection(
    drafts: Drafts, targets: Laws, proposals: Laws | None, coins: Tensor, last_coins: Tensor
) -> Verdict:
    """`triptych_kernels.verification.rejection`, then `sample` from the law that it leaves.

    targets: of N · (T + 1) rows, behind the sequence and behind each node, draft after draft;
    proposals: of N · T rows, q of each node, None: one-hot. coins float64 [N, T], last_coins
    float64 [N].
    """
    room = triton.next_power_of_2(max(drafts.parents.shape[1], 1))
    return _judge(_reject, drafts, targets, proposals, coins, last_coins, ROOM=room)


def block(
    drafts: Drafts, targets: Laws, proposals: Laws | None, coins: Tensor, last_coins: Tensor
) -> Verdict:
    """`triptych_kernels.verification.block` of chains, then `sample`; arguments as above."""
    return _judge(_verify_block, drafts, targets, proposals, coins, last_coins)


def _judge(
    kernel: triton.JITFunction,
    drafts: Drafts,
    targets: Laws,
    proposals: Laws | None,
    coins: Tensor,
    last_coins: Tensor,
    **sizes: int,
) -> Verdict:
    count, nodes = drafts.parents.shape
    assert len(targets.facts) == count * (nodes + 1), "a row behind each node, and one more"
    assert coins.dtype == last_coins.dtype == torch.float64, "coins are float64"
    drafted = targets if proposals is None else proposals
    assert proposals is None or len(proposals.facts) == count * nodes, "a law of each node"
    verdict = _room_for(drafts)
    kernel[(count,)](
        drafts.parents,
        drafts.tokens,
        targets.logits,
        targets.facts,
        targets.last,
        drafted.logits,
        drafted.facts,
        drafted.last,
        coins,
        last_coins,
        verdict.path,
        verdict.count,
        verdict.tokens,
        targets.logits.stride(0),
        drafted.logits.stride(0),
        nodes,
        targets.logits.shape[1],
        FILTERED=targets.filtered,
        DRAFT_FILTERED=drafted.filtered,
        ONE_HOT=proposals is None,
        TILE=TILE,
        num_warps=8,
        **NO_FUSION,
        **sizes,
    )
    return verdict


def _room_for(drafts: Drafts) -> Verdict:
    assert drafts.parents.is_contiguous() and drafts.tokens.is_contiguous()
    count, nodes = drafts.parents.shape
    path = torch.full_like(drafts.parents, -1)
    return Verdict(path, path.new_empty(count), path.new_full((count, nodes + 1), -1))


@triton.jit(do_not_specialize=["count"])  # one code for every batch
def _walk_equal(parents, tokens, drawn, path, counts, emitted, count, nodes, LANES: tl.constexpr):
    """A lane per draft. One pass is enough: children come behind their parents."""
    draft = tl.program_id(0) * LANES + tl.arange(0, LANES)
    valid = draft < count
    draft = draft.to(tl.int64)
    at = tl.full((LANES,), -1, tl.int32)  # ROOT
    taken = tl.zeros((LANES,), tl.int32)
    token = tl.load(drawn + draft * (nodes + 1), mask=valid)
    for node in range(nodes):
        parent = tl.load(parents + draft * nodes + node, mask=valid, other=-2)
        right = (parent == at) & (tl.load(tokens + draft * nodes + node, mask=valid) == token)
        right = right & valid
        tl.store(path + draft * nodes + taken, tl.full((LANES,), node, tl.int32), mask=right)
        tl.store(emitted + draft * (nodes + 1) + taken, token, mask=right)
        behind = tl.load(drawn + draft * (nodes + 1) + node + 1, mask=right)
        at = tl.where(right, node, at)
        token = tl.where(right, behind, token)
        taken += right.to(tl.int32)
    tl.store(emitted + draft * (nodes + 1) + taken, token, mask=valid)
    tl.store(counts + draft, taken, mask=valid)


@triton.jit
def _left_of(targets, proposals, draft, at, end, left_sums, tokens, valid, FILTERED: tl.constexpr,
             DRAFT_FILTERED: tl.constexpr, ONE_HOT: tl.constexpr, ROOM: tl.constexpr):  # fmt: skip
    """r(token) behind node `at` when its children before `end` were wrong: p less the q of each in
    turn, normalised by the sums [ROOM] that were left. Where nothing was left, r stays.

    draft: its parents and tokens [T], its first row of targets, and of proposals.
    """
    parents, drafted, first_row, first_node = draft
    r = chance(targets, first_row + at + 1, tokens, valid, FILTERED)
    for child in range(end):
        if tl.load(parents + child) == at:
            q = chance_drafted(proposals, first_node + child, tl.load(drafted + child), tokens,
                                valid, DRAFT_FILTERED, ONE_HOT)  # fmt: skip
            left = tl.sum(tl.where(tl.arange(0, ROOM) == child, left_sums, 0.0), 0)
            some = left > 0.0
            r = tl.where(some, tl.maximum(r - q, 0.0) / tl.where(some, left, 1.0), r)
    return r


@triton.jit
def _reject(parents, drafted, target, target_facts, target_lasts, proposal, proposal_facts,
            proposal_lasts, coins, last_coins, path, counts, emitted, target_stride,
            proposal_stride, nodes, vocab, FILTERED: tl.constexpr, DRAFT_FILTERED: tl.constexpr,
            ONE_HOT: tl.constexpr, TILE: tl.constexpr, ROOM: tl.constexpr):  # fmt: skip
    """One draft per program."""
    number = tl.program_id(0).to(tl.int64)
    first_row, first_node = number * (nodes + 1), number * nodes
    targets = (target, target_facts, target_lasts, target_stride)
    proposals = (proposal, proposal_facts, proposal_lasts, proposal_stride)
    draft = (parents + first_node, drafted + first_node, first_row, first_node)
    at = tl.full((), -1, tl.int32)  # ROOT
    taken = tl.full((), 0, tl.int32)
    left_sums = tl.zeros((ROOM,), tl.float32)
    for child in range(nodes):
        if tl.load(parents + first_node + child) == at:
            token = tl.load(drafted + first_node + child)
            lane = tl.zeros((1,), tl.int32) + token
            r_token = tl.max(_left_of(targets, proposals, draft, at, child, left_sums, lane,
                                      lane >= 0, FILTERED, DRAFT_FILTERED, ONE_HOT,
                                      ROOM), 0)  # fmt: skip
            q_token = tl.max(chance_drafted(proposals, first_node + child, token, lane, lane >= 0,
                                             DRAFT_FILTERED, ONE_HOT), 0)  # fmt: skip
            coin = tl.load(coins + first_node + child)
            if coin * q_token.to(tl.float64) < r_token.to(tl.float64):
                tl.store(path + first_node + taken, child)
                tl.store(emitted + first_row + taken, token)
                at = child
                taken += 1
            else:
                sums = tl.zeros((TILE,), tl.float32)
                for first in range(0, vocab, TILE):
                    v = first + tl.arange(0, TILE)
                    r = _left_of(targets, proposals, draft, at, child, left_sums, v, v < vocab,
                                 FILTERED, DRAFT_FILTERED, ONE_HOT, ROOM)  # fmt: skip
                    q = chance_drafted(proposals, first_node + child, token, v, v < vocab,
                                        DRAFT_FILTERED, ONE_HOT)  # fmt: skip
                    sums += tl.maximum(r - q, 0.0)
                left_sums = tl.where(tl.arange(0, ROOM) == child, tl.sum(sums, 0), left_sums)
    total = tl.full((), 0.0, tl.float64)
    for first in range(0, vocab, TILE):
        v = first + tl.arange(0, TILE)
        r = _left_of(targets, proposals, draft, at, nodes, left_sums, v, v < vocab, FILTERED,
                     DRAFT_FILTERED, ONE_HOT, ROOM)  # fmt: skip
        total += tl.sum(r.to(tl.float64), 0)
    aim = tl.load(last_coins + number) * total
    passed = tl.full((), 0.0, tl.float64)
    found = tl.full((), _BEHIND_ALL, tl.int32)
    possible = tl.full((), _PAD, tl.int32)
    for first in range(0, vocab, TILE):
        v = first + tl.arange(0, TILE)
        r = _left_of(targets, proposals, draft, at, nodes, left_sums, v, v < vocab, FILTERED,
                     DRAFT_FILTERED, ONE_HOT, ROOM)  # fmt: skip
        passed, found, possible = reach(r, v, passed, aim, found, possible)
    tl.store(emitted + first_row + taken, tl.where(found < _BEHIND_ALL, found, possible))
    tl.store(counts + number, taken)


@triton.jit
def _above(targets, proposals, drafted, first_row, first_node, node, count, share, tokens, valid,
           FILTERED: tl.constexpr, DRAFT_FILTERED: tl.constexpr,
           ONE_HOT: tl.constexpr):  # fmt: skip
    """What share · p has above q at a node of a chain of `count`, at tokens [n]; behind its last
    node p alone.
    """
    p = chance(targets, first_row + node, tokens, valid, FILTERED)
    if node < count:
        q = chance_drafted(proposals, first_node + node, tl.load(drafted + first_node + node),
                            tokens, valid, DRAFT_FILTERED, ONE_HOT)  # fmt: skip
        p = tl.maximum(p * share - q, 0.0)
    return p


@triton.jit
def _verify_block(parents, drafted, target, target_facts, target_lasts, proposal, proposal_facts,
                  proposal_lasts, coins, last_coins, path, counts, emitted, target_stride,
                  proposal_stride, nodes, vocab, FILTERED: tl.constexpr,
                  DRAFT_FILTERED: tl.constexpr, ONE_HOT: tl.constexpr,
                  TILE: tl.constexpr):  # fmt: skip
    """One chain per program; all its nodes are looked at."""
    number = tl.program_id(0).to(tl.int64)
    first_row, first_node = number * (nodes + 1), number * nodes
    targets = (target, target_facts, target_lasts, target_stride)
    proposals = (proposal, proposal_facts, proposal_lasts, proposal_stride)
    count = tl.full((), 0, tl.int32)
    for node in range(nodes):
        count += (tl.load(parents + first_node + node) >= -1).to(tl.int32)
    share = tl.full((), 1.0, tl.float32)  # of the path's mass that may still be kept
    taken = tl.full((), 0, tl.int32)
    kept_share = tl.full((), 1.0, tl.float32)  # behind the right ones
    for node in range(count):
        token = tl.load(drafted + first_node + node)
        lane = tl.zeros((1,), tl.int32) + token
        p = tl.max(chance(targets, first_row + node, lane, lane >= 0, FILTERED), 0)
        q = tl.max(chance_drafted(proposals, first_node + node, token, lane, lane >= 0,
                                   DRAFT_FILTERED, ONE_HOT), 0)  # fmt: skip
        share = tl.minimum(share * p / tl.maximum(q, _TINY), 1.0)
        passes = share
        if node + 1 < count:
            sums = tl.zeros((TILE,), tl.float32)
            for first in range(0, vocab, TILE):
                v = first + tl.arange(0, TILE)
                sums += _above(targets, proposals, drafted, first_row, first_node, node + 1, count,
                               share, v, v < vocab, FILTERED, DRAFT_FILTERED, ONE_HOT)  # fmt: skip
            rest = tl.sum(sums, 0)
            passes = tl.where(rest > 0.0, rest / tl.maximum(rest + 1.0 - share, _TINY), 0.0)
        if tl.load(coins + first_node + node) < passes.to(tl.float64):
            taken = node + 1
            kept_share = share
    for node in range(taken):
        tl.store(path + first_node + node, node)
        tl.store(emitted + first_row + node, tl.load(drafted + first_node + node))
    total = tl.full((), 0.0, tl.float64)
    for first in range(0, vocab, TILE):
        v = first + tl.arange(0, TILE)
        r = _above(targets, proposals, drafted, first_row, first_node, taken, count, kept_share, v,
                   v < vocab, FILTERED, DRAFT_FILTERED, ONE_HOT)  # fmt: skip
        total += tl.sum(r.to(tl.float64), 0)
    # Rounding may leave nothing where p and q are equal: then it is p.
    if total == 0.0:
        count = taken
        for first in range(0, vocab, TILE):
            v = first + tl.arange(0, TILE)
            r = chance(targets, first_row + taken, v, v < vocab, FILTERED)
            total += tl.sum(r.to(tl.float64), 0)
    aim = tl.load(last_coins + number) * total
    passed = tl.full((), 0.0, tl.float64)
    found = tl.full((), _BEHIND_ALL, tl.int32)
    possible = tl.full((), _PAD, tl.int32)
    for first in range(0, vocab, TILE):
        v = first + tl.arange(0, TILE)
        r = _above(targets, proposals, drafted, first_row, first_node, taken, count, kept_share, v,
                   v < vocab, FILTERED, DRAFT_FILTERED, ONE_HOT)  # fmt: skip
        passed, found, possible = reach(r, v, passed, aim, found, possible)
    tl.store(emitted + first_row + taken, tl.where(found < _BEHIND_ALL, found, possible))
    tl.store(counts + number, taken)


_ROUND = {
    **dict.fromkeys(("parents", "drafted", "path", "counts", "emitted"), "*i32"),
    **dict.fromkeys(("target", "target_facts", "proposal", "proposal_facts"), "*fp32"),
    **dict.fromkeys(("target_lasts", "proposal_lasts"), "*i64"),
    **dict.fromkeys(("coins", "last_coins"), "*fp64"),
    **dict.fromkeys(("target_stride", "proposal_stride", "nodes", "vocab"), "i32"),
}
_STREAMED = ("target", "proposal", "target_stride", "proposal_stride")
_FLAGS = {"FILTERED": True, "DRAFT_FILTERED": False, "TILE": TILE}

AOT_CASES = (
    AotCase(
        "verify/equality",
        _walk_equal,
        {
            **dict.fromkeys(("parents", "tokens", "drawn", "path", "counts", "emitted"), "*i32"),
            **dict.fromkeys(("count", "nodes"), "i32"),
        },
        {"LANES": _LANES},
        mma=False,
    ),
    *(
        AotCase(
            f"verify/rejection/fp32/{name}",
            _reject,
            _ROUND,
            {**_FLAGS, "ONE_HOT": one_hot, "ROOM": 64},
            num_warps=8,
            aligned=_STREAMED,
            mma=False,
            spill_reason="eight bytes on sm_90, where the compiler wants four CTAs per SM",
        )
        for name, one_hot in (("one_hot", True), ("laws", False))
    ),
    AotCase(
        "verify/block/fp32",
        _verify_block,
        _ROUND,
        {**_FLAGS, "ONE_HOT": False},
        num_warps=8,
        aligned=_STREAMED,
        mma=False,
    ),
)

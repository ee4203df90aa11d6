"""What speculation and sparse attention brought to one HTTP request, for its `usage`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from router.reply import CompletionDetails, DrafterDetails, SparseDetails
from transport.protos import worker_pb2 as pb


def completion_details(stats: Sequence[pb.RequestStats]) -> CompletionDetails:
    """Of one HTTP request, which has one or more prompts, each with its own home. Pure."""
    accepted = sum(each.accepted_tokens for each in stats)
    rounds = sum(each.rounds for each in stats)
    tokens = sum(each.completion_tokens for each in stats)
    return CompletionDetails(
        accepted_prediction_tokens=accepted,
        rejected_prediction_tokens=sum(each.drafted_tokens for each in stats) - accepted,
        rounds=rounds,
        acceptance_length=round(tokens / rounds, 3) if rounds else 0.0,
        drafters=_by_drafter(stats),
        draft_ms=round(sum(each.draft_ms for each in stats), 3),
    )


def sparse_details(stats: Sequence[pb.RequestStats]) -> SparseDetails:
    """The same of sparse attention. Pure."""
    return SparseDetails(
        tiles=sum(each.tiles.seen for each in stats),
        skipped_tiles=sum(each.tiles.skipped for each in stats),
        max_omitted=max((each.tiles.omitted for each in stats), default=0.0),
        pages=sum(each.tiles.pages for each in stats),
        pages_read=sum(each.tiles.pages_read for each in stats),
    )


def _by_drafter(stats: Sequence[pb.RequestStats]) -> dict[str, DrafterDetails]:
    sums: dict[str, Counter[str]] = {}
    for part in (part for each in stats for part in each.drafters):
        total = sums.setdefault(part.drafter, Counter())
        total["rounds"] += part.rounds
        total["drafted_tokens"] += part.drafted_tokens
        total["accepted_tokens"] += part.accepted_tokens
    return {name: DrafterDetails(**sums[name]) for name in sorted(sums)}

"""Drafts as they travel between draft and decode workers."""

from __future__ import annotations

from transport.protos import worker_pb2 as pb
from triptych.drafters.contained import sound
from triptych.engine.draft import Draft


def draft_reply(key: int, base: int, context_hash: int, draft: Draft) -> pb.DraftReply:
    """For the sequence `key`, behind its first `base` tokens."""
    return pb.DraftReply(
        key=key,
        base=base,
        hash=context_hash,
        token_ids=draft.tokens,
        parents=draft.parents,
        confidence=draft.confidence,
    )


def draft_of(reply: pb.DraftReply, max_nodes: int, vocab_size: int) -> Draft:
    """Raises ValueError for a tree that is none."""
    draft = Draft(
        tuple(reply.token_ids),
        tuple(reply.parents) or None,
        # Rounding to 32 bits may lift 1 - 1e-9 to 1, never above.
        tuple(reply.confidence),
    )
    return sound(draft, max_nodes, vocab_size)

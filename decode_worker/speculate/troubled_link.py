"""A link for proofs that loses, delays, doubles and garbles what passes. No answer may depend on
it.
"""

from __future__ import annotations

import random

from decode_worker.speculate.draft_link import DraftLink, Listener
from transport.protos import worker_pb2 as pb


class TroubledLink:
    """Troubles a `share` of the messages, both ways, between a drafter and `link`."""

    def __init__(self, link: DraftLink, share: float, seed: int = 0) -> None:
        self._link = link
        self._share = share
        self._sending, self._hearing = random.Random(seed), random.Random(seed + 1)
        self._listener: Listener | None = None
        self._held: list[pb.DraftReplies] = []

    @property
    def session(self) -> int:
        return self._link.session

    def send(self, session: int, call: pb.DraftCall) -> None:
        if self._sending.random() >= self._share:
            self._link.send(session, call)
        elif self._sending.random() < 0.5:
            self._link.send(session, call)
            self._link.send(session, call)

    def start(self, listener: Listener) -> None:
        self._listener = listener
        self._link.start(self)

    async def close(self) -> None:
        await self._link.close()

    def on_replies(self, replies: pb.DraftReplies) -> None:
        assert self._listener is not None, "it was started"
        if self._hearing.random() >= self._share:
            self._listener.on_replies(replies)
        else:
            match self._hearing.choice(["lose", "double", "delay", "garble"]):
                case "double":
                    self._listener.on_replies(replies)
                    self._listener.on_replies(replies)
                case "delay":
                    self._held.append(replies)
                    return
                case "garble":
                    self._listener.on_replies(garbled(replies, self._hearing))
        held, self._held = self._held, []
        for late in held:
            self._listener.on_replies(late)

    def on_lost(self) -> None:
        assert self._listener is not None, "it was started"
        self._listener.on_lost()


def garbled(replies: pb.DraftReplies, source: random.Random) -> pb.DraftReplies:
    """Tokens, trees and contexts that nobody meant."""
    found = pb.DraftReplies()
    found.CopyFrom(replies)
    for draft in found.drafts:
        match source.randrange(4):
            case 0:
                draft.token_ids[:] = [source.randrange(1 << 32) for _ in draft.token_ids]
            case 1:
                draft.parents[:] = [source.randrange(-3, 9) for _ in draft.token_ids]
            case 2:
                draft.hash ^= 1 << source.randrange(64)
            case 3:
                draft.confidence[:] = [float("nan")]
    return found

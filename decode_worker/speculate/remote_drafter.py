"""A drafter in another process: its drafts are answers that may be pending, late or lost.

Remote drafting with deadlines and context hashes: Multi-SPIN (arXiv 2606.04581); a drafter that
works while the target verifies: SSD (arXiv 2603.03251), here as far as asking ahead goes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace

from decode_worker.speculate.draft_link import Link
from decode_worker.speculate.patience import Patience
from decode_worker.speculate.remote_contexts import Asked, RemoteContext
from transport.protos import worker_pb2 as pb
from triptych.drafters.drafter import Ask, Hints, Verdict
from triptych.drafters.late import behind
from triptych.drafters.wire import draft_of
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.sequence import Sequence

_LOST_S = 0.5  # an ask that is older was lost; the sequence is told again in full

Count = Callable[[str], None]


class RemoteDrafter:
    """Verbs on the engine's thread, answers on the event loop's; one lock between them.

    As soon as a step commits tokens, those who wanted a draft in it are asked for again, so that
    the drafter works meanwhile. `propose` waits for what is missing, as long as
    `patience` says. A late answer is used if its sequence went the way it said.
    """

    def __init__(
        self,
        link: Link,
        count: Count,
        *,
        patience: Patience,
        vocab_size: int,
        name: str = "remote",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._link = link
        self._count = count
        self._vocab_size = vocab_size
        self._patience = patience
        self._clock = clock
        self._news = threading.Condition()
        self._contexts: dict[Sequence, RemoteContext] = {}
        self._by_key: dict[int, RemoteContext] = {}
        self._last_key = 0
        self._proposed_at: float | None = None

    def begin(self, sequence: Sequence, hints: Hints) -> None:
        with self._news:
            self._last_key += 1
            context = RemoteContext(self._last_key, sequence, hints)
            self._contexts[sequence] = self._by_key[context.key] = context

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        ends_at = self._clock() + self._patience.wait_s(len(asks))
        session = self._link.session
        with self._news:
            known = [self._contexts.get(sequence) for sequence, _ in asks]
            wanted = [
                (context, nodes)
                for context, (_, nodes) in zip(known, asks, strict=True)
                if context is not None
            ]
            self._ask(session, [(c, nodes) for c, nodes in wanted if not _useful(c)])
            while any(context.asked and not _useful(context) for context, _ in wanted):
                left = ends_at - self._clock()
                if left <= 0 or not self._news.wait(left):
                    break
            drafts = [
                NO_DRAFT if context is None else self._take(context, ask.max_nodes)
                for context, ask in zip(known, asks, strict=True)
            ]
        self._proposed_at = self._clock()
        return drafts

    def observe(self, verdicts: Seq[Verdict]) -> None:
        began, self._proposed_at = self._proposed_at, None
        ours = [v.num_accepted for v in verdicts if v.draft and v.draft.drafter == self.name]
        step_s = None if began is None else self._clock() - began
        self._patience.learn(len(verdicts), ours, step_s)
        with self._news:
            ahead = []
            for verdict in verdicts:
                context = self._contexts.get(verdict.sequence)
                if context is not None and context.last_nodes and not _useful(context):
                    ahead.append((context, context.last_nodes))
                    context.last_nodes = 0
            self._ask(self._link.session, ahead)

    def end(self, sequence: Sequence) -> None:
        with self._news:
            context = self._contexts.pop(sequence, None)
            if context is None:
                return
            del self._by_key[context.key]
            session = self._link.session
            if session and context.told_in == session:
                # What it does not know yet too: drafters learn from whole answers.
                last = context.ask(session, 0)
                self._link.send(session, pb.DraftCall(asks=[last], ended=[context.key]))

    def on_replies(self, replies: pb.DraftReplies) -> None:
        with self._news:
            for reply in replies.drafts:
                self._receive(reply)
            for key in replies.lost:
                context = self._by_key.get(key)
                if context is not None:
                    self._count("lost")
                    context.forget()
            self._news.notify_all()

    def on_lost(self) -> None:
        with self._news:
            for context in self._contexts.values():
                context.forget()
            self._news.notify_all()

    def _ask(self, session: int, wanted: list[tuple[RemoteContext, int]]) -> None:
        """Those for whom nothing is under way."""
        now = self._clock()
        asks = []
        for context, max_nodes in wanted:
            if context.answer is not None:  # and of no use any more
                self._count("stale")
                context.answer = None
            if context.asked is not None and now - context.asked.at > _LOST_S:
                self._count("lost")
                context.forget()
            if not session:
                self._count("disconnected")
            elif context.asked is None:
                ask = context.ask(session, max_nodes)
                context.asked = Asked(ask.base, ask.hash, max_nodes, now)
                asks.append(ask)
        if asks:
            self._link.send(session, pb.DraftCall(asks=asks))

    def _receive(self, reply: pb.DraftReply) -> None:
        context = self._by_key.get(reply.key)
        if context is None:  # it has ended
            return
        asked = context.asked
        if asked is None or (asked.base, asked.hash) != (reply.base, reply.hash):
            self._count("stale")
            return
        context.asked = None
        try:
            context.answer = asked.base, draft_of(reply, asked.max_nodes, self._vocab_size)
        except ValueError:
            self._count("garbled")

    def _take(self, context: RemoteContext, max_nodes: int) -> Draft:
        """What there is by now."""
        context.last_nodes = max_nodes
        answer, context.answer = context.answer, None
        if answer is None:
            if context.asked is not None:
                self._count("timeout")
            return NO_DRAFT
        base, draft = answer
        rest = behind(draft, context.sequence.tokens[base:]).first(max_nodes)
        in_time = base == len(context.sequence.tokens)
        self._count("in-time" if in_time else "late" if rest else "stale")
        return replace(rest, drafter=self.name)


def _useful(context: RemoteContext) -> bool:
    """There is an answer that still says something."""
    if context.answer is None:
        return False
    base, draft = context.answer
    since = context.sequence.tokens[base:]
    return not since or bool(behind(draft, since))

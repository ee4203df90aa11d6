"""The draft worker's step: what decode workers asked meanwhile becomes one batch per drafter."""

from __future__ import annotations

import time
from collections import defaultdict

from draft_worker.contexts import Client, Context, Contexts
from transport.protos import worker_pb2 as pb
from triptych.drafters.contained import Contained
from triptych.drafters.drafter import Ask, Verdict
from triptych.drafters.wire import draft_reply
from triptych.obs.metrics import WorkerMetrics

MAX_CONTEXT_TOKENS = 1 << 22  # of all sequences together; drafters' indexes come on top


class DraftLoop:
    """On its own thread; every method is called from there, and so is every client's `reply`."""

    def __init__(
        self,
        drafters: Contained,
        metrics: WorkerMetrics,
        max_tokens: int = MAX_CONTEXT_TOKENS,
    ) -> None:
        self._drafters = drafters
        self._metrics = metrics
        self.contexts = Contexts(lambda context: drafters.end(context.sequence), max_tokens)
        self._asked: dict[Context, int] = {}  # nodes that are wanted behind it

    def take(self, client: Client, call: pb.DraftCall) -> None:
        """One message. Asks that do not fit what is known are answered as lost."""
        lost = [ask.key for ask in call.asks if not self._take_ask(client, ask)]
        if lost:
            client.reply(pb.DraftReplies(lost=lost))
        for key in call.ended:
            if key in client.contexts:
                self._drop(client.contexts[key])

    def close(self, client: Client) -> None:
        """Its call is over, and so is all that was told on it."""
        for context in list(client.contexts.values()):
            self._drop(context)

    def step(self) -> bool:
        """Drafts for whoever waits; False: nobody does."""
        waiting = {
            context: nodes
            for context, nodes in self._asked.items()
            if context.client.contexts.get(context.key) is context
        }
        self._asked = {}
        if not waiting:
            return False
        began = time.monotonic()
        by_drafter = defaultdict[str, list[Context]](list)
        for context in waiting:
            by_drafter[context.client.drafter].append(context)
        for name, contexts in by_drafter.items():
            asks = [Ask(context.sequence, waiting[context]) for context in contexts]
            drafts = self._drafters.propose(name, asks)
            for context, draft in zip(contexts, drafts, strict=True):
                context.draft = draft
        _reply(list(waiting))
        self._metrics.steps.inc()
        self._metrics.step_rows.observe(len(waiting))
        self._metrics.step_seconds.observe(time.monotonic() - began)
        return True

    def _take_ask(self, client: Client, ask: pb.DraftAsk) -> bool:
        """False: what is known of the sequence is not what the decode worker believes."""
        context = client.contexts.get(ask.key)
        tokens = list(ask.new_tokens)
        if ask.HasField("opening"):
            if not 0 < ask.opening.num_prompt <= len(tokens):
                return False
            context = self.contexts.open(client, ask)
            self._drafters.begin(context.sequence, context.hints)
            tokens = tokens[ask.opening.num_prompt :]
        if context is None:
            return False
        self._grow(context, tokens)
        if (len(context.sequence.tokens), context.hash) != (ask.base, ask.hash):
            self._drop(context)
            return False
        if ask.max_nodes:
            self._asked[context] = ask.max_nodes
            self.contexts.touch(context)
        return True

    def _grow(self, context: Context, tokens: list[int]) -> None:
        verdicts: list[Verdict] = self.contexts.grow(context, tokens)
        for verdict in verdicts:
            context.sequence.tokens.extend(verdict.new_tokens)
            self._drafters.observe([verdict])

    def _drop(self, context: Context) -> None:
        self._asked.pop(context, None)
        self.contexts.drop(context)


def _reply(contexts: list[Context]) -> None:
    """One message per client."""
    by_client = defaultdict[Client, list[Context]](list)
    for context in contexts:
        by_client[context.client].append(context)
    for client, own in by_client.items():
        drafts = [draft_reply(c.key, len(c.sequence.tokens), c.hash, c.draft) for c in own]
        client.reply(pb.DraftReplies(drafts=drafts))

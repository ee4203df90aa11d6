"""The sequences that draft for decode workers, as far as they were told."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from transport.protos import worker_pb2 as pb
from triptych.drafters.context_hash import ContextHash
from triptych.drafters.drafter import Hints, Verdict
from triptych.engine.draft import NO_DRAFT, ROOT, Draft
from triptych.engine.sequence import Sequence
from triptych.wire import sampling_params


@dataclass(eq=False)
class Client:
    """One decode worker's open call."""

    worker_id: str
    drafter: str
    reply: Callable[[pb.DraftReplies], None]  # from the loop's thread
    contexts: dict[int, Context] = field(default_factory=dict)  # by key


@dataclass(slots=True, eq=False)
class Context:
    """One sequence: its tokens up to the last ask, and the draft that was made behind them."""

    client: Client
    key: int
    sequence: Sequence
    hints: Hints
    digest: ContextHash = field(default_factory=ContextHash)
    hash: int = 0
    draft: Draft = NO_DRAFT


class Contexts:
    """Keeps `max_tokens` tokens, all clients together; beyond, who was not asked for longest is
    dropped: its decode worker tells it again, if it ever asks again.
    """

    def __init__(
        self, on_drop: Callable[[Context], None], max_tokens: int, max_sequences: int = 1 << 14
    ) -> None:
        self._on_drop = on_drop
        self._max_tokens = max_tokens
        self._max_sequences = max_sequences
        self._by_age: OrderedDict[Context, None] = OrderedDict()
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._by_age)

    def open(self, client: Client, ask: pb.DraftAsk) -> Context:
        """A sequence's first ask on its call, before its tokens were taken in."""
        opening = ask.opening
        if ask.key in client.contexts:
            self.drop(client.contexts[ask.key])
        prompt = list(ask.new_tokens[: opening.num_prompt])
        sequence = Sequence(
            f"{client.worker_id}/{ask.key}",
            prompt,
            root=b"",
            block_tokens=1,
            params=sampling_params(opening.sampling),
        )
        hints = Hints(opening.tenant, opening.problem_id)
        context = Context(client, ask.key, sequence, hints)
        context.hash = context.digest.extend(prompt)
        client.contexts[ask.key] = context
        self._by_age[context] = None
        self.num_tokens += len(prompt)
        return context

    def grow(self, context: Context, tokens: list[int]) -> list[Verdict]:
        """Takes in what was committed; what that says of the draft, and of steps without one.

        Decode workers do not tell what they verified. They need not: a node is right iff it is the
        token that was committed at its place.
        """
        context.hash = context.digest.extend(tokens)
        self.num_tokens += len(tokens)
        path = right_path(context.draft, tokens)
        judged = tokens[: len(path) + 1]
        verdicts = []
        for draft, nodes, new in (
            (context.draft, path, judged),
            (NO_DRAFT, (), tokens[len(judged) :]),
        ):
            if new:
                verdicts.append(Verdict(context.sequence, draft, nodes, tuple(new)))
        context.draft = NO_DRAFT
        return verdicts

    def touch(self, context: Context) -> None:
        """It was asked for; others may have to go."""
        self._by_age.move_to_end(context)
        while self.num_tokens > self._max_tokens or len(self) > self._max_sequences:
            oldest = next(iter(self._by_age))
            if oldest is context:
                return
            self.drop(oldest)

    def drop(self, context: Context) -> None:
        del self._by_age[context]
        del context.client.contexts[context.key]
        self.num_tokens -= len(context.sequence.tokens)
        self._on_drop(context)


def right_path(draft: Draft, tokens: list[int]) -> tuple[int, ...]:
    """The draft's nodes that the text goes along, from the root down. Pure."""
    path: list[int] = []
    for node, token in enumerate(draft.tokens):
        below = path[-1] if path else ROOT
        if draft.parent(node) == below and len(path) < len(tokens) and token == tokens[len(path)]:
            path.append(node)
    return tuple(path)

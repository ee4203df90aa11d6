"""What a remote drafter has been told of a sequence, and what it was asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from transport.protos import worker_pb2 as pb
from triptych.drafters.context_hash import ContextHash
from triptych.drafters.drafter import Hints
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence
from triptych.wire import sampling_message


@dataclass(frozen=True, slots=True)
class Asked:
    """An ask under way."""

    base: int  # tokens that it was about
    hash: int
    max_nodes: int
    at: float  # seconds


@dataclass(slots=True, eq=False)
class RemoteContext:
    """One sequence. `told_in`, `asked` and `answer` are guarded by the drafter's lock."""

    key: int
    sequence: Sequence
    hints: Hints
    told_in: int = 0  # the session that knows the first `num_told` tokens; 0: none does
    num_told: int = 0
    digest: ContextHash = field(default_factory=ContextHash)
    hash: int = 0  # of the digest's tokens
    asked: Asked | None = None  # at most one at a time: a slow drafter is not flooded
    answer: tuple[int, Draft] | None = None  # the newest, and its base
    last_nodes: int = 0  # wanted by the last step; 0: it wanted none

    def ask(self, session: int, max_nodes: int) -> pb.DraftAsk:
        """Tells what `session` does not know yet; all of it, if it knows nothing."""
        tokens = self.sequence.tokens
        if self.digest.num_tokens < len(tokens):
            self.hash = self.digest.extend(tokens[self.digest.num_tokens :])
        ask = pb.DraftAsk(key=self.key, base=len(tokens), hash=self.hash, max_nodes=max_nodes)
        if self.told_in != session:
            self.told_in, self.num_told = session, 0
            ask.opening.CopyFrom(self._opening())
        ask.new_tokens.extend(tokens[self.num_told :])
        self.num_told = len(tokens)
        return ask

    def forget(self) -> None:
        """Nobody knows it any more, and nothing will be answered."""
        self.told_in, self.asked = 0, None

    def _opening(self) -> pb.DraftOpening:
        params = self.sequence.params
        return pb.DraftOpening(
            num_prompt=self.sequence.num_prompt,
            tenant=self.hints.tenant,
            problem_id=self.hints.problem_id,
            # Drafters elsewhere know no grammars: what one forbids is not drawn here.
            sampling=None if params is None else sampling_message(replace(params, grammar=None)),
        )

"""One stream of tokens being computed: a choice of a request, or a prompt at a prefill worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from triptych.engine.constraint import Constraint
from triptych.kv.hashing import extend_hashes
from triptych.request import (
    FinishReason,
    SamplingParams,
    SparseAttention,
    Speculation,
    TileCount,
)

ANY_SPECULATION = Speculation()


class StopWatch(Protocol):
    """Sees each new token; tells the stop string that it completed, if any."""

    def push(self, token_id: int) -> str | None: ...


@dataclass(slots=True)
class DraftCount:
    """A drafter's part in one sequence."""

    rounds: int = 0
    drafted: int = 0  # nodes
    accepted: int = 0  # those that were right


@dataclass(slots=True, eq=False, weakref_slot=True)
class Sequence:
    """Tokens that are wanted, and how far their KV is computed.

    There is no prefill phase and no decode phase: `num_computed` chases `len(tokens)`, and a token
    is drawn whenever it catches up.
    """

    request_id: str
    tokens: list[int]  # prompt, then output; made with the prompt
    root: bytes  # parent hash of the first block
    block_tokens: int
    params: SamplingParams | None = None  # None: a prefill worker's prompt, nothing is drawn
    choice: int = 0
    leader: Sequence | None = None  # a sibling with the same prompt that computes it first
    stop_watch: StopWatch | None = None
    constraint: Constraint | None = None  # None: any token may follow any other
    resumed: tuple[int, ...] = ()  # output that another home drew: it goes on behind these tokens
    speculation: Speculation = ANY_SPECULATION
    sparse: SparseAttention | None = None  # None: attention is dense
    num_answered: int = 0  # of `tokens`, the last ones: an answer's, at a prefill worker
    # Set: the sequence waits its turn for blocks only; called, once, when it has them. Its KV then
    # comes from elsewhere.
    on_room: Callable[[], object] | None = None
    # Set: called, once, with its blocks and how many of them were cached; brings KV into the next
    # one, and says of how many tokens.
    on_place: Callable[[list[int], int], int] | None = None

    num_prompt: int = field(init=False)
    num_given: int = field(init=False)  # tokens that it began with: prompt and resumed ones
    first_choosing: int | None = field(init=False)  # position; rows from there on choose pages
    num_computed: int = 0
    num_committed: int = 0  # blocks offered to the prefix cache
    num_cached: int = 0  # given tokens found in the prefix cache
    likely_cached: int = 0  # those that were there when it was queued
    blocks: list[int] = field(default_factory=list)
    tail: tuple[int, bytes] | None = None  # the unfinished block that neighbours are told, its name
    finished: bool = False
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    num_rounds: int = 0  # steps that drew tokens
    num_drafted: int = 0  # nodes of all drafts
    num_accepted: int = 0  # those that were right
    drafts: dict[str, DraftCount] = field(default_factory=dict)  # verified, by drafter
    tiles: TileCount = field(default_factory=TileCount)
    draft_seconds: float = 0.0  # of drafting, in steps that wanted a draft for it
    prefilled_remotely: bool = False
    first_step_at: float | None = None  # monotonic seconds
    prompt_done_at: float | None = None
    _hashes: list[bytes] = field(default_factory=list)
    _output_counts: Counter[int] = field(default_factory=Counter)
    _num_counted: int = 0  # output tokens that the counts know of

    def __post_init__(self) -> None:
        assert self.tokens, "an empty prompt has no row to compute"
        self.num_prompt = len(self.tokens)
        self.tokens.extend(self.resumed)
        self.num_given = len(self.tokens)
        pages = None if self.sparse is None else self.sparse.pages
        answer = self.num_prompt - self.num_answered
        self.first_choosing = None if pages is None else max(answer, pages.least_tokens)
        if self.stop_watch is not None:  # what began before the cut may end behind it
            for token_id in self.resumed:
                self.stop_watch.push(token_id)

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def prompt_done(self) -> bool:
        """Siblings may start: the prompt's blocks are committed, or they never will be."""
        return self.prompt_done_at is not None or self.finished

    @property
    def output_counts(self) -> Counter[int]:
        """How often each token was drawn. Kept for those who ask: few requests have penalties."""
        self._output_counts.update(self.tokens[self.num_prompt + self._num_counted :])
        self._num_counted = self.num_output
        return self._output_counts

    def hashes(self) -> list[bytes]:
        """Hashes of all full blocks of the tokens known so far."""
        extend_hashes(self._hashes, self.tokens, self.block_tokens, self.root, self.first_choosing)
        return self._hashes

    def reusable_hashes(self) -> list[bytes]:
        """Hashes to look up: one row at least must be computed, so never all of the tokens."""
        return self.hashes()[: (len(self.tokens) - 1) // self.block_tokens]

    def append(self, token_id: int) -> None:
        self.tokens.append(token_id)

    def count_draft(self, drafter: str, drafted: int, accepted: int) -> None:
        """Of a verified draft, maybe empty: then nothing."""
        if drafted:
            count = self.drafts.setdefault(drafter, DraftCount())
            count.rounds += 1
            count.drafted += drafted
            count.accepted += accepted

    def restart(self) -> None:
        """After its blocks were taken away: everything is to be computed again."""
        self.blocks = []
        self.num_computed = 0
        self.num_committed = 0

"""One HTTP request under way: its prompts and choices relayed, turned into text and counted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from router.admission.ask import Ask
from router.drafts import completion_details, sparse_details
from router.merge import merged
from router.metrics import RouterMetrics
from router.placement import Placement
from router.prompt import Prompt
from router.relay import Call, Relay
from router.reply import PromptDetails, Reply, Timings, Usage, timings
from router.text import ChoiceText, Piece
from transport.protos import worker_pb2 as pb
from triptych.errors import WorkerError
from triptych.request import SamplingParams, SparseAttention, Speculation, TokenDelta
from triptych.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Job:
    """What one HTTP request asks of the homes: one call per prompt, `n` choices each."""

    route: str
    id: str  # the answer's id, e.g. chatcmpl-…
    created: int  # Unix seconds
    arrived: float  # time.monotonic() when the request's body had been read
    prompts: Sequence[Prompt]
    params: Sequence[SamplingParams]  # one per prompt
    n: int
    cache_salt: str
    ask: Ask  # for its admission
    speculation: Speculation | None = None
    sparse: SparseAttention | None = None  # None: attention is dense
    session: str = ""  # the client's X-Session-ID
    shown_tokens: frozenset[int] = frozenset()  # special tokens that the answer's text shows

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.n

    def prompt_of(self, choice: int) -> int:
        return choice // self.n


class Generation:
    """Runs a job once. `decision`, `usage` and `timings` grow true as the pieces come."""

    def __init__(
        self, job: Job, relay: Relay, tokenizer: Tokenizer, metrics: RouterMetrics
    ) -> None:
        self.job = job
        # Told the tokens of a prompt that has its first token.
        self.first_word: Callable[[int], None] = lambda prompt_tokens: None
        self._relay = relay
        self._metrics = metrics
        self._placements: dict[int, list[Placement]] = {}  # by prompt: where it began, went on, …
        self._stats: dict[int, pb.RequestStats] = {}  # by prompt
        self._completion_tokens = 0
        self._clocks = [_Clock(job, metrics) for _ in range(job.num_choices)]
        self._choices = [
            ChoiceText(tokenizer, job.params[job.prompt_of(choice)], choice, job.shown_tokens)
            for choice in range(job.num_choices)
        ]

    async def pieces(
        self, shortcut: Callable[[int, int], bool] | None = None
    ) -> AsyncGenerator[Sequence[Piece], None]:
        """What each delta adds to its choice, as many at a time as there are; never none.

        Every choice ends with a finish reason. `shortcut(choice, token_id)` may show a token at
        once, with `add_token`, and say True; it then is in no piece.

        Raises what `Relay.open` raises, and WorkerError when a home leaves a choice unfinished.
        """
        prompts = range(len(self.job.prompts))
        answers = [self._answer(prompt, shortcut) for prompt in prompts]
        async with contextlib.aclosing(merged(answers)) as batches:
            async for _, pieces in batches:
                yield pieces
        self._check_complete()
        self._count_usage()

    def add_token(self, choice: int, token_id: int) -> str:
        """The text of a token that does not end its choice and came without logprobs."""
        if self._choices[choice].finished:
            raise WorkerError(f"{self.job.id}: a token for choice {choice}, which has ended")
        self._completion_tokens += 1
        self._clocks[choice].tick(1)
        return self._choices[choice].push_token(token_id)

    @property
    def decision(self) -> str:
        """Who does the work and why, for X-Triptych-Decision: "decode=decode-0; prefill=prefill-1;
        reason=prefix; cached=512; ttft_ms=120; itl_ms=9". The numbers are predictions.
        """
        first = [placements[0] for placements in self._placements.values()]
        homes = dict.fromkeys(p.decode.worker_id for p in first)
        prefills = dict.fromkeys(p.prefill.worker_id for p in first if p.prefill is not None)
        names = f"decode={','.join(homes)}; prefill={','.join(prefills) or 'none'}"
        return "; ".join([names, *_why(first)])

    def running_usage(self, completion_tokens: int) -> Usage:
        """While the request goes on: as of so many tokens."""
        prompt_tokens = sum(len(prompt.ids) for prompt in self.job.prompts)
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )

    @property
    def usage(self) -> Usage:
        cached = sum(stats.cached_tokens for stats in self._stats.values())
        details = PromptDetails(cached_tokens=cached)
        running = self.running_usage(self._completion_tokens)
        known: dict[str, Reply] = {"prompt_tokens_details": details}
        if self.job.speculation is not None:  # it was asked for by name
            known["completion_tokens_details"] = completion_details([*self._stats.values()])
        if self.job.sparse is not None:
            known["sparse_attention"] = sparse_details([*self._stats.values()])
        return running.model_copy(update=known)

    @property
    def spent(self) -> tuple[int, int]:
        """Prompt tokens that had to be computed, and tokens generated."""
        prompts = sum(len(prompt.ids) for prompt in self.job.prompts)
        cached = sum(stats.cached_tokens for stats in self._stats.values())
        return max(0, prompts - cached), self._completion_tokens

    @property
    def timings(self) -> Timings:
        homes = [p.decode.worker_id for all_ in self._placements.values() for p in all_]
        return timings(list(self._stats.values()), homes)

    def _call(self, prompt: int) -> Call:
        suffix = f"-{prompt}" if len(self.job.prompts) > 1 else ""
        return Call(
            request_id=self.job.id + suffix,
            prompt_ids=self.job.prompts[prompt].ids,
            params=self.job.params[prompt],
            n=self.job.n,
            cache_salt=self.job.cache_salt,
            speculation=self.job.speculation,
            sparse=self.job.sparse,
            session=self.job.session,
            ends=self.job.ask.deadline,
        )

    async def _answer(
        self, prompt: int, shortcut: Callable[[int, int], bool] | None
    ) -> AsyncGenerator[Sequence[Piece], None]:
        first = prompt * self.job.n
        async with self._relay.open(self._call(prompt)) as answer:
            self._placements[prompt] = answer.placements
            self.first_word(len(self.job.prompts[prompt].ids))
            answer.shorten(shortcut and partial(shortcut, first))
            while prompt not in self._stats:
                pieces = []
                for told in await answer.take():
                    if isinstance(told, TokenDelta):
                        pieces.append(self._grow(first + told.choice, told))
                    else:
                        self._stats[prompt] = told
                if pieces:
                    yield pieces

    def _grow(self, index: int, delta: TokenDelta) -> Piece:
        if delta.choice >= self.job.n or self._choices[index].finished:
            raise WorkerError(
                f"{delta.request_id}: tokens for choice {delta.choice}, which has none"
            )
        self._completion_tokens += len(delta.token_ids)
        self._clocks[index].tick(len(delta.token_ids))
        piece = self._choices[index].push(delta)
        if piece.finish_reason is not None:
            self._metrics.choices.labels(self.job.route, piece.finish_reason).inc()
        return piece

    def _check_complete(self) -> None:
        open_choices = [c.index for c in self._choices if not c.finished]
        if open_choices or len(self._stats) < len(self.job.prompts):
            raise WorkerError(f"{self.job.id}: the stream ended before choices {open_choices} did")

    def _count_usage(self) -> None:
        usage = self.usage
        self._metrics.prompt_tokens.inc(usage.prompt_tokens)
        if usage.prompt_tokens_details is not None:
            self._metrics.cached_tokens.inc(usage.prompt_tokens_details.cached_tokens)
        lived_s = time.monotonic() - self.job.arrived
        self._metrics.request_seconds.labels(self.job.route).observe(lived_s)


def _why(placements: Sequence[Placement]) -> list[str]:
    """Of several prompts: all reasons, the slowest prediction."""
    reasons = dict.fromkeys(placement.reason for placement in placements)
    seen = [placement.prediction for placement in placements if placement.prediction is not None]
    told = [f"reason={','.join(reasons)}"] if reasons else []
    if seen:
        told.append(f"cached={sum(prediction.cached_tokens for prediction in seen)}")
        told.append(f"ttft_ms={1e3 * max(prediction.ttft_s for prediction in seen):.0f}")
        told.append(f"itl_ms={1e3 * max(prediction.itl_s for prediction in seen):.1f}")
    return told


class _Clock:
    """Times the tokens of one choice."""

    def __init__(self, job: Job, metrics: RouterMetrics) -> None:
        self._first = metrics.time_to_first_token.labels(job.route)
        self._next = metrics.tokens.of(job.route)
        self._seen_at = job.arrived
        self._started = False

    def tick(self, num_tokens: int) -> None:
        if not num_tokens:
            return
        now = time.monotonic()
        if self._started:
            self._next.observe(num_tokens, now - self._seen_at)
        else:
            self._first.observe(now - self._seen_at)
            self._next.num_tokens += num_tokens
        self._started, self._seen_at = True, now

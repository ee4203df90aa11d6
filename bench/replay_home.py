"""A simulated decode worker: continuous batching, and prompts beside it in the same steps.

Steps in which nobody comes and nobody leaves are advanced together, in closed form.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from bench.replay_cache import BlockCache
from bench.replay_clock import Clock
from bench.replay_prefill import Job, warm_meter
from bench.replay_timing import Machine, steps_s, steps_until
from bench.replay_trace import BLOCK_TOKENS, hit_tokens
from transport.pace import pairs_between
from transport.registry import WorkerView
from triptych.obs.pace import PaceMeter


@dataclass(slots=True)
class _Segment:
    """Steps with the same batch."""

    began: float
    count: int
    first_s: float  # the first step's seconds
    growth_s: float  # by which each next one is longer
    prompts: list[tuple[Job, int]]  # and the rows of theirs; then it is one step

    @property
    def ends(self) -> float:
        return self.began + steps_s(self.count, self.first_s, self.growth_s)


@dataclass(slots=True)
class Home:
    """Room for a request's whole KV, answer included, is taken before its prompt is computed
    anywhere: nobody is ever preempted.
    """

    view: WorkerView
    clock: Clock
    machine: Machine
    cache: BlockCache
    ended: Callable[[float, Job], None]
    started: Callable[[float, Job], None]  # with the first token
    _waiting: deque[tuple[Job, Callable[[float, Job], None] | None]] = field(default_factory=deque)
    _prompts: deque[Job] = field(default_factory=deque)  # to be computed here
    _arrived: list[Job] = field(default_factory=list)  # join with the next step
    _fetching: int = 0
    _ends: list[tuple[int, int, Job]] = field(default_factory=list)  # (last step, order, job)
    _steps: int = 0
    _context: int = 0  # tokens of those that decode
    _segment: _Segment | None = None
    _version: int = 0  # of the segment's end
    _meter: PaceMeter = field(init=False)

    def __post_init__(self) -> None:
        self._meter = warm_meter(self.machine, self.machine.home_chunk_tokens)

    def submit(self, now: float, job: Job, ask: Callable[[float, Job], None] | None) -> None:
        """`ask`: asks a prefill worker, once there is room here; None: it is computed here."""
        job.likely_cached = self.cached(job)
        self.cache.touch(job.recorded.blocks)
        self._waiting.append((job, ask))
        self._admit(now)

    def arrive(self, now: float, job: Job) -> None:
        """Its KV is here."""
        self._fetching -= 1
        self.cache.commit(job.recorded.blocks)
        self._arrived.append(job)
        self._wake(now)

    def cached(self, job: Job) -> int:
        """Tokens of its prompt that need not come from elsewhere."""
        return hit_tokens(job.recorded, self.cache.count_cached(job.recorded.blocks))

    def report(self, now: float) -> WorkerView:
        local = [*self._prompts, *(job for job, ask in self._waiting if ask is None)]
        starts = [max(job.computed, job.likely_cached) for job in local]
        pairs = sum(pairs_between(at, job.prompt) for at, job in zip(starts, local, strict=True))
        running = len(self._ends) + len(self._arrived)
        self.view = replace(
            self.view,
            running=running,
            waiting=len(self._prompts) + self._fetching + len(self._waiting),
            queued_tokens=sum(j.prompt for j in local) - sum(starts),
            queued_pairs=pairs,
            free_blocks=self.cache.capacity - self.cache.used,
            pace=self._meter.pace(
                chunk_tokens=self.machine.home_chunk_tokens, token_bytes=self.machine.token_bytes
            ),
            reported_at=now,
        )
        return self.view

    # ---- intake --------------------------------------------------------------------------------

    def _admit(self, now: float) -> None:
        while self._waiting:
            job, ask = self._waiting[0]
            job.lent = self.cached(job)
            if not self.cache.take(job.recorded.blocks, _answer_blocks(job)):
                return
            self._waiting.popleft()
            if ask is not None:
                self._fetching += 1
                ask(now, job)
            else:
                job.cached = job.computed = self.cached(job)
                self._prompts.append(job)
                self._wake(now)

    # ---- steps ---------------------------------------------------------------------------------

    def _wake(self, now: float) -> None:
        """There is something new for the next step; the one under way ends first."""
        if self._segment is None:
            self._begin(now)
            return
        segment = self._segment
        passed = steps_until(now - segment.began, segment.first_s, segment.growth_s)
        if passed < segment.count:
            segment.count = passed
            self._schedule()

    def _begin(self, now: float) -> None:
        joining, self._arrived = self._arrived, []
        for job in joining:
            self._join(job, self._steps + job.recorded.output)
        batch, prompts = len(self._ends), self._chunks()
        if not batch and not prompts:
            self._segment = None
            return
        rows = sum(count for _, count in prompts)
        pairs = sum(pairs_between(j.computed, j.computed + count) for j, count in prompts)
        first_s = self.machine.step_s(batch + rows, pairs, self._context)
        count = 1 if prompts else self._ends[0][0] - self._steps
        self._segment = _Segment(now, count, first_s, batch * self.machine.read_s, prompts)
        self._meter.observe_step(
            first_s,
            prompt_rows=rows,
            prompt_pairs=pairs,
            decode_rows=batch,
            decode_pairs=self._context,
        )
        for job in joining:
            self.clock.at(now + first_s, partial(self._tell_first, job))
        self._schedule()

    def _chunks(self) -> list[tuple[Job, int]]:
        budget, chunks = self.machine.home_chunk_tokens - len(self._ends), []
        for job in self._prompts:
            if budget <= 0:
                break
            rows = min(budget, job.prompt - job.computed)
            chunks.append((job, rows))
            budget -= rows
        return chunks

    def _schedule(self) -> None:
        assert self._segment is not None
        self._version += 1
        self.clock.at(max(self.clock.now, self._segment.ends), partial(self._end, self._version))

    def _end(self, version: int, now: float) -> None:
        if version != self._version:
            return  # it was cut short
        segment, self._segment = self._segment, None
        assert segment is not None
        self._steps += segment.count
        self._context += segment.count * len(self._ends)
        for job, rows in segment.prompts:
            self._advance(now, job, rows)
        while self._ends and self._ends[0][0] <= self._steps:
            self._leave(now, heapq.heappop(self._ends)[2])
        self._admit(now)
        if self._segment is None:  # nobody who was admitted began one
            self._begin(now)

    def _advance(self, now: float, job: Job, rows: int) -> None:
        job.computed += rows
        if job.computed < job.prompt:
            return
        assert self._prompts[0] is job, "prompts are computed in order"
        self._prompts.popleft()
        self.cache.commit(job.recorded.blocks)
        job.computed_by = self.view.worker_id
        job.prompt_done(now, job)
        self._tell_first(job, now)
        self._join(job, self._steps + job.recorded.output - 1)  # the first one was just drawn

    def _tell_first(self, job: Job, now: float) -> None:
        job.first_at = now
        self.started(now, job)

    def _join(self, job: Job, last_step: int) -> None:
        self._context += job.prompt
        heapq.heappush(self._ends, (last_step, job.number, job))

    def _leave(self, now: float, job: Job) -> None:
        steps = job.recorded.output - (1 if job.computed_by == self.view.worker_id else 0)
        self._context -= job.prompt + steps
        self.cache.give(job.recorded.blocks, _answer_blocks(job))
        job.finished_at = now
        self.ended(now, job)


def _answer_blocks(job: Job) -> int:
    whole = -(-(job.prompt + job.recorded.output) // BLOCK_TOKENS)
    return whole - len(job.recorded.blocks)

"""A simulated prefill worker: prompts one after the other, in chunks, and an LRU prefix cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from bench.replay_cache import BlockCache
from bench.replay_clock import Clock
from bench.replay_timing import Machine
from bench.replay_trace import Recorded, hit_tokens
from transport.pace import pairs_between
from transport.registry import WorkerView
from triptych.obs.pace import PaceMeter

_RAMP = 4  # sizes of steps that a worker warms up with, and so has measured


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way."""

    recorded: Recorded
    arrived: float
    number: int
    prompt_done: Callable[[float, Job], None] = lambda now, job: None
    lent: int = 0  # tokens of the prompt that the home had when it asked for the others
    likely_cached: int = 0  # tokens, when it was queued
    cached: int = 0  # tokens, where the prompt was computed
    computed: int = 0  # tokens of the prompt, of those at home
    computed_by: str = ""
    first_at: float = -1.0
    finished_at: float = -1.0

    @property
    def prompt(self) -> int:
        return self.recorded.prompt


@dataclass(slots=True)
class _Work:
    """Of prompts, as was likely when they came."""

    jobs: int = 0
    tokens: int = 0
    pairs: float = 0.0
    seconds: float = 0.0

    def add(self, machine: Machine, job: Job, sign: int = 1) -> None:
        self.jobs += sign
        self.tokens += sign * (job.prompt - job.likely_cached)
        self.pairs += sign * pairs_between(job.likely_cached, job.prompt)
        self.seconds += sign * machine.prompt_s(job.prompt, job.likely_cached)


@dataclass(slots=True)
class PrefillWorker:
    view: WorkerView
    clock: Clock
    machine: Machine
    cache: BlockCache
    busy_s: float = 0.0  # computing
    _queue: deque[Job] = field(default_factory=deque)
    _left: _Work = field(default_factory=_Work)  # of what is queued, or waits for its home's KV
    _current: Job | None = None
    _began: float = 0.0
    _ends: float = 0.0
    _meter: PaceMeter = field(init=False)

    def __post_init__(self) -> None:
        self._meter = warm_meter(self.machine, self.machine.chunk_tokens)

    def submit(self, now: float, job: Job) -> None:
        """What the home has of the prompt and this worker has not is fetched first, if that is
        sooner than computing it: prefill_worker/intake.py.
        """
        here = self._cached(job)
        self.cache.touch(job.recorded.blocks)
        fetch_s = self.machine.fetch_s(max(0, job.lent - here))
        if fetch_s >= self.machine.prompt_s(max(job.lent, here), here):
            job.lent = fetch_s = 0
        job.likely_cached = max(job.lent, here)
        self._left.add(self.machine, job)
        if fetch_s:
            self.clock.at(now + fetch_s, partial(self._enqueue, job))
        else:
            self._enqueue(job, now)

    def _enqueue(self, job: Job, now: float) -> None:
        self._queue.append(job)
        if self._current is None:
            self._start(now)

    def give(self, job: Job) -> None:
        """The home has fetched everything: the lease ends."""
        self.cache.give(job.recorded.blocks)

    def left_s(self, now: float) -> float:
        """Of work that is queued or under way."""
        current_s = 0.0 if self._current is None else max(0.0, self._ends - now)
        return max(0.0, self._left.seconds) + current_s

    def report(self, now: float) -> WorkerView:
        tokens, pairs = self._left.tokens, self._left.pairs
        if (job := self._current) is not None:
            part = (now - self._began) / (self._ends - self._began)
            at = job.cached + int(part * (job.prompt - job.cached))
            tokens += job.prompt - at
            pairs += pairs_between(at, job.prompt)
        self.view = replace(
            self.view,
            running=int(self._current is not None),
            waiting=self._left.jobs,
            queued_tokens=tokens,
            queued_pairs=pairs,
            free_blocks=self.cache.capacity - self.cache.used,
            pace=self._meter.pace(
                chunk_tokens=self.machine.chunk_tokens, token_bytes=self.machine.token_bytes
            ),
            reported_at=now,
        )
        return self.view

    def _start(self, now: float) -> None:
        if not self._queue:
            return
        job = self._queue.popleft()
        self._left.add(self.machine, job, -1)
        job.cached = max(job.lent, self._cached(job))
        room = self.cache.take(job.recorded.blocks)
        assert room, f"{self.view.worker_id}: leases of earlier prompts outlive them for so long?"
        seconds = self.machine.prompt_s(job.prompt, job.cached)
        self.busy_s += seconds
        self._current, self._began, self._ends = job, now, now + seconds
        self.clock.at(self._ends, self._finish)

    def _finish(self, now: float) -> None:
        job, self._current = self._current, None
        assert job is not None
        self.cache.commit(job.recorded.blocks)
        job.computed_by = self.view.worker_id
        job.prompt_done(now, job)
        self._start(now)

    def _cached(self, job: Job) -> int:
        return hit_tokens(job.recorded, self.cache.count_cached(job.recorded.blocks))


def warm_meter(machine: Machine, chunk_tokens: int) -> PaceMeter:
    """As if steps of several sizes had been measured."""
    meter = PaceMeter()
    meter.observe_fetch(machine.link_bytes_s, 1.0)
    for part in range(1, _RAMP + 1):
        for start in (0, 4, 16):
            rows = chunk_tokens * part // _RAMP
            pairs = pairs_between(start * rows, (start + 1) * rows)
            meter.observe_step(machine.step_s(rows, pairs), prompt_rows=rows, prompt_pairs=pairs)
            batch, context = 4 * part, 4 * part * 512 * (1 + start)
            seconds = machine.step_s(batch, context=context)
            meter.observe_step(seconds, decode_rows=batch, decode_pairs=context)
    return meter

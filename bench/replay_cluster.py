"""A router and its workers in virtual time: the router's own placement code, simulated workers."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from bench.replay_cache import Beliefs, BlockCache
from bench.replay_clock import Clock
from bench.replay_home import Home
from bench.replay_prefill import Job, PrefillWorker
from bench.replay_timing import Machine
from bench.replay_trace import BLOCK_TOKENS, Recorded
from router.placement import Placement, PlacementPolicy, PlacementRequest, Slo
from router.placement.predict import predict_placement
from router.placement.underway import UnderWay
from transport.registry import WorkerView


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is simulated."""

    machine: Machine
    prefill: int  # workers
    decode: int
    cache_blocks: int  # of each worker's prefix cache and KV together
    slo: Slo
    report_s: float = 0.25  # between a worker's reports, as in triptych/worker/process.py
    event_s: float = 0.05  # until a cache event is known at the router
    rpc_s: float = 0.001  # router to home, home to prefill worker


@dataclass(slots=True)
class Outcome:
    """What became of a trace under a policy."""

    jobs: list[Job]
    refused: list[Job]
    too_long: list[Job]  # for any worker's memory
    busy_s: list[float]  # of each prefill worker
    most_used: int  # blocks held at once, of the worker that came nearest to its capacity
    queues: list[list[float]]  # at every report: seconds of work left, of each prefill worker

    @property
    def hit_ratio(self) -> float:
        """Prompt tokens that nobody had to compute."""
        total = sum(job.prompt for job in self.jobs)
        return sum(job.cached for job in self.jobs) / max(1, total)

    @property
    def max_over_mean(self) -> float:
        mean = sum(self.busy_s) / max(1, len(self.busy_s))
        return max(self.busy_s, default=0.0) / mean if mean else 1.0


class Simulation:
    """One policy on one trace. Nothing is random: the same input gives the same outcome."""

    def __init__(
        self, cluster: Cluster, policy: PlacementPolicy, *, refuse_late: bool = False
    ) -> None:
        self._cluster, self._policy, self._refuse_late = cluster, policy, refuse_late
        self._clock = Clock()
        self._under_way = UnderWay()
        self._open: dict[int, contextlib.ExitStack] = {}  # by job's number, until its end
        self._prefilling: dict[int, contextlib.ExitStack] = {}  # until its first token
        ids = [f"prefill-{n}" for n in range(cluster.prefill)]
        ids += [f"decode-{n}" for n in range(cluster.decode)]
        self._beliefs = Beliefs(ids)
        self._numbers = {worker_id: number for number, worker_id in enumerate(ids)}
        self._pool = {i: self._prefill_worker(i) for i in ids[: cluster.prefill]}
        self._homes = {i: self._home(i) for i in ids[cluster.prefill :]}
        self._views: dict[str, WorkerView] = {}
        self._left = 0  # requests without an end
        self._jobs: list[Job] = []
        self._refused: list[Job] = []
        self._too_long: list[Job] = []
        self._most_used = 0
        self._queues: list[list[float]] = []

    def run(self, trace: Sequence[Recorded]) -> Outcome:
        self._left = len(trace)
        self._report(0.0)
        for number, recorded in enumerate(trace):
            job = Job(recorded, recorded.at, number, self._prompt_done)
            self._clock.at(recorded.at, partial(self._place, job))
        self._clock.run()
        assert self._left == 0, f"{self._left} requests never ended"
        return Outcome(
            self._jobs,
            self._refused,
            self._too_long,
            [worker.busy_s for worker in self._pool.values()],
            self._most_used,
            self._queues,
        )

    # ---- the router ----------------------------------------------------------------------------

    def _place(self, job: Job, now: float) -> None:
        recorded = job.recorded
        if -(-(recorded.prompt + recorded.output) // BLOCK_TOKENS) > self._cluster.cache_blocks:
            self._end(self._too_long, job)
            return
        request = PlacementRequest(
            model="simulated",
            turn=job.number,
            choices=self._under_way.choices,
            prefilling=self._under_way.prefilling,
            prompt_tokens=recorded.prompt,
            cached=self._beliefs.hits(recorded.blocks),
            told=self._beliefs.told(recorded.blocks),
            now=now,
            sent=self._under_way.sent,
            slo=self._cluster.slo,
        )
        views = list(self._views.values())
        placement = self._policy(request, views)
        if self._refuse_late:
            seen = predict_placement(request, placement, views)
            if seen.ttft_s > self._cluster.slo.ttft_s:
                self._end(self._refused, job)
                return
        self._send(now, job, request, placement)

    def _send(self, now: float, job: Job, request: PlacementRequest, placement: Placement) -> None:
        home = self._homes[placement.decode.worker_id]
        self._open[job.number], self._prefilling[job.number] = (
            contextlib.ExitStack(),
            contextlib.ExitStack(),
        )
        self._open[job.number].enter_context(self._under_way.visit(home.view.worker_id, 1))
        self._prefilling[job.number].enter_context(self._under_way.prefill(placement, request))
        ask = None
        expecting = {placement.decode.worker_id, placement.computing.worker_id}
        self._prefilling[job.number].enter_context(self._expect(expecting, job.recorded.blocks))
        if placement.prefill is not None:
            ask = partial(self._ask, self._pool[placement.prefill.worker_id], home)
        self._clock.at(now + self._cluster.rpc_s, lambda then: home.submit(then, job, ask))

    @contextlib.contextmanager
    def _expect(self, worker_ids: Collection[str], blocks: Sequence[int]) -> Iterator[None]:
        """Until the prompt is computed, and events of that are here."""
        numbers = [self._numbers[worker_id] for worker_id in worker_ids]
        for number in numbers:
            self._beliefs.expect(number, blocks)
        yield
        heard_at = self._clock.now + self._cluster.event_s
        self._clock.at(heard_at, partial(self._expect_no_more, numbers, blocks))

    def _expect_no_more(self, numbers: Sequence[int], blocks: Sequence[int], now: float) -> None:
        for number in numbers:
            self._beliefs.expect_no_more(number, blocks)

    def _hear(self, worker_id: str, stored: Sequence[int], evicted: Sequence[int]) -> None:
        number = self._numbers[worker_id]
        self._clock.at(
            self._clock.now + self._cluster.event_s,
            lambda now: self._beliefs.hear(number, stored, evicted),
        )

    def _report(self, now: float) -> None:
        for worker_id, worker in (self._pool | self._homes).items():
            self._views[worker_id] = worker.report(now)
            assert worker.cache.filled <= worker.cache.capacity, f"{worker_id} holds too much"
            self._most_used = max(self._most_used, worker.cache.used)
        self._queues.append([worker.left_s(now) for worker in self._pool.values()])
        if self._left:
            self._clock.at(now + self._cluster.report_s, self._report)

    # ---- what happens to a request -------------------------------------------------------------

    def _ask(self, worker: PrefillWorker, home: Home, now: float, job: Job) -> None:
        def done(then: float, job: Job) -> None:
            delay_s = self._transfer_s(home, job)
            self._clock.at(then + delay_s, partial(self._deliver, worker, home, job))

        job.prompt_done = done
        self._clock.at(now + self._cluster.rpc_s, lambda then: worker.submit(then, job))

    def _deliver(self, worker: PrefillWorker, home: Home, job: Job, now: float) -> None:
        worker.give(job)
        home.arrive(now, job)

    def _transfer_s(self, home: Home, job: Job) -> float:
        """Of what the link could not take while chunks were computed; the last chunk at least."""
        machine = self._cluster.machine
        missing = job.prompt - home.cached(job)
        rest_s = machine.fetch_s(missing) - machine.prompt_s(job.prompt, job.cached)
        return max(machine.fetch_s(min(missing, machine.chunk_tokens)), rest_s)

    def _prompt_done(self, now: float, job: Job) -> None:
        """Of a prompt that its home computed: nothing has to be fetched."""

    def _first_token(self, now: float, job: Job) -> None:
        self._prefilling.pop(job.number).close()

    def _finish(self, now: float, job: Job) -> None:
        self._open.pop(job.number).close()
        self._end(self._jobs, job)

    def _end(self, those: list[Job], job: Job) -> None:
        those.append(job)
        self._left -= 1

    # ---- workers -------------------------------------------------------------------------------

    def _prefill_worker(self, worker_id: str) -> PrefillWorker:
        view, cache = self._view(worker_id, "prefill"), self._cache(worker_id)
        return PrefillWorker(view, self._clock, self._cluster.machine, cache)

    def _home(self, worker_id: str) -> Home:
        return Home(
            self._view(worker_id, "decode"),
            self._clock,
            self._cluster.machine,
            self._cache(worker_id),
            ended=self._finish,
            started=self._first_token,
        )

    def _cache(self, worker_id: str) -> BlockCache:
        return BlockCache(self._cluster.cache_blocks, partial(self._hear, worker_id))

    def _view(self, worker_id: str, role: str) -> WorkerView:
        return WorkerView(
            worker_id=worker_id,
            epoch=1,
            role=role,
            address="",
            model="simulated",
            max_model_len=1 << 30,
            block_tokens=BLOCK_TOKENS,
            num_blocks=self._cluster.cache_blocks,
            metrics_address="",
        )

"""A cluster in made-up time: workers that batch continuously, behind the real admission gate.

The gate, fair queue, limits, predictor and room are the router's own; only steps are made up: a
step takes `fixed + per_row * rows`, where a running sequence has one row and waiting prompts fill
the rest of the chunk in order of arrival.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from router.admission.ask import Ask, Turned
from router.admission.gate import Gate, Ticket
from router.admission.predictor import MeasuredTtft
from router.admission.room import Load, Room, WorkerLimits, room_of
from router.admission.tempo import TempoLimit
from transport.pace import Pace, StepCost
from transport.registry import WorkerView
from triptych.admission_config import AdmissionConfig, SloConfig, TenantConfig
from triptych.config import ClusterConfig, EngineConfig, RouterConfig

FIXED_S, ROW_S = 0.012, 0.00006  # of a step
CHUNK_TOKENS, MAX_RUNNING = 512, 64
KV_TOKENS, BLOCK_TOKENS = 200_000, 32
REPORT_S = 0.25
MAX_ATTEMPTS = 20


@dataclass(slots=True, eq=False)
class Request:
    """One request, and what became of it. Times are simulated seconds."""

    tenant: str
    arrived: float
    prompt_tokens: int
    answer_tokens: int
    done_tokens: int = 0  # of the prompt
    said: int = 0  # of the answer
    first_at: float | None = None
    ended_at: float | None = None
    turned: str | None = None  # why it was turned away
    went_at: float | None = None
    ticket: Ticket | None = None
    attempts: int = 1

    def good(self, ttft_s: float, itl_s: float) -> bool:
        if self.first_at is None or self.ended_at is None:
            return False
        pace = (self.ended_at - self.first_at) / max(1, self.answer_tokens - 1)
        return self.first_at - self.arrived <= ttft_s and pace <= itl_s

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens


class Clock:
    """Events in order of time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), do))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, do = heapq.heappop(self._events)
            do()


@dataclass(slots=True, eq=False)
class Worker:
    """A home that prefills for itself."""

    name: str
    clock: Clock
    tell: Callable[[Request, str], None]  # "first" token, "token" or "end"
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    busy: bool = False
    kv_tokens: int = KV_TOKENS  # free
    slowness: Callable[[float], float] = lambda now: 1.0  # of a step that begins then

    def add(self, request: Request) -> None:
        self.waiting.append(request)
        if not self.busy:
            self._step()

    def view(self) -> WorkerView:
        queued = sum(r.prompt_tokens - r.done_tokens for r in (*self.running, *self.waiting))
        return WorkerView(
            self.name, 1, "decode", "", "m", 32768, BLOCK_TOKENS, KV_TOKENS // BLOCK_TOKENS, "",
            running=len(self.running), waiting=len(self.waiting), queued_tokens=queued,
            free_blocks=self.kv_tokens // BLOCK_TOKENS,
            pace=Pace(prefill=StepCost(FIXED_S, ROW_S, 0.0), chunk_tokens=CHUNK_TOKENS),
        )  # fmt: skip

    def _step(self) -> None:
        while self.waiting and len(self.running) < MAX_RUNNING:
            if self.waiting[0].tokens > self.kv_tokens:
                break
            self.kv_tokens -= self.waiting[0].tokens
            self.running.append(self.waiting.popleft())
        saying = [r for r in self.running if r.first_at is not None]
        rows = len(saying)
        for request in self.running:
            if request.done_tokens < request.prompt_tokens:
                part = min(request.prompt_tokens - request.done_tokens, CHUNK_TOKENS - rows)
                request.done_tokens += part
                rows += part
                if request.done_tokens == request.prompt_tokens:
                    saying.append(request)
        self.busy = rows > 0
        if self.busy:
            took_s = (FIXED_S + ROW_S * rows) * self.slowness(self.clock.now)
            self.clock.at(self.clock.now + took_s, lambda: self._end(saying))

    def _end(self, saying: Sequence[Request]) -> None:
        for request in saying:
            request.said += 1
            if request.first_at is None:
                request.first_at = self.clock.now
                self.tell(request, "first")
            else:
                self.tell(request, "token")
            if request.said == request.answer_tokens:
                request.ended_at = self.clock.now
                self.running.remove(request)
                self.kv_tokens += request.tokens
                self.tell(request, "end")
        self._step()


class Cluster:
    """Workers, and a router with or without admission."""

    def __init__(
        self,
        workers: int,
        tenants: Sequence[TenantConfig],
        slo: tuple[float, float] | None,
        *,
        slowness: Callable[[float], float] = lambda now: 1.0,
        retry_s: float | None = None,  # until who was turned away asks again; None: never
    ) -> None:
        self.clock = Clock()
        self._retry_s = retry_s
        self.workers = [
            Worker(f"decode-{i}", self.clock, self._told, slowness=slowness) for i in range(workers)
        ]
        self._reports = [worker.view() for worker in self.workers]
        self._waiting: dict[Ticket, Request] = {}
        self._tempo = TempoLimit(slo[1] if slo else None)
        self._tokens, self._token_s = 0, 0.0
        self._told_at: dict[Request, float] = {}
        self.peak_queued = self.peak_waiting = 0
        ttft_s, itl_s = slo or (None, None)
        objectives = SloConfig(ttft_ms=ttft_s and 1000 * ttft_s, itl_ms=itl_s and 1000 * itl_s)
        limits = WorkerLimits.of(
            ClusterConfig(
                engine=EngineConfig(chunk_tokens=CHUNK_TOKENS, max_running=MAX_RUNNING),
                router=RouterConfig(slo=objectives),
            )
        )

        def room(ours: Load) -> Room | None:
            self._tempo.look(self._tokens, self._token_s, ours.sequences, self.clock.now)
            found = room_of("m", self._reports, limits, ours)
            return found and found.limited(self._tempo.sequences)

        self.gate = (
            Gate(
                tenants,
                AdmissionConfig(),
                MeasuredTtft(),
                room,
                largest_prefill=limits.prefill_tokens,
                ttft_s=slo[0],
            )
            if slo
            else None
        )

    def run(self, requests: Sequence[Request], until: float) -> None:
        for request in requests:
            self.clock.at(request.arrived, lambda request=request: self._arrive(request))
        self._look()
        self.clock.run(until)

    def _arrive(self, request: Request) -> None:
        if self.gate is None:
            self._go(request)
            return
        ask = Ask(request.tenant, request.prompt_tokens, 4096, 1, self.clock.now)
        ticket = self.gate.offer(ask, self.clock.now)
        if isinstance(ticket, Turned):
            self._turn(request, ticket)
            return
        request.ticket = ticket
        if ticket.state == "running":
            self._go(request)
        else:
            self._waiting[ticket] = request
            self.peak_queued = max(self.peak_queued, self.gate.num_queued)

    def _go(self, request: Request) -> None:
        request.went_at = self.clock.now
        home = min(self.workers, key=lambda worker: len(worker.running) + len(worker.waiting))
        home.add(request)
        self.peak_waiting = max(self.peak_waiting, sum(len(w.waiting) for w in self.workers))

    def _told(self, request: Request, what: str) -> None:
        now = self.clock.now
        if what == "token":
            self._tokens += 1
            self._token_s += now - self._told_at[request]
        self._told_at[request] = now
        if self.gate is None or request.ticket is None or what == "token":
            return
        if what == "first":
            self.gate.first_word(request.ticket, request.prompt_tokens, now)
        else:
            spent = (request.prompt_tokens, request.answer_tokens)
            self.gate.leave(request.ticket, now, spent)
            del self._told_at[request]
        self._take()

    def _take(self) -> None:
        assert self.gate is not None
        going, lost = self.gate.take(self.clock.now)
        for ticket in going:
            self._go(self._waiting.pop(ticket))
        for ticket, turned in lost:
            self._turn(self._waiting.pop(ticket), turned)

    def _turn(self, request: Request, turned: Turned) -> None:
        request.turned = turned.reason
        if self._retry_s is not None and request.attempts < MAX_ATTEMPTS:
            self.clock.at(self.clock.now + self._retry_s, lambda: self._ask_again(request))

    def _ask_again(self, request: Request) -> None:
        """A new request, as far as the router can see."""
        request.turned, request.arrived = None, self.clock.now
        request.attempts += 1
        self._arrive(request)

    def _look(self) -> None:
        self._reports = [worker.view() for worker in self.workers]
        if self.gate is not None:
            self._take()
        self.clock.at(self.clock.now + REPORT_S, self._look)

"""Admission at work: the gate with a clock, the requests that wait for it, and what is counted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from router.admission.ask import Ask, Turned
from router.admission.door import Door
from router.admission.gate import Gate, Ticket
from router.admission.metrics import AdmissionMetrics
from router.admission.predictor import MeasuredTtft, TtftPredictor
from router.admission.room import Load, Room, WorkerLimits, room_of
from router.admission.tempo import TempoLimit
from router.admission.tenants import Tenants
from router.metrics import RouterMetrics
from transport.registry import WorkerView
from triptych.config import ClusterConfig
from triptych.errors import CapacityError

_LOOK_S = 0.05  # while somebody waits: workers report that others' requests ended
_TELL_S = 1.0  # between lines about requests that were turned away unread
_ROOM_S = 0.01  # for which the room is not looked up again: a burst of requests costs less

_log = logging.getLogger(__name__)


class Seat:
    """A request's admission. Whoever holds it tells what becomes of the request."""

    def __init__(self, gate: Gate, ticket: Ticket, look: Callable[[], None]) -> None:
        self._gate = gate
        self._ticket = ticket
        self._look = look
        self.spent: tuple[int, int] | None = None  # prompt tokens computed, tokens generated

    def first_word(self, prompt_tokens: int) -> None:
        """One of its prompts has its first token: there is room for another one."""
        self._gate.first_word(self._ticket, prompt_tokens, time.monotonic())
        self._look()


class Admission:
    """One per router; lives on its event loop."""

    def __init__(
        self,
        config: ClusterConfig,
        workers: Callable[[], list[WorkerView]],
        metrics: RouterMetrics,
        predictor: TtftPredictor | None = None,
    ) -> None:
        """Raises ConfigError when a key file cannot be read, or holds another tenant's key."""
        slo = config.router.slo
        self.tenants = Tenants.read(config.router)
        self._workers = workers
        self._model = config.served_name
        self._limits = WorkerLimits.of(config)
        self._tokens = metrics.tokens
        self._tempo = TempoLimit(None if slo.itl_ms is None else slo.itl_ms / 1000)
        self._gate = Gate(
            list(self.tenants.by_name.values()),
            config.router.admission,
            predictor or MeasuredTtft(),
            self._room,
            largest_prefill=self._limits.prefill_tokens,
            ttft_s=None if slo.ttft_ms is None else slo.ttft_ms / 1000,
        )
        self._door = Door(self._gate)
        self._metrics = AdmissionMetrics(metrics.registry)
        self._waiting: dict[Ticket, asyncio.Future[Turned | None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._room_found: Room | None = None
        self._room_at = 0.0
        self._turned_unread = 0  # since that was last told of
        self._told_at = 0.0
        for name in self.tenants.by_name:
            self._metrics.watch_queue(name, self._gate.queued)

    def refusal(self, tenant: str, body_bytes: int) -> CapacityError | None:
        """Whether a request can be turned away whose body nobody has read: see Door."""
        now = time.monotonic()
        turned = self._door.refusal(tenant, body_bytes, now)
        if turned is None or turned.reason == "no_workers":
            return None
        self._metrics.rejected.labels(tenant, turned.reason).inc()
        self._turned_unread += 1
        if now - self._told_at > _TELL_S:  # a line for each would cost as much as the refusal
            fields = {"number": self._turned_unread, "tenant": tenant, "reason": turned.reason}
            _log.info("turned away, bodies unread", extra={"fields": fields})
            self._turned_unread, self._told_at = 0, now
        return turned.error(self.headers(tenant))

    @contextlib.asynccontextmanager
    async def admit(self, ask: Ask) -> AsyncIterator[Seat]:
        """Waits for the request's turn; it counts as under way until the block ends.

        Cancelled while it waits, the request leaves the queue at once. Raises Refusal, or
        CapacityError where there is no worker.
        """
        self._door.learn(ask)
        ticket = self._gate.offer(ask, time.monotonic())
        if isinstance(ticket, Turned):
            raise self._turned_away(ask, ticket)
        seat = Seat(self._gate, ticket, self._look)
        try:
            if ticket.state == "queued":
                await self._wait(ticket)
            self._metrics.admitted_tokens.labels(ask.tenant).inc(ticket.cost)
            yield seat
        finally:
            self._gate.leave(ticket, time.monotonic(), seat.spent)
            self._look()

    def num_queued(self) -> int:
        """Requests that wait here."""
        return self._gate.num_queued

    def headers(self, tenant: str) -> dict[str, str]:
        """What an answer tells of the tenant's limits."""
        return self._gate.headers(tenant, time.monotonic())

    async def _wait(self, ticket: Ticket) -> None:
        turn = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        if self._timer is None:  # newcomers must not put it off
            self._set_timer()
        try:
            turned = await turn
        finally:
            self._waiting.pop(ticket, None)
        if turned is not None:
            raise self._turned_away(ticket.ask, turned)
        wait_s = ticket.went_at - ticket.ask.arrived
        self._metrics.queue_wait.labels(ticket.ask.tenant).observe(wait_s)

    def _look_again(self) -> None:
        self._timer = None
        self._look()

    def _look(self) -> None:
        """Lets those go who may, or who wait in vain."""
        if not self._waiting:
            return
        going, lost = self._gate.take(time.monotonic())
        for ticket in going:
            self._tell(ticket, None)
        for ticket, turned in lost:
            self._tell(ticket, turned)
        self._set_timer()

    def _tell(self, ticket: Ticket, turned: Turned | None) -> None:
        turn = self._waiting.pop(ticket, None)
        if turn is not None and not turn.done():  # else its task is being cancelled
            turn.set_result(turned)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            until = self._gate.next_loss - time.monotonic()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(_LOOK_S, max(0.0, until)), self._look_again)

    def _room(self, ours: Load) -> Room | None:
        now = time.monotonic()
        if self._room_found is None or now - self._room_at > _ROOM_S:
            self._tempo.look(*self._tokens.spent, running=ours.sequences, now=now)
            room = room_of(self._model, self._workers(), self._limits, ours)
            self._room_found = room and room.limited(self._tempo.sequences)
            self._room_at = now
        return self._room_found

    def _turned_away(self, ask: Ask, turned: Turned) -> CapacityError:
        self._metrics.rejected.labels(ask.tenant, turned.reason).inc()
        fields = {
            "tenant": ask.tenant,
            "reason": turned.reason,
            "prompt_tokens": ask.prompt_tokens,
            "retry_after_s": round(turned.retry_after_s, 2),
        }
        _log.info("turned away", extra={"fields": fields})
        return turned.error(self.headers(ask.tenant))

"""Which requests go to the workers now, which wait, and which are turned away.

The whole decision, as a state machine without a clock, a task or a socket: the router and the
simulator drive the same one. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from router.admission.answers import Answers
from router.admission.ask import Ask, Reason, Turned
from router.admission.fair_queue import FairQueue
from router.admission.limits import TenantLimits
from router.admission.predictor import TtftPredictor
from router.admission.room import Load, RecentLoad, Room
from triptych.admission_config import AdmissionConfig, TenantConfig

RoomNow = Callable[[Load], Room | None]  # for what this router has had under way of late

_NO_WORKERS = Turned("no_workers", "no decode worker is attached; try again later", 1.0)
_FULL_S = 1.0  # to come back after, as long as nothing is measured
# Of what can be computed within the objective, what workers may have. The rest waits here: were
# all of it there, nobody would ever queue, and whoever comes first would be served, not who has
# less than its share.
_AT_WORKERS = 0.5


@dataclass(slots=True, eq=False)
class Ticket:
    """One request from `offer` to `leave`."""

    ask: Ask
    cost: float  # tokens, as charged to its tenant
    prefill: float  # prompt tokens that somebody still has to compute
    patience_s: float  # from its arrival to its first token
    state: Literal["queued", "running", "gone"] = "queued"
    went_at: float = 0.0  # to the workers
    went_behind: float = 0.0  # prompt tokens under way then, its own included
    per_prompt_token: float = 1.0  # of `prefill`
    answered: bool = False  # it has a first token

    @property
    def lost_at(self) -> float:
        """From then on its first token cannot be in time."""
        return self.ask.arrived + self.patience_s


class Gate:
    def __init__(
        self,
        tenants: Sequence[TenantConfig],
        config: AdmissionConfig,
        predictor: TtftPredictor,
        room: RoomNow,
        *,
        largest_prefill: float = math.inf,  # that one worker may have under way
        ttft_s: float | None = None,
    ) -> None:
        self._config = config
        self._predictor = predictor
        self._room = room
        self._largest_prefill = largest_prefill
        self._ttft_s = math.inf if ttft_s is None else ttft_s
        self._limits = {tenant.name: TenantLimits(tenant) for tenant in tenants}
        weights = {tenant.name: tenant.weight for tenant in tenants}
        self._shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        self._queue: FairQueue[Ticket] = FairQueue(weights, config.aging_s)
        self._answers = Answers()
        self._recent = RecentLoad()
        self._prefill = 0.0  # prompt tokens under way
        self._pressing = 0.0
        self._sequences = 0
        self._queued_prompts: Counter[str] = Counter()  # tokens by tenant
        self._next_loss = math.inf  # no queued ticket is lost earlier
        self._drained_at: float | None = None  # since then somebody has waited without a break
        self._went = 0.0  # cost, since then

    @property
    def load(self) -> Load:
        return Load(self._prefill, self._sequences, self._pressing)

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def next_loss(self) -> float:
        """When `take` will have somebody to turn away, at the earliest."""
        return self._next_loss

    def queued(self, tenant: str) -> tuple[int, float]:
        """Requests of a tenant that wait, and what they would cost."""
        return self._queue.queued(tenant)

    def headers(self, tenant: str, now: float) -> dict[str, str]:
        return self._limits[tenant].headers(now)

    def offer(self, ask: Ask, now: float) -> Ticket | Turned:
        """A new request: a ticket that runs or is queued, or a refusal."""
        ticket = self._ticket(ask)
        turned = self._refusal(ticket, now)
        if turned is not None:
            return turned
        self._limits[ask.tenant].enter(ticket.cost, now)
        if self._goes(self._room_now(now)):
            self._queue.charge(ask.tenant, ticket.cost)
            self._start(ticket, now)
        else:
            self._wait(ticket, now)
        return ticket

    def refusal(self, ask: Ask, now: float) -> Turned | None:
        """What `offer` would refuse it with; nothing is noted of the request."""
        return self._refusal(self._ticket(ask), now)

    def take(self, now: float) -> tuple[list[Ticket], list[tuple[Ticket, Turned]]]:
        """Who goes to the workers now, and who waited in vain. Call it whenever something ended
        or was reported, and at `next_loss`.
        """
        room = self._room_now(now)
        if room is None:
            lost = [(ticket, _NO_WORKERS) for ticket in self._queue]
        else:
            lost = self._lost(now)
        for ticket, _ in lost:
            self.leave(ticket, now)
        going: list[Ticket] = []
        while self._queue and room is not None and room.takes_more(self.load):
            ticket = self._queue.head()
            if self.load.sequences and self._seconds(0.0, ticket, now) > ticket.lost_at - now:
                self.leave(ticket, now)
                lost.append((ticket, self._missed(ticket, now)))
                continue
            self._queue.pop()
            self._queued_prompts[ticket.ask.tenant] -= ticket.ask.prompt_tokens
            self._start(ticket, now)
            going.append(ticket)
        self._note_drain(now)
        return going, lost

    def first_word(self, ticket: Ticket, prompt_tokens: int, now: float) -> None:
        """One of its prompts, of so many tokens, has its first token."""
        if ticket.state != "running":
            return
        if not ticket.answered:
            ticket.answered = True
            self._predictor.answered(ticket.went_behind, now - ticket.went_at, now)
        self._computed(ticket, min(ticket.prefill, prompt_tokens * ticket.per_prompt_token))

    def leave(self, ticket: Ticket, now: float, spent: tuple[int, int] | None = None) -> None:
        """It ended, or is not wanted any more. Idempotent. `spent`: prompt tokens computed and
        tokens generated, if it ran to its end.
        """
        if ticket.state == "gone":
            return
        used = 0.0
        if ticket.state == "queued":
            self._queue.remove(ticket)
            self._queued_prompts[ticket.ask.tenant] -= ticket.ask.prompt_tokens
            self._note_drain(now)
        else:
            self._computed(ticket, ticket.prefill)
            self._sequences -= ticket.ask.sequences
            used = ticket.cost
            if spent is not None:
                used = float(sum(spent))
                self._answers.learn(ticket.ask, *spent)
            self._queue.settle(ticket.ask.tenant, used - ticket.cost)
        ticket.state = "gone"
        lived_s = now - ticket.ask.arrived
        self._limits[ticket.ask.tenant].leave(used - ticket.cost, lived_s, now)

    # ---- helpers -------------------------------------------------------------------------------

    def _ticket(self, ask: Ask) -> Ticket:
        share = self._answers.computed_share
        return Ticket(
            ask,
            cost=share * ask.prompt_tokens + self._answers.expected(ask) * ask.sequences,
            prefill=share * ask.prompt_tokens,
            patience_s=min(self._ttft_s, ask.deadline - ask.arrived),
            per_prompt_token=share,
        )

    def _refusal(self, ticket: Ticket, now: float) -> Turned | None:
        room = self._room_now(now)
        if room is None:
            return _NO_WORKERS
        return (
            self._limits[ticket.ask.tenant].check(ticket.cost, now)
            or self._too_late(ticket, now)
            or (None if self._goes(room) else self._too_many(ticket, now))
        )

    def _room_now(self, now: float) -> Room | None:
        room = self._room(self._recent.peak(self.load, now))
        if room is None:
            return None
        self._predictor.paced(room.pace)
        prefill = self._predictor.prefill_within(self._ttft_s, now)
        if prefill is None:
            return room
        return room.in_time(_AT_WORKERS * prefill, _AT_WORKERS * self._ttft_s)

    def _goes(self, room: Room | None) -> bool:
        """Somebody who came now would go to the workers at once."""
        return not self._queue and room is not None and room.takes_more(self.load)

    def _start(self, ticket: Ticket, now: float) -> None:
        self._prefill += ticket.prefill
        self._pressing += self._press_of(ticket)
        self._sequences += ticket.ask.sequences
        self._went += ticket.cost
        ticket.state, ticket.went_at, ticket.went_behind = "running", now, self._prefill

    def _computed(self, ticket: Ticket, tokens: float) -> None:
        self._pressing -= self._press_of(ticket)
        ticket.prefill -= tokens
        self._prefill = max(0.0, self._prefill - tokens)
        self._pressing = max(0.0, self._pressing + self._press_of(ticket))

    def _press_of(self, ticket: Ticket) -> float:
        return min(ticket.prefill, self._largest_prefill * ticket.ask.prompts)

    def _wait(self, ticket: Ticket, now: float) -> None:
        ask = ticket.ask
        due = self._queue.due(ask.arrived, ask.priority, ask.deadline)
        self._queue.push(ticket, ask.tenant, ticket.cost, due)
        self._queued_prompts[ask.tenant] += ask.prompt_tokens
        self._next_loss = min(self._next_loss, ticket.lost_at)
        if self._drained_at is None:
            self._drained_at, self._went = now, 0.0

    def _note_drain(self, now: float) -> None:
        if self._drained_at is None:
            return
        if now > self._drained_at:
            self._predictor.drained(self._went, now - self._drained_at)
            self._drained_at, self._went = now, 0.0
        if not self._queue:
            self._drained_at = None

    def _seconds(self, queued: float, ticket: Ticket, now: float) -> float:
        """To its first token, if so much goes before it; 0: nobody knows."""
        return self._predictor.seconds(queued, self._prefill + ticket.prefill, now) or 0.0

    def _too_late(self, ticket: Ticket, now: float) -> Turned | None:
        if ticket.patience_s == math.inf:
            return None
        ask = ticket.ask
        left = ticket.lost_at - now
        if left > 0 and not self._sequences and not self._queue:
            return None  # nothing is before it: how long it takes is best found out
        due = self._queue.due(ask.arrived, ask.priority, ask.deadline)
        queued = self._queue.ahead(ask.tenant, ticket.cost, due)
        predicted = self._seconds(queued, ticket, now)
        if predicted <= left:
            return None
        return self._late(ticket, f"would come after {predicted:.2f} s", predicted - left)

    def _too_many(self, ticket: Ticket, now: float) -> Turned | None:
        """A full queue still takes tenants that have less than their share of it: one who floods
        it keeps nobody else out. So it holds twice the limits at most.
        """
        tenant = ticket.ask.tenant
        requests, tokens = len(self._queue), self._queued_prompts.total()
        if not requests or self._fill(requests, tokens + ticket.ask.prompt_tokens) <= 1:
            return None
        mine, _ = self._queue.queued(tenant)
        if self._fill(mine, self._queued_prompts[tenant]) < self._shares[tenant] < 1:
            return None
        wait_s = self._predictor.seconds(ticket.cost, 0.0, now) or _FULL_S
        message = f"the router's queue is full ({requests} requests); try again later"
        return Turned("queue_full", message, wait_s)

    def _fill(self, requests: int, prompt_tokens: int) -> float:
        """How much of the queue one more request beside so many others would take."""
        config = self._config
        return max((requests + 1) / config.max_queued, prompt_tokens / config.max_queued_tokens)

    def _lost(self, now: float) -> list[tuple[Ticket, Turned]]:
        if now < self._next_loss:
            return []
        lost = [ticket for ticket in self._queue if ticket.lost_at <= now]
        left = (ticket.lost_at for ticket in self._queue if ticket.lost_at > now)
        self._next_loss = min(left, default=math.inf)
        return [(ticket, self._missed(ticket, now)) for ticket in lost]

    def _missed(self, ticket: Ticket, now: float) -> Turned:
        retry_s = self._predictor.seconds(ticket.cost, ticket.prefill, now) or _FULL_S
        return self._late(ticket, "can no longer come in time", retry_s)

    def _late(self, ticket: Ticket, when: str, retry_after_s: float) -> Turned:
        by_slo = ticket.patience_s == self._ttft_s
        reason: Reason = "ttft_slo" if by_slo else "deadline"
        what = "router.slo.ttft_ms" if by_slo else "the request's deadline"
        message = f"overloaded: the first token {when}, and {what} leaves {ticket.patience_s:.2f} s"
        return Turned(reason, message, retry_after_s)

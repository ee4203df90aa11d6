"""Who runs, who waits and who is turned away, in made-up time."""

from __future__ import annotations

import math
from typing import Any

import pytest

from router.admission.ask import Ask, Turned
from router.admission.gate import Gate, Ticket
from router.admission.predictor import MeasuredTtft
from router.admission.room import Load, Room
from triptych.admission_config import AdmissionConfig, TenantConfig

FLOOD_AND_CALM = [TenantConfig(name=name, keys=(name,)) for name in ("flood", "calm")]


class World:
    """A gate, and a cluster that takes `room`."""

    def __init__(self, *tenants: TenantConfig, ttft_s: float | None = None, **config: Any) -> None:
        self.room: Room | None = Room(prefill=100, sequences=2, kv_tokens=math.inf)
        self.predictor = MeasuredTtft()
        self.gate = Gate(
            tenants or [TenantConfig(name="default")],
            AdmissionConfig(**config),
            self.predictor,
            self.room_now,
            ttft_s=ttft_s,
        )

    def room_now(self, ours: Load) -> Room | None:
        return self.room

    def offer(self, now: float = 0.0, **fields: Any) -> Ticket | Turned:
        given = {"tenant": "default", "prompt_tokens": 10, "max_tokens": 10, "sequences": 1}
        return self.gate.offer(Ask(**{**given, "arrived": now, **fields}), now)

    def ticket(self, now: float = 0.0, **fields: Any) -> Ticket:
        found = self.offer(now, **fields)
        assert isinstance(found, Ticket), found
        return found

    def turned(self, now: float = 0.0, **fields: Any) -> Turned:
        found = self.offer(now, **fields)
        assert isinstance(found, Turned), found
        return found

    def measure(self, fixed_s: float, per_token_s: float) -> None:
        """As if requests had taken so long."""
        for tokens in (10, 100, 1000) * 20:
            self.predictor.answered(tokens, fixed_s + per_token_s * tokens, 0.0)


def test_an_idle_cluster_takes_anything_at_once() -> None:
    assert World().ticket(prompt_tokens=10_000).state == "running"


def test_half_of_the_objective_is_for_waiting_so_that_weights_decide_who_is_late() -> None:
    heavy = TenantConfig(name="heavy", keys=("heavy",), weight=3.0)
    light = TenantConfig(name="light", keys=("light",))
    world = World(heavy, light, ttft_s=2.0)
    world.room = Room(prefill=10_000, sequences=math.inf, kv_tokens=math.inf)
    world.measure(0.0, 0.01)  # 100 tokens a second
    under_way, went = [], []
    for place in range(400):  # four times what is computed; both ask for the same
        now = 0.05 * place
        tenant = "light" if place % 2 else "heavy"
        found = world.offer(now, tenant=tenant, prompt_tokens=20)
        if isinstance(found, Ticket) and found.state == "running":
            under_way.append(found)
        going, _ = world.gate.take(now)
        under_way += going
        assert world.gate.load.prefill <= 120  # a second's, and the last one
        if place % 4 == 0:
            done = under_way.pop(0)
            world.gate.first_word(done, 20, now)
            world.gate.leave(done, now, (20, 1))
            went.append(done.ask.tenant)
    assert went[20:].count("heavy") == pytest.approx(3 * went[20:].count("light"), rel=0.2)


def test_what_there_is_no_room_for_waits_and_goes_when_something_ends() -> None:
    world = World()
    first, second, third = (world.ticket() for _ in range(3))
    assert [t.state for t in (first, second, third)] == ["running", "running", "queued"]
    assert world.gate.take(1.0) == ([], [])
    world.gate.leave(first, 1.0, (10, 10))
    assert world.gate.take(1.0) == ([third], [])


def test_prompts_under_way_take_room_until_their_first_token() -> None:
    world = World()
    first = world.ticket(prompt_tokens=150)
    second = world.ticket()
    assert second.state == "queued"
    world.gate.first_word(first, 150, 1.0)
    assert world.gate.take(1.0) == ([second], [])


def test_nothing_waits_while_there_is_room() -> None:
    world = World()
    world.room = Room(prefill=math.inf, sequences=math.inf, kv_tokens=math.inf)
    assert all(world.ticket().state == "running" for _ in range(100))


def test_who_leaves_the_queue_leaves_nothing_behind() -> None:
    world = World(TenantConfig(name="default", max_concurrent=3, tokens_per_s=1, token_burst=1000))
    running = [world.ticket(), world.ticket()]
    waiting = world.ticket()
    world.gate.leave(waiting, 0.0)
    world.gate.leave(waiting, 0.0)  # idempotent
    assert (world.gate.num_queued, world.gate.queued("default")) == (0, (0, 0.0))
    assert world.gate.headers("default", 0.0)["x-ratelimit-remaining-tokens"] == "960"
    for ticket in running:
        world.gate.leave(ticket, 0.0)
    assert world.gate.load == Load()
    assert world.ticket().state == "running"


def test_a_full_queue_turns_away_the_next_one() -> None:
    world = World(max_queued=3)
    tickets = [world.ticket() for _ in range(5)]
    assert world.turned().reason == "queue_full"
    world.gate.leave(tickets[0], 0.0)
    world.gate.take(0.0)
    assert world.ticket().state == "queued"


def test_the_queue_is_bounded_in_tokens_too_but_takes_one_request_of_any_size() -> None:
    world = World(max_queued_tokens=1000)
    world.ticket(), world.ticket()
    world.ticket(prompt_tokens=5000)
    assert world.turned(prompt_tokens=1).reason == "queue_full"


def test_a_tenant_that_fills_the_queue_keeps_nobody_else_out() -> None:
    world = World(*FLOOD_AND_CALM, max_queued=10)
    offers = [world.offer(tenant="flood") for _ in range(50)]
    assert sum(isinstance(offer, Ticket) for offer in offers) == 12  # two run
    calm = [world.offer(tenant="calm") for _ in range(50)]
    assert 4 <= sum(isinstance(offer, Ticket) for offer in calm) <= 5
    assert world.gate.num_queued <= 20


def test_without_workers_nobody_waits() -> None:
    world = World()
    world.ticket(), world.ticket()
    waiting = world.ticket()
    world.room = None
    assert world.turned().reason == "no_workers"
    [(lost, turned)] = world.gate.take(1.0)[1]
    assert (lost, turned.reason) == (waiting, "no_workers")


def test_what_cannot_have_its_first_token_in_time_is_turned_away_at_once() -> None:
    world = World(ttft_s=1.0)
    world.room = Room(prefill=2000, sequences=99, kv_tokens=math.inf)
    world.measure(0.1, 0.001)
    world.ticket(prompt_tokens=400)
    assert world.ticket(prompt_tokens=200).state == "running"
    turned = world.turned(prompt_tokens=1000)  # 0.1 s + 1.6 s
    assert turned.reason == "ttft_slo"
    assert turned.retry_after_s == pytest.approx(0.7, abs=0.05)


def test_an_idle_cluster_is_asked_again_whatever_was_measured() -> None:
    world = World(ttft_s=1.0)
    world.measure(5.0, 0.0)
    assert world.ticket().state == "running"
    assert world.turned().reason == "ttft_slo"


def test_a_callers_deadline_counts_as_the_slo_does() -> None:
    world = World()
    world.measure(0.5, 0.0)
    world.ticket()
    assert world.turned(deadline=0.4).reason == "deadline"
    assert world.ticket(deadline=0.6).state == "running"


def test_who_waited_in_vain_is_told_when_it_is_certain() -> None:
    world = World(ttft_s=1.0)
    world.ticket(), world.ticket()
    waiting = world.ticket(0.2)
    assert world.gate.next_loss == pytest.approx(1.2)
    assert world.gate.take(1.1) == ([], [])
    [(lost, turned)] = world.gate.take(1.2)[1]
    assert (lost, turned.reason) == (waiting, "ttft_slo")


def test_a_turn_that_comes_too_late_is_not_computed() -> None:
    world = World(ttft_s=1.0)
    first, *_ = (world.ticket() for _ in range(3))
    world.measure(0.5, 0.0)
    world.gate.leave(first, 0.7, (10, 10))
    going, lost = world.gate.take(0.7)
    assert (going, [turned.reason for _, turned in lost]) == ([], ["ttft_slo"])


def test_a_flood_of_one_tenant_is_turned_away_and_another_tenant_is_not() -> None:
    world = World(*FLOOD_AND_CALM, ttft_s=1.0)
    world.measure(0.1, 0.001)
    world.predictor.drained(1000.0, 1.0)
    offers = [world.offer(tenant="flood", prompt_tokens=100) for _ in range(30)]
    assert isinstance(offers[-1], Turned)
    assert world.ticket(tenant="calm", prompt_tokens=100).state == "queued"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"requests_per_s": 0.5, "request_burst": 1}, "requests_per_s"),
        ({"tokens_per_s": 10, "token_burst": 20}, "tokens_per_s"),
        ({"max_concurrent": 1}, "max_concurrent"),
    ],
)
def test_a_tenants_limits_are_named(limits: dict[str, Any], reason: str) -> None:
    world = World(TenantConfig(name="default", **limits))
    world.ticket()
    turned = world.turned()
    assert turned.reason == reason
    assert turned.retry_after_s > 0


def test_the_token_limit_is_settled_when_the_answer_is_known() -> None:
    world = World(TenantConfig(name="default", tokens_per_s=1, token_burst=100))
    ticket = world.ticket(max_tokens=50)
    assert world.gate.headers("default", 0.0)["x-ratelimit-remaining-tokens"] == "40"
    world.gate.leave(ticket, 0.0, (10, 5))
    assert world.gate.headers("default", 0.0)["x-ratelimit-remaining-tokens"] == "85"


def test_cached_prompts_come_to_weigh_what_is_computed_of_them() -> None:
    world = World()
    for _ in range(100):
        world.gate.leave(world.ticket(prompt_tokens=1000), 0.0, (100, 10))
    assert world.ticket(prompt_tokens=1000).prefill == pytest.approx(100, rel=0.05)

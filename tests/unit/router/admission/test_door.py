"""Who is turned away by the head of a request."""

from __future__ import annotations

import math

from router.admission.ask import Ask, Turned
from router.admission.door import Door
from router.admission.gate import Gate
from router.admission.predictor import Line, MeasuredTtft
from router.admission.room import Load, Room
from triptych.admission_config import AdmissionConfig, TenantConfig

PER_TOKEN_S = 0.001
TENANTS = [TenantConfig(name=name, keys=(name,)) for name in ("acme", "other")]


class World:
    """A gate with room for ten prompt tokens, and a first token within a second promised."""

    def __init__(self, *tenants: TenantConfig, tokens_per_byte: float = 0.25) -> None:
        predictor = MeasuredTtft()
        predictor.drained(1 / PER_TOKEN_S, 1.0)
        room = Room(10, math.inf, math.inf, pace=Line(0.0, PER_TOKEN_S))
        config = AdmissionConfig(max_queued=4)
        self.gate = Gate(tenants or TENANTS, config, predictor, lambda ours: room, ttft_s=1.0)
        self.door = Door(self.gate)
        for tenant in ("acme", "other"):
            self.door.learn(self.ask(400, tenant, body_bytes=round(400 / tokens_per_byte)))

    def ask(self, tokens: int, tenant: str = "acme", *, body_bytes: int = 0) -> Ask:
        return Ask(tenant, tokens, 16, 1, 0.0, body_bytes=body_bytes)

    def fill(self, tokens: int) -> None:
        """So many prompt tokens are under way."""
        self.gate.offer(self.ask(tokens), 0.0)

    def refusal(self, body_bytes: int, now: float = 0.0, tenant: str = "acme") -> Turned | None:
        return self.door.refusal(tenant, body_bytes, now)


def test_an_idle_cluster_reads_every_body() -> None:
    assert World().refusal(1 << 20) is None


def test_what_would_be_late_with_any_prompt_is_turned_away_each_time() -> None:
    world = World()
    world.fill(1200)
    for now in (0.0, 0.2, 0.4):
        turned = world.refusal(4, now)
        assert turned is not None and turned.reason == "ttft_slo"
    assert 0.2 <= turned.retry_after_s < 0.3, "as long as what is before it takes too long"


def test_a_body_that_is_likely_too_long_is_turned_away_and_a_short_one_is_read() -> None:
    world = World()
    world.fill(800)
    world.refusal(4000)  # one is read, to see whether it is
    assert world.refusal(4000) is not None
    assert world.refusal(400) is None


def test_now_and_then_a_body_that_is_likely_too_long_is_read_of_each_tenant() -> None:
    world = World()
    world.fill(800)
    asked = [(0.01 * step, tenant) for step in range(100) for tenant in ("acme", "other")]
    read = [(now, tenant) for now, tenant in asked if world.refusal(4000, now, tenant) is None]
    for name in ("acme", "other"):
        assert 3 <= sum(tenant == name for _, tenant in read) <= 5


def test_bodies_that_are_read_correct_a_wrong_estimate() -> None:
    world = World(tokens_per_byte=10.0)  # formed by one odd body
    world.fill(500)
    world.refusal(1000)
    assert world.refusal(1000) is not None
    for _ in range(40):
        world.door.learn(world.ask(100, body_bytes=1000))
    assert world.refusal(1000) is None


def test_asking_at_the_door_leaves_nothing_behind() -> None:
    limited = TenantConfig(name="acme", keys=("k",), requests_per_s=1, request_burst=2)
    world = World(limited, TENANTS[1])
    for _ in range(20):
        assert world.refusal(100) is None
    assert world.gate.load == Load()
    assert world.gate.headers("acme", 0.0)["x-ratelimit-remaining-requests"] == "2"


def test_a_tenant_over_its_rate_is_turned_away_and_others_are_not() -> None:
    limited = TenantConfig(name="acme", keys=("k",), requests_per_s=1, request_burst=1)
    world = World(limited, TENANTS[1])
    world.fill(1)
    turned = world.refusal(100)
    assert turned is not None and turned.reason == "requests_per_s"
    assert world.refusal(100, tenant="other") is None


def test_a_full_queue_turns_away_at_the_door() -> None:
    world = World(TenantConfig(name="acme", keys=("k",)), TENANTS[1])
    for _ in range(12):
        world.fill(20)
    turned = world.refusal(100)
    assert turned is not None and turned.reason == "queue_full"


def test_a_tenant_that_asked_for_urgent_requests_may_have_another_one() -> None:
    world = World()
    for tokens in (200, 300, 400, 60):  # the first one runs, the others wait
        world.fill(tokens)
    assert world.refusal(4) is not None, "behind its own others it would be late"
    world.door.learn(Ask("acme", 1, 16, 1, 0.0, priority=-1))
    assert world.refusal(4) is None, "before them it would not, and bodies tell priorities"

"""Who goes next, whatever the requests look like."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from router.admission.fair_queue import FairQueue

AGING_S = 30.0

costs = st.lists(st.integers(1, 5000), min_size=1, max_size=40)
weights = st.floats(0.1, 10)


def queue(**weights: float) -> FairQueue[str]:
    return FairQueue(weights, AGING_S)


def due(queue: FairQueue[str], arrived: float, priority: int = 0, by: float = math.inf) -> float:
    return queue.due(arrived, priority, by)


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


@given(costs, costs, weights, weights, st.lists(st.integers(1, 5000), max_size=10))
@settings(max_examples=150, deadline=None)
def test_what_two_backlogged_tenants_get_per_weight_differs_by_two_requests_at_most(
    one: list[int], other: list[int], weight: float, other_weight: float, before: list[int]
) -> None:
    fair: FairQueue[tuple[str, int]] = FairQueue({"a": weight, "b": other_weight}, AGING_S)
    # Of what somebody got while nobody else wanted it, the last request counts.
    for cost in before:
        fair.charge("a", cost)
    sizes = {"a": one, "b": other}
    for name, listed in sizes.items():
        for number, cost in enumerate(listed):
            fair.push((name, number), name, cost, fair.due(number, 0, math.inf))
    bound = max(one + before[-1:]) / weight + max(other) / other_weight
    got = {"a": 0.0, "b": 0.0}
    while fair.queued("a")[0] and fair.queued("b")[0]:
        name, number = fair.pop()
        got[name] += sizes[name][number]
        assert abs(got["a"] / weight - got["b"] / other_weight) <= bound + 1e-6


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500)), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_whoever_waits_is_served_and_nobody_twice(arrivals: list[tuple[str, int]]) -> None:
    fair: FairQueue[int] = FairQueue({"a": 1, "b": 2, "c": 0.5}, AGING_S)
    for number, (tenant, cost) in enumerate(arrivals):
        fair.push(number, tenant, cost, fair.due(number, 0, math.inf))
    left = set(range(0, len(arrivals), 3))
    for number in left:
        fair.remove(number)
    assert {fair.pop() for _ in range(len(fair))} == set(range(len(arrivals))) - left
    assert all(fair.queued(tenant) == (0, 0.0) for tenant in "abc")


def test_a_heavier_tenant_gets_its_weight_in_tokens() -> None:
    fair = queue(heavy=3, light=1)
    for number in range(40):
        fair.push(f"h{number}", "heavy", 100, due(fair, number))
        fair.push(f"l{number}", "light", 100, due(fair, number))
    first = [fair.pop() for _ in range(40)]
    assert sum(item.startswith("h") for item in first) in (29, 30, 31)


def test_many_small_requests_weigh_as_much_as_few_large_ones() -> None:
    fair = queue(small=1, large=1)
    for number in range(100):
        fair.push(f"s{number}", "small", 10, due(fair, number))
    for number in range(10):
        fair.push(f"l{number}", "large", 100, due(fair, number))
    first = [fair.pop() for _ in range(55)]
    assert sum(item.startswith("l") for item in first) in (4, 5, 6)


def test_a_tenant_that_comes_back_finds_its_share_and_no_credit() -> None:
    fair = queue(busy=1, away=1)
    for number in range(100):
        fair.push(f"b{number}", "busy", 100, due(fair, number))
    for _ in range(50):
        fair.pop()
    for number in range(10):
        fair.push(f"a{number}", "away", 100, due(fair, 100 + number))
    first = [fair.pop() for _ in range(10)]
    assert sum(item.startswith("a") for item in first) in (5, 6)


def test_an_answer_longer_than_charged_is_paid_with_the_next_turn() -> None:
    fair = queue(a=1, b=1)
    fair.charge("a", 100)
    fair.settle("a", 900)
    for number in range(10):
        fair.push(f"a{number}", "a", 100, due(fair, number))
        fair.push(f"b{number}", "b", 100, due(fair, number))
    assert [fair.pop()[0] for _ in range(9)] == ["b"] * 9


def test_lower_priorities_go_first_and_equals_by_deadline_then_arrival() -> None:
    fair = queue(a=1)
    fair.push("plain", "a", 1, due(fair, 0.0))
    fair.push("later", "a", 1, due(fair, 0.1))
    fair.push("soon", "a", 1, due(fair, 0.2, by=9.0))
    fair.push("sooner", "a", 1, due(fair, 0.3, by=5.0))
    fair.push("urgent", "a", 1, due(fair, 0.4, priority=-1))
    fair.push("idle", "a", 1, due(fair, 0.5, priority=1, by=5.0))
    assert drained(fair) == ["urgent", "sooner", "soon", "plain", "later", "idle"]


def test_a_low_priority_does_not_starve_behind_a_stream_of_high_ones() -> None:
    fair = queue(a=1)
    fair.push("patient", "a", 1, due(fair, 0.0, priority=1))
    served = []
    for second in range(200):  # one comes, one goes, for ever
        fair.push(f"urgent{second}", "a", 1, due(fair, float(second)))
        served.append(fair.pop())
    assert served.index("patient") <= AGING_S + 1


@given(costs, st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_what_is_ahead_of_a_newcomer_is_what_goes_before_it(
    before: list[int], priority: int
) -> None:
    fair = queue(a=2, b=1)
    for number, cost in enumerate(before):
        tenant = "ab"[number % 2]
        fair.push(f"{number}", tenant, cost, due(fair, number, priority=number % 3))
    when = due(fair, 50.0, priority=priority % 3)
    predicted = fair.ahead("a", 100, when)
    fair.push("new", "a", 100, when)
    real = 0
    while (item := fair.pop()) != "new":
        real += before[int(item)]
    # A request of the other tenant that starts at the same virtual time may go either way.
    assert abs(predicted - real) <= 2 * max(before)

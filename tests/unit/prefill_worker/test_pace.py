"""Fetching a prompt's history against computing it."""

from __future__ import annotations

from prefill_worker.pace import Pace


def test_what_is_not_known_yet_is_tried() -> None:
    pace = Pace()
    assert pace.is_worth_fetching(64, 1 << 20)
    pace.computed(512, 0.5)
    assert pace.is_worth_fetching(64, 1 << 20), "the link is still unknown"


def test_nothing_is_fetched_where_nothing_is_missing() -> None:
    assert not Pace().is_worth_fetching(0, 0)
    assert not Pace().is_worth_fetching(-32, -1024)


def test_the_sooner_way_is_taken() -> None:
    pace = Pace()
    pace.computed(1000, 1.0)
    pace.fetched(1_000_000, 1.0)
    assert pace.is_worth_fetching(tokens=100, num_bytes=50_000)
    assert not pace.is_worth_fetching(tokens=100, num_bytes=200_000)


def test_a_slow_link_is_tried_again_now_and_then() -> None:
    pace = Pace()
    pace.computed(1000, 1.0)
    pace.fetched(1_000, 1.0)
    tried = [pace.is_worth_fetching(100, 200_000) for _ in range(200)]
    assert 2 <= sum(tried) <= 4
    pace.fetched(100_000_000, 0.1)
    assert pace.is_worth_fetching(100, 200_000)

"""Fetching a prompt's history against computing it."""

from __future__ import annotations

from prefill_worker.fetch_or_compute import FetchOrCompute
from triptych.obs.pace import PaceMeter


def choice(*, tokens_s: float = 0.0, bytes_s: float = 0.0) -> FetchOrCompute:
    """Of a worker that has measured so much; 0: nothing yet."""
    meter = PaceMeter()
    if tokens_s:
        for rows in range(900, 1100, 10):
            meter.observe_step(rows / tokens_s, prompt_rows=rows)
    meter.observe_fetch(int(bytes_s), 1.0)
    return FetchOrCompute(meter, chunk_tokens=512)


def test_what_is_not_known_yet_is_tried() -> None:
    assert choice().is_worth_fetching(0, 64, 1 << 20)
    assert choice(tokens_s=1000).is_worth_fetching(0, 64, 1 << 20), "the link is still unknown"


def test_nothing_is_fetched_where_nothing_is_missing() -> None:
    assert not choice().is_worth_fetching(64, 64, 0)
    assert not choice().is_worth_fetching(96, 64, -1024)


def test_the_sooner_way_is_taken() -> None:
    measured = choice(tokens_s=1000, bytes_s=1_000_000)
    assert measured.is_worth_fetching(0, 100, num_bytes=50_000)
    assert not measured.is_worth_fetching(0, 100, num_bytes=200_000)


def test_a_slow_link_is_tried_again_now_and_then() -> None:
    measured = choice(tokens_s=1000, bytes_s=1_000)
    tried = [measured.is_worth_fetching(0, 100, 200_000) for _ in range(200)]
    assert 2 <= sum(tried) <= 4
    measured.meter.observe_fetch(100_000_000, 0.1)
    assert measured.is_worth_fetching(0, 100, 200_000)

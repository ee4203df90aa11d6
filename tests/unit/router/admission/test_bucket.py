"""Rates, whatever comes when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admission.bucket import TokenBucket
from router.admission.limits import duration


@given(
    st.floats(0.1, 100),
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 20)), max_size=80),
)
def test_nobody_gets_more_than_the_burst_and_the_rate(
    rate: float, burst: int, asks: list[tuple[float, int]]
) -> None:
    bucket = TokenBucket(rate, burst)
    now, taken, largest = 0.0, 0, 0
    for pause, amount in asks:
        now += pause
        if not bucket.wait_s(amount, now):
            bucket.take(amount, now)
            taken += amount
            largest = max(largest, amount)
    assert taken <= burst + rate * now + max(0, largest - burst) + 1e-6


@given(st.floats(0.1, 100), st.integers(1, 50), st.integers(1, 200))
def test_after_the_wait_that_was_told_the_request_passes(
    rate: float, burst: int, amount: int
) -> None:
    bucket = TokenBucket(rate, burst)
    bucket.take(burst, 0.0)
    wait_s = bucket.wait_s(amount, 0.0)
    assert wait_s > 0
    assert bucket.wait_s(amount, wait_s + 1e-6) == pytest.approx(0, abs=1e-6)


def test_a_request_larger_than_the_bucket_passes_when_it_is_full_and_is_paid_later() -> None:
    bucket = TokenBucket(rate=10, burst=20)
    assert bucket.wait_s(100, 0.0) == 0
    bucket.take(100, 0.0)
    assert bucket.level(0.0) == -80
    assert bucket.wait_s(1, 0.0) == pytest.approx(8.1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0201, "21ms"), (1.52, "1.6s"), (60, "1m0s"), (359.6, "6m0s")],
)
def test_durations_are_spelled_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text

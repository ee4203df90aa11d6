"""When predictions are doubted."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from router.index.audit import Audit, relative_error
from router.index.metrics import IndexMetrics
from triptych.testing.kv_workers import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def audit(asked: list[str], clock: Clock) -> Audit:
    return Audit(asked.append, IndexMetrics(CollectorRegistry()), clock)


def finish(audit: Audit, count: int, predicted: int, actual: int) -> None:
    for _ in range(count):
        audit.compare("a", predicted, actual)


@pytest.mark.parametrize(
    ("pairs", "error"),
    [([], 0.0), ([(0, 0)], 0.0), ([(10, 0)], 1.0), ([(0, 10), (10, 10)], 0.5), ([(99, 100)], 0.01)],
)
def test_errors_are_relative_to_what_was_at_stake(
    pairs: list[tuple[int, int]], error: float
) -> None:
    assert relative_error(pairs) == pytest.approx(error)


def test_right_predictions_ask_for_nothing(audit: Audit, asked: list[str]) -> None:
    finish(audit, 60, 1000, 1000)
    finish(audit, 1, 1000, 600)  # one of 61: below one per cent
    assert asked == []


def test_wrong_predictions_ask_once_there_are_enough_of_them(
    audit: Audit, asked: list[str]
) -> None:
    finish(audit, 7, 100, 0)
    assert asked == []
    finish(audit, 1, 100, 0)
    assert asked == ["a"]


def test_what_a_snapshot_does_not_mend_is_asked_for_more_and_more_rarely(
    audit: Audit, asked: list[str], clock: Clock
) -> None:
    times = []
    for _ in range(40):
        before = len(asked)
        finish(audit, 8, 100, 0)
        if len(asked) > before:
            times.append(clock.now)
        clock.now += 1.0
    assert [later - sooner for sooner, later in zip(times, times[1:], strict=False)] == [5, 10, 20]

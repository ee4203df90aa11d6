"""The gate before simulated workers: what admission promises, in made-up time."""

from __future__ import annotations

from functools import cache

import pytest

from bench.admission import EVEN, SLO, Run, kept_after_storm, simulate, spread, unfairness

BEST_RATE = 24.0  # of the simulated cluster, as the bench finds it
SECONDS = 30.0


@cache
def run(times: int, admission: bool) -> Run:
    return simulate(spread(EVEN, times * BEST_RATE), SECONDS, admission=admission)


def test_goodput_stands_at_three_times_the_load_and_would_fall_without_admission() -> None:
    best = run(1, False).goodput
    assert run(3, True).goodput > 0.9 * best
    assert run(3, False).goodput < 0.1 * best


def test_admission_costs_next_to_nothing_at_the_capacity() -> None:
    assert run(1, True).goodput > 0.9 * run(1, False).goodput


def test_tenants_that_all_want_more_get_tokens_by_weight_and_none_starves() -> None:
    assert unfairness(run(3, True)) < 0.15
    assert run(3, True).starved() == []


def test_the_queue_stays_short_and_few_are_let_in_in_vain() -> None:
    overloaded = run(3, True)
    assert overloaded.cluster.peak_queued < 200
    late = [r for r in overloaded.judged if r.turned is None and not r.good(*SLO)]
    assert len(late) < 0.05 * len(overloaded.judged)


def test_clients_that_ask_again_at_once_cannot_bring_goodput_down() -> None:
    eager = simulate(spread(EVEN, 2 * BEST_RATE), SECONDS, admission=True, retry_s=0.05)
    assert eager.goodput > 0.9 * run(1, False).goodput


@pytest.mark.parametrize("rate", [2.0, BEST_RATE / 2])
def test_ten_seconds_after_a_storm_a_calm_load_is_let_in_again(rate: float) -> None:
    assert kept_after_storm(rate, storm=60.0) > 0.95


def test_nothing_is_left_behind_when_all_has_ended() -> None:
    gate = run(3, True).cluster.gate
    assert gate is not None
    assert (gate.num_queued, gate.load.sequences) == (0, 0)

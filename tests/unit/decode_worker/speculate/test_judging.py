"""Does speculation pay? What may be concluded from noisy steps, and what may not."""

from __future__ import annotations

from random import Random

import pytest

from bench.speculate_simulated import World, always, head, simulate
from decode_worker.speculate.breaks import Breaks
from decode_worker.speculate.hindsight import Hindsight
from decode_worker.speculate.tracks import Track
from decode_worker.speculate.utility import Utility


def test_promises_are_cut_to_what_such_promises_kept() -> None:
    hindsight = Hindsight()
    for _ in range(20):
        hindsight.learn(promised=4.0, kept=2)
    assert hindsight.factor == pytest.approx(0.58, abs=0.03)
    for _ in range(300):
        hindsight.passes()
    assert hindsight.factor == pytest.approx(1.0, abs=0.01), "texts change"


def bursts(breaks: Breaks, mean: float, spread: float, steps: int, seed: int) -> bool:
    """Whether it was switched off by steps of 1.5 seconds that bring so many times 1.5 tokens."""
    random = Random(seed)
    return any(
        breaks.observe(1.5 * max(random.gauss(mean, spread), 0.1), 1.5, believed=1.1)
        for _ in range(steps)
    )


def test_tokens_that_come_in_bursts_are_judged_later_than_steady_ones() -> None:
    lucky = sum(bursts(Breaks(16, 512), 1.1, 0.6, 200, seed) for seed in range(50))
    assert lucky < 15, "what gains a tenth is seldom given up"
    assert all(bursts(Breaks(16, 512), 0.95, 0.02, 12, seed) for seed in range(50))
    assert all(bursts(Breaks(16, 512), 0.8, 0.6, 200, seed) for seed in range(50))


def test_who_kept_promises_is_woken_by_less_than_who_boasted() -> None:
    honest, boaster = Breaks(64, 64), Breaks(64, 64)
    while not honest.observe(0.95, 1.0, believed=0.96):
        pass
    while not boaster.observe(0.95, 1.0, believed=1.2):
        pass
    for breaks in (honest, boaster):
        breaks.hears(1.1)
    assert not honest.is_off
    assert boaster.is_off


def test_misses_count_by_the_tokens_that_were_expected_and_are_forgotten() -> None:
    track = Track(0.5)
    for _ in range(3):
        track.judge(expected=0.5, right=0)
    assert track.factor > 0.7, "three misses of a draft that is right every other time"
    for _ in range(6):
        track.judge(expected=4.0, right=0)
    assert track.factor < 0.4
    for _ in range(200):
        track.untried()
    assert track.factor > 0.9


def test_a_new_head_is_tried_at_once_and_used_as_soon_as_its_price_is_known() -> None:
    world = World((head(always(0.7)),), lambda at: 4, seed=0)
    history = simulate(Utility(), world, 40)
    asked = [sum(budget.max_nodes > 0 for budget in round_.asked) for round_ in history]
    first = next(at for at, count in enumerate(asked) if count)
    assert first < 5
    assert asked[first] == 1, "for one sequence first"
    assert max(asked[:10]) == 4

"""The simulated pool: balancing gains what the skew costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.expert_balance import POLICIES, compare
from bench.expert_pool import Setting, simulate


def test_balancing_beats_a_static_placement_by_what_its_busiest_worker_loses() -> None:
    found = compare(Setting(calls=400, layers=2), orders=2)
    assert found["max_over_mean"] <= 1.05
    assert found["speedup"] == pytest.approx(found["static_max_over_mean"], rel=0.2)
    assert found["speedup"] >= 1.3


def test_even_likes_leave_nothing_to_gain() -> None:
    found = compare(Setting(calls=300, layers=2, zipf=0.0), orders=1)
    assert found["speedup"] == pytest.approx(1.0, abs=0.05)


def test_moves_help_where_there_is_one_copy() -> None:
    setting = Setting(calls=900, layers=2, drift=(0.98, 0.99))
    moving = next(policy for policy in POLICIES if policy.copies == 1 and policy.moves)
    still = simulate(setting, replace(moving, moves=False))
    moved = simulate(setting, moving)
    assert moved.moves > 0
    assert moved.before < still.before - 0.1

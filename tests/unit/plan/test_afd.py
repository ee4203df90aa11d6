"""Plans: limits are kept, better hardware is never worse, and the rival is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from triptych.errors import ConfigError
from triptych.plan.afd import (
    Plan,
    all_plans,
    bandwidth_floor,
    best_plans,
    ffn_bandwidth_floor,
    least_ffn,
)
from triptych.plan.answer import find_answer
from triptych.plan.colocated import best_colocated
from triptych.plan.inputs import PlanInputs, parse_inputs
from triptych.plan.lengths import Constant, Geometric, Lognormal, load_of_laws
from triptych.plan.stages import split_times

LOAD = load_of_laws(Geometric(mean=1000), Geometric(mean=500))
BASE: dict[str, dict[str, Any]] = {
    "model": {
        "layers": 24,
        "hidden": 4096,
        "experts": 32,
        "top_k": 4,
        "kv_bytes": 50_000,
        "expert_bytes": "10MB",
    },
    "costs": {
        "attention_token_us": 0.004,
        "attention_base_us": 40,
        "ffn_cell_us": 0.4,
        "expert_us": 6,
        "ffn_base_us": 40,
        "link_gbs": 50,
        "ffn_link_gbs": 100,
        "link_base_us": 10,
    },
    "devices": {
        "attention_memory": "12GB",
        "ffn_memory": "40GB",
        "max_attention": 12,
        "max_ffn": 4,
    },
    "goals": {},
    "wire": {},
}


def inputs(**changes: object) -> PlanInputs:
    """Keys with two underscores: goals__tpot_ms=20."""
    data = {name: dict(section) for name, section in BASE.items()}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        data[section][name] = value
    return parse_inputs(data)


def best(**changes: object) -> Plan:
    return best_plans(inputs(**changes), LOAD)[0]


def test_the_plan_keeps_every_limit() -> None:
    for tpot_ms in (8.0, 15.0, 25.0):
        plan = best(goals__tpot_ms=tpot_ms)
        assert plan.tpot_ms <= tpot_ms
        assert plan.attention <= 12 and plan.ffn <= 4
        tokens = plan.slots * LOAD.theta + 2 * plan.slots**0.5 * LOAD.nu
        assert tokens * 50_000 <= 12e9
        assert plan.throughput == pytest.approx(1e3 * plan.attention * plan.slots / plan.tpot_ms)


def test_of_plans_within_a_percent_the_one_with_fewest_attention_devices_is_taken() -> None:
    taken, *near = best_plans(inputs(), LOAD)
    top = max(plan.score for plan in (taken, *near))
    assert all(plan.score >= 0.99 * top for plan in (taken, *near))
    assert taken.attention == min(plan.attention for plan in (taken, *near))
    assert all_plans(inputs(), LOAD).score.max() == pytest.approx(top)


def test_more_sequences_are_never_worse() -> None:
    """What the search relies on: time per token grows with slots, and so does throughput."""
    given = inputs()
    slots = np.arange(4.0, 400.0)
    for count in (1.0, 2.0, 3.0, 4.0):
        same = np.full_like(slots, 3.0)
        counts = np.full_like(slots, count)
        times = split_times(given, LOAD, 2 * same, same, slots, counts)
        step = times.step(counts, 24)
        assert (np.diff(step) > 0).all()
        assert (np.diff(slots / step) > 0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"costs__attention_token_us": 0.002},
        {"costs__ffn_cell_us": 0.2},
        {"costs__link_base_us": 1},
        {"costs__ffn_link_gbs": 400},
        {"devices__attention_memory": "24GB"},
        {"devices__max_attention": 16},
        {"goals__imbalance": 1.0},
        {"wire__returns": "sum"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_faster_or_larger_is_never_worse(change: dict[str, object]) -> None:
    def top(**changes: object) -> float:
        return float(all_plans(inputs(**changes), LOAD).score.max())

    assert top(**change) >= top() - 1e-9


def test_a_tighter_goal_costs_throughput() -> None:
    scores = [best(goals__tpot_ms=goal).score for goal in (9.0, 12.0, 18.0, 40.0)]
    assert scores == sorted(scores)


def test_demand_is_met_by_littles_law() -> None:
    plan = best(goals__rate=20.0)
    assert plan.throughput >= 20 * 500
    in_flight = 20 * 500 * plan.tpot_ms / 1e3
    assert in_flight <= plan.attention * plan.slots


def test_copies_need_room_on_ffn_devices() -> None:
    whole = 24 * 32 * 10_000_000
    assert least_ffn(inputs(goals__copies=2)) == 2, "each copy on another device"
    assert least_ffn(inputs(devices__ffn_memory=whole, goals__copies=3)) == 3
    assert least_ffn(inputs(devices__ffn_memory=whole // 2, goals__copies=2)) == 4


def test_the_regime_names_what_is_busiest() -> None:
    assert best(devices__max_attention=1).regime in ("attention", "latency")
    slow = best(costs__link_gbs=2, costs__ffn_link_gbs=2)
    assert slow.regime == "link"
    busy = best(costs__ffn_cell_us=20, devices__max_ffn=2)
    assert busy.regime == "ffn"


def test_drafts_shift_devices_towards_the_ffn() -> None:
    plain = best()
    drafted = best(goals__draft_tokens=3, goals__tokens_per_step=2.0)
    assert drafted.attention / drafted.ffn < plain.attention / plain.ffn


@pytest.mark.parametrize(
    ("expert_size", "top_k", "workers", "floor"),
    [(14336, 2, 1.75, 8e9), (14336, 1, 1.0, 9e9), (1408, 6, 3.9, 60e9)],
    ids=["mixtral", "dense", "fine-grained"],
)
def test_bandwidth_floors_from_data_sheets(
    expert_size: int, top_k: int, workers: float, floor: float
) -> None:
    """400 TFLOP/s, bfloat16: what is known of some models, to a few per cent."""
    found = bandwidth_floor(400e12, 2, workers, expert_size, top_k)
    assert found == pytest.approx(floor, rel=0.08)


def test_at_the_floor_the_link_is_as_slow_as_a_compute_bound_ffn() -> None:
    given = inputs(
        costs__expert_us=0, costs__ffn_base_us=0, costs__link_base_us=0, costs__link_gbs=1e6
    )
    floor = ffn_bandwidth_floor(given, 3)
    there = inputs(
        costs__expert_us=0,
        costs__ffn_base_us=0,
        costs__link_base_us=0,
        costs__link_gbs=1e6,
        costs__ffn_link_gbs=floor,
    )
    times = split_times(there, LOAD, *(np.array([x]) for x in (6.0, 3.0, 90.0, 3.0)))
    assert max(times.out[0], times.back[0]) == pytest.approx(times.ffn[0])


def test_below_the_floor_the_answer_says_dead_zone() -> None:
    slow = find_answer(inputs(costs__ffn_link_gbs=5), LOAD)
    assert slow.link_gbs < slow.floor_gbs
    assert any(note.startswith("dead zone") for note in slow.notes)
    fast = find_answer(inputs(costs__ffn_link_gbs=500), LOAD)
    assert not any(note.startswith("dead zone") for note in fast.notes)


def test_the_unsplit_rival_has_as_many_devices_and_wins_over_slow_links() -> None:
    answer = find_answer(inputs(costs__link_gbs=3, costs__ffn_link_gbs=3), LOAD)
    assert answer.colocated is not None
    assert answer.colocated.devices == answer.plan.attention + answer.plan.ffn
    assert not answer.split_pays
    assert any(note.startswith("do not split") for note in answer.notes)


def test_a_split_pays_where_ffn_devices_are_cheap_or_nothing_else_fits() -> None:
    cheap = find_answer(inputs(devices__ffn_price=0.2, costs__ffn_cell_us=1), LOAD)
    assert cheap.split_pays and cheap.colocated is not None
    nothing_fits = inputs(
        model__expert_bytes="100MB",
        devices__attention_memory="8GB",
        devices__ffn_memory="80GB",
        devices__max_attention=3,
    )
    rival = best_colocated(nothing_fits, LOAD, 2)
    assert rival is None


def test_an_unsplit_device_costs_what_attention_and_ffn_take_together() -> None:
    given = inputs(devices__attention_memory="200GB", devices__max_slots=100)
    rival = best_colocated(given, load_of_laws(Constant(mean=1000), Constant(mean=1)), 1)
    assert rival is not None and rival.way == "replicas"
    layer_us = 0.004 * 1000 * 100 + 40 + max(0.4 * 400, 6 * 32) + 40
    assert rival.slots == 100
    assert rival.tpot_ms == pytest.approx(24 * layer_us / 1e3, rel=1e-3)


def test_heavy_tails_are_warned_of() -> None:
    heavy = load_of_laws(Geometric(mean=1000), Lognormal(mean=500, sigma=1.5))
    notes = find_answer(inputs(), heavy).notes
    assert any(note.startswith("heavy tails") for note in notes)
    assert not any(note.startswith("heavy tails") for note in find_answer(inputs(), LOAD).notes)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"goals__tpot_ms": 0.5}, "goals.tpot_ms"),
        ({"goals__rate": 1e6}, "goals.rate"),
        ({"devices__attention_memory": "10MB"}, "devices.attention_memory"),
        ({"devices__ffn_memory": "1GB"}, "devices.max_ffn"),
    ],
)
def test_an_impossible_plan_names_the_limit_and_the_remedy(
    change: dict[str, object], field: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}: .*(raise|give|set)"):
        best(**change)

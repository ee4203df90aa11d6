"""The event simulation of splits is right where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from bench.afd_simulation import judge
from bench.afd_stations import Stations, World, routing, run_steps, slot_tokens
from bench.afd_workloads import LAWS, geometric, make_inputs
from triptych.experts.pipeline import period


def constant_stations(attention: float, ffn: float, link: float) -> Stations:
    one = np.ones((1, 1))
    return Stations(lambda: attention * one, lambda: ffn * one, link, link, link, link)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "times", [(1.0, 1.0, 0.2), (1.0, 0.6, 0.2), (1.0, 1.0, 1.2), (0.3, 1.0, 0.9)]
)
def test_without_jitter_layers_take_what_the_law_says(
    times: tuple[float, float, float], count: int
) -> None:
    stations = constant_stations(*times)
    long, short = (run_steps(stations, layers, count)[0] for layers in (80, 40))
    assert (long - short) / 40 == pytest.approx(period(count, *times))


def test_one_layer_of_one_micro_batch_is_the_way_round() -> None:
    assert run_steps(constant_stations(1.0, 0.5, 0.25), 1, 1)[0] == pytest.approx(2.0)


def test_a_slow_attention_device_holds_up_all() -> None:
    stations = Stations(lambda: np.array([[1.0, 3.0]]), lambda: np.ones((1, 1)), 0, 0, 0, 0)
    assert run_steps(stations, 10, 1)[0] == pytest.approx(10 * 4.0)


def test_slots_hold_what_renewal_theory_says() -> None:
    tokens = slot_tokens(geometric(50, 40), 400, 40, seed=0)
    assert tokens.mean() == pytest.approx(50 + 39, rel=0.05)


def test_routes_reach_all_experts_in_the_end() -> None:
    few, spread = routing(16, 2, 1.0, 4)
    many, _ = routing(16, 2, 500.0, 4)
    assert few == 2.0 and many == pytest.approx(16.0)
    assert 1.0 < spread < 2.0


def test_more_devices_wait_for_a_fuller_one() -> None:
    world = World(make_inputs("mixture"), LAWS["geometric 1000/500"], 8 * 32, 32, seed=0)
    assert world.tpot_ms(8, 4, 32, 1) > world.tpot_ms(2, 4, 32, 1)


def test_the_calculator_loses_little_on_one_workload() -> None:
    case = judge("geometric 1000/500", "slow links", seed=3)
    assert case.gap <= 0.03
    assert abs(case.error) <= 0.05

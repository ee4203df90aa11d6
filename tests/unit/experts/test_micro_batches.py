"""The law of micro-batches, the line that is learned, and the policy in simulated worlds."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.experts.linear_fit import Line, LinearFit
from triptych.experts.micro_batches import MicroBatchPolicy
from triptych.experts.pipeline import (
    Stages,
    choose_count,
    jittered_period,
    period,
    stall_shares,
)


def test_the_period_is_that_of_the_busiest_stage_or_one_way_round() -> None:
    assert period(1, 1.0, 0.6, 0.2) == pytest.approx(2.0)
    assert period(2, 1.0, 0.6, 0.2) == pytest.approx(2.0), "stall-free: both are the same"
    assert period(3, 1.0, 1.0, 0.4) == pytest.approx(3.0)
    assert period(3, 1.0, 1.0, 1.5) == pytest.approx(5.0), "one way round"
    assert period(4, 1.0, 1.0, 1.5) == pytest.approx(6.0), "the link"


def test_stall_shares_say_who_waits() -> None:
    assert stall_shares(1, 1.0, 1.0, 0.5) == pytest.approx((2 / 3, 2 / 3))
    assert stall_shares(3, 1.0, 0.5, 0.1) == pytest.approx((0.0, 0.5))
    assert stall_shares(1, 0.0, 0.0, 0.0) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("cv", "count", "simulated"),
    [(0.1, 3, 0.97), (0.25, 3, 0.90), (0.25, 4, 0.96), (0.5, 2, 0.64), (0.5, 3, 0.82)],
)
def test_jitter_costs_what_event_simulations_say(cv: float, count: int, simulated: float) -> None:
    """Throughput of T_a = T_e = 1, T_c = 0.4 and lognormal times; full speed is 1."""
    assert count / jittered_period(count, 1.0, 1.0, 0.4, cv) == pytest.approx(simulated, rel=0.05)


def stages(base: float, slope: float, link: float) -> Stages:
    return Stages(Line(slope, base), Line(slope, base), Line(0.0, link))


def test_the_number_of_micro_batches_follows_the_link() -> None:
    """Stage times in proportion to rows: a short way needs three, a longer one four."""
    assert choose_count(stages(0.0, 1.0, 1.0), 64) >= 3
    assert choose_count(stages(0.0, 1.0, 20.0), 64) == 4
    assert choose_count(stages(10.0, 0.01, 0.5), 64) == 2, "fixed times only repeat"
    assert choose_count(stages(0.0, 1.0, 1.0), 1) == 1, "one row is not divided"


def test_jitter_adds_a_micro_batch_only_where_that_pays() -> None:
    calm = Stages(Line(1.0, 0.0), Line(1.0, 0.0), Line(0.0, 8.0))
    assert choose_count(calm, 60) == 3
    assert choose_count(calm, 60, cv=0.4) == 4
    dear = Stages(Line(1.0, 12.0), Line(1.0, 12.0), Line(0.0, 2.0))
    assert choose_count(dear, 60) == choose_count(dear, 60, cv=0.4) == 2


def test_a_line_is_learned_through_noise_and_hiccups() -> None:
    random, fit = Random(0), LinearFit()
    for _ in range(300):
        rows = random.choice([16, 32, 48, 64])
        hiccup = 20 if random.random() < 0.03 else 1
        fit.add(rows, (2e-5 * rows + 3e-4) * random.lognormvariate(0, 0.05) * hiccup)
    for rows in (16, 64):
        assert fit.at(rows) == pytest.approx(2e-5 * rows + 3e-4, rel=0.1)
    assert 0.02 < fit.cv < 0.2


def test_a_line_follows_a_change_of_pace() -> None:
    fit = LinearFit()
    for number in range(400):
        rows = 16 + number % 3 * 16
        fit.add(rows, (1e-3 if number < 200 else 4e-3) + 1e-5 * rows)
    assert fit.at(32) == pytest.approx(4.32e-3, rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 512), st.floats(0, 10)), min_size=1, max_size=60))
def test_a_line_never_promises_negative_time(samples: list[tuple[int, float]]) -> None:
    fit = LinearFit()
    for rows, seconds in samples:
        fit.add(rows, seconds)
    assert fit.line.slope >= 0 and fit.line.base >= -1e-9
    assert fit.at(1) <= fit.at(512) + 1e-9


def test_one_size_of_steps_is_read_as_half_fixed() -> None:
    fit = LinearFit()
    for _ in range(20):
        fit.add(64, 1.0)
    assert fit.at(64) == pytest.approx(1.0)
    assert fit.at(32) == pytest.approx(0.75, rel=0.01)


@dataclass(frozen=True)
class World:
    attention: Line
    ffn: Line
    link: Line
    hidden: float = 0.0  # seconds per further micro-batch that no stage shows
    noise: float = 0.05
    layers: int = 32

    def step(self, rows: int, count: int) -> float:
        times = (line.at(rows / count) for line in (self.attention, self.ffn, self.link))
        return self.layers * period(count, *times) + self.hidden * (count - 1)

    def best(self, rows: int) -> float:
        return min(self.step(rows, count) for count in range(1, 5))


def play(world: World, policy: MicroBatchPolicy, steps: int, seed: int = 0) -> list[float]:
    """Expected seconds of each step, over the best ones."""
    random, over = Random(seed), []

    def noise() -> float:
        return random.lognormvariate(0, world.noise)

    for _ in range(steps):
        rows = random.randint(60, 63)
        count = policy.count(rows)
        part = max(1, rows // count)
        times = (line.at(part) * noise() for line in (world.attention, world.ffn, world.link))
        policy.observe(part, *times)
        policy.observe_step(rows, count, world.step(rows, count) * noise())
        over.append(world.step(rows, count) / world.best(rows))
    return over


WORLDS = {
    "overlap": World(Line(1e-5, 1e-4), Line(1e-5, 1e-4), Line(1e-6, 1e-4)),
    "fixed": World(Line(1e-7, 1e-3), Line(1e-7, 1e-3), Line(0.0, 1e-5), hidden=5e-3),
    "busy attention": World(Line(1e-5, 1e-4), Line(1e-6, 1e-5), Line(1e-6, 1e-4)),
    "dear": World(Line(1e-5, 1e-4), Line(1e-5, 1e-4), Line(1e-6, 1e-4), hidden=1e-2),
    "lying": World(Line(1e-5, 1e-4), Line(1e-5, 1e-4), Line(1e-6, 1e-4), hidden=0.1),
}


@pytest.mark.parametrize("name", WORLDS)
def test_the_policy_comes_near_the_best_number_of_micro_batches(name: str) -> None:
    over = play(WORLDS[name], MicroBatchPolicy(), 1500)
    assert sum(over[300:]) / len(over[300:]) < 1.04


@pytest.mark.parametrize("seed", range(8))
def test_sizes_that_share_a_choice_may_come_in_any_order(seed: int) -> None:
    """Two rows cannot go in three micro-batches, three can."""
    random, policy = Random(seed), MicroBatchPolicy()
    times = Stages(Line(1e-3, 1e-5), Line(1e-3, 1e-5), Line(0.0, 1e-3))
    for _ in range(1500):
        rows = random.choice([2, 3])
        count = policy.count(rows)
        assert 1 <= count <= rows
        stages = times.times(rows / count)
        policy.observe(1, *stages)
        seconds = 30 * period(count, *stages) * random.lognormvariate(0, 0.05)
        policy.observe_step(rows, count, seconds)


def test_a_number_that_steps_cannot_be_cut_into_is_not_asked_for_again_and_again() -> None:
    """Two draft trees are at most two micro-batches, which are dearer than one here."""
    random, policy = Random(0), MicroBatchPolicy()
    cut = list[int]()
    for _ in range(3000):
        cut.append(min(policy.count(16), 2))
        policy.observe(8, *(line.at(8) for line in (Line(1e-5, 1e-4),) * 2), 1e-4)
        seconds = (1.0 if cut[-1] == 1 else 1.5) * random.lognormvariate(0, 0.02)
        policy.observe_step(16, cut[-1], seconds)
    assert cut[-500:].count(1) > 480


def test_a_number_that_steps_cannot_be_cut_into_any_more_is_given_up() -> None:
    policy = MicroBatchPolicy()
    play(WORLDS["overlap"], policy, 600)
    assert policy.count(62) > 2
    for _ in range(20):
        policy.observe_step(62, 2, 0.05)
    assert policy.count(62) == 2


def test_what_a_micro_batch_costs_besides_is_found_by_trying() -> None:
    """By the stages' times three are best, by the steps' two."""
    world, policy = WORLDS["dear"], MicroBatchPolicy()
    assert world.best(62) == world.step(62, 2)
    play(world, policy, 400)
    assert policy.count(62) == 2


def test_a_law_that_lies_costs_nearly_nothing() -> None:
    """One micro-batch is best, the stages' times promise otherwise."""
    world = WORLDS["lying"]
    over = play(world, MicroBatchPolicy(), 3000)
    assert world.best(62) == world.step(62, 1)
    assert sum(over) / len(over) < 1.03


def test_the_policy_goes_back_to_one_when_overlap_stops_paying() -> None:
    policy = MicroBatchPolicy()
    play(WORLDS["overlap"], policy, 600)
    assert policy.count(62) > 1
    over = play(WORLDS["lying"], policy, 3000, seed=1)
    assert sum(over[1000:]) / len(over[1000:]) < 1.05


def test_sizes_are_judged_by_themselves() -> None:
    policy = MicroBatchPolicy()
    play(WORLDS["overlap"], policy, 400)
    assert policy.count(62) > 1
    assert policy.count(4) == 1
    assert policy.stalls(62).attention < 0.2

"""The automatic mode in a simulated engine: it gains where there is something to gain."""

from __future__ import annotations

from statistics import mean

import pytest

from bench.speculate_simulated import (
    SimulatedDrafter,
    World,
    always,
    best_fixed,
    flipping,
    head,
    model,
    ngram,
    simulate,
    speedup,
)
from decode_worker.speculate.policy import Budget, Candidate, StepLoad, StepReport
from decode_worker.speculate.utility import Utility
from triptych.drafters.drafter import Verdict
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.sequence import Sequence

BATCHES = [1, 4, 16, 32]
RANDOM = {
    "ngram": ngram(always(0.03), always(0.3)),
    "head": head(always(0.05)),
    "model": model(always(0.05)),
}


def world(*drafters: SimulatedDrafter, batch: int, seed: int = 0, **more: int | float) -> World:
    return World(drafters, lambda at: batch, seed=seed, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("drafter", RANDOM)
def test_random_text_loses_at_most_two_percent(drafter: str, batch: int) -> None:
    assert speedup(simulate(Utility(), world(RANDOM[drafter], batch=batch), 600)) > 0.98


@pytest.mark.parametrize("batch", BATCHES)
def test_three_useless_drafters_lose_no_more_than_one(batch: int) -> None:
    assert speedup(simulate(Utility(), world(*RANDOM.values(), batch=batch), 600)) > 0.98


@pytest.mark.parametrize("batch", [1, 16])
def test_costs_that_no_table_explains_lose_at_most_two_percent(batch: int) -> None:
    history = simulate(Utility(), world(ngram(always(0.3)), batch=batch, hidden=5e-3), 600)
    assert speedup(history) > 0.98


@pytest.mark.parametrize("batch", BATCHES)
def test_copied_text_is_about_as_fast_as_with_the_best_fixed_length(batch: int) -> None:
    shares = []
    for seed in range(3):
        copies = world(ngram(always(0.92)), batch=batch, seed=seed)
        history = simulate(Utility(), copies, 400)[100:]
        shares.append(speedup(history) / best_fixed(copies, 0))
    assert mean(shares) > 0.9


@pytest.mark.parametrize("batch", [1, 16])
def test_it_stops_within_twenty_rounds_after_text_stops_repeating(batch: int) -> None:
    history = simulate(Utility(), world(ngram(flipping(0.92, 0.03, 200)), batch=batch), 400)
    assert speedup(history[220:]) > 0.95


@pytest.mark.parametrize("batch", [1, 16])
def test_it_speculates_again_within_twenty_rounds_after_text_repeats(batch: int) -> None:
    shares = []
    for seed in range(3):
        flips = world(ngram(flipping(0.92, 0.03, 200)), batch=batch, seed=seed)
        history = simulate(Utility(), flips, 440)
        # Of the best: what it reached itself before the text changed.
        shares.append(speedup(history[420:]) / speedup(history[100:200]))
    assert mean(shares) > 0.9


def test_every_sequence_gets_the_drafter_that_suits_it() -> None:
    both = world(
        SimulatedDrafter(
            "ngram", lambda at, which: 0.03 if which % 2 else 0.6, lambda n, k: 4e-5 * n
        ),
        head(lambda at, which: 0.8 if which % 2 else 0.3),
        batch=4,
    )
    last = simulate(Utility(), both, 300)[200:]
    asked = [[step.asked[which].drafter for step in last] for which in range(4)]
    assert asked[0].count("ngram") > 60 and asked[2].count("ngram") > 60
    assert asked[1].count("head") > 50 and asked[3].count("head") > 50


def test_the_same_history_leads_to_the_same_decisions() -> None:
    one, two = (
        simulate(Utility(), world(*RANDOM.values(), batch=4, life=50), 200) for _ in range(2)
    )
    assert one == two


def test_sequences_that_ended_are_forgotten() -> None:
    policy = Utility()
    simulate(policy, world(*RANDOM.values(), batch=4, life=10), 200)
    assert len(policy.beliefs) <= 4


def test_before_any_plain_step_nothing_is_drafted_and_then_something_is() -> None:
    policy = Utility()
    sequence = Sequence("a", [1], b"", 16)
    load = StepLoad((Candidate(sequence, 8, ("ngram",)),), 0, 100)
    plain = StepReport((Verdict(sequence, NO_DRAFT, (), (1,)),), 1, 100, {}, 0.013)
    for _ in range(2):
        assert policy.plan(load) == [Budget()]
        policy.observe(plain)
    assert policy.plan(load)[0].drafter == "ngram"


def test_of_a_cheap_and_a_dear_draft_the_better_one_is_verified() -> None:
    policy, sequence = Utility(), Sequence("a", [1, 2, 3], b"", 16)
    load = StepLoad((Candidate(sequence, 15, ("suffix", "eagle3")),), 0, 100)
    for _ in range(3):
        policy.plan(load)
        policy.observe(StepReport((Verdict(sequence, NO_DRAFT, (), (4,)),), 1, 100, {}, 0.013))
    sure = Draft((4, 5, 6), confidence=(0.95, 0.95, 0.95), drafter="suffix")
    vague = Draft((7, 8), (-1, -1), confidence=(0.3, 0.2), drafter="eagle3")
    for first, second in ((sure, vague), (vague, sure)):
        policy.plan(load)
        policy.improve(load, [first])
        (kept,) = policy.trim(load, [second])
        assert kept.drafter == sure.drafter


@pytest.mark.parametrize("may_sleep", [True, False])
def test_a_head_that_rests_for_long_need_not_see_what_is_decoded(may_sleep: bool) -> None:
    policy = Utility(may_sleep=may_sleep)
    simulate(policy, world(head(always(0.3)), batch=1), 20)
    assert not policy.asleep(), "it is tried"
    simulate(policy, world(head(always(0.02)), batch=1), 600)
    assert list(policy.asleep()) == (["head"] if may_sleep else [])

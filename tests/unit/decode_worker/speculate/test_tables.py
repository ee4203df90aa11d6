"""What the policies believe of costs, nodes and drafts, each by itself."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from decode_worker.speculate.best_nodes import best_count, keep_best
from decode_worker.speculate.breaks import Breaks
from decode_worker.speculate.costs import StepCosts
from decode_worker.speculate.das import Tail, accepted, best_steps, nodes_per_step, proposals_for
from decode_worker.speculate.dear import Asker, best_order
from decode_worker.speculate.draft_costs import DraftCosts
from decode_worker.speculate.guard import FIRST_BREAK, Guard, Mode
from decode_worker.speculate.policy import Budget, Candidate, StepLoad
from decode_worker.speculate.table import Table
from decode_worker.speculate.tracks import LONGEST_WAIT, Track
from decode_worker.speculate.trust import Trust, labels_of
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence


def sequences(count: int) -> list[Sequence]:
    return [Sequence(str(at), [1], b"", 16) for at in range(count)]


def load_of(own: list[Sequence], nodes: int = 8) -> StepLoad:
    return StepLoad(tuple(Candidate(s, nodes, ("ngram",)) for s in own), 0, 100)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_nodes_are_those_that_brute_force_finds(seed: int) -> None:
    random = Random(seed)
    seconds = [1.0]
    for _ in range(8):
        seconds.append(seconds[-1] + random.choice([0.0, 0.05, 0.4]))
    nodes = [random.random() for _ in range(8)]
    count = best_count(sorted(nodes, reverse=True), 2, seconds)
    best = max(
        (2 + sum(some)) / seconds[size] for size in range(9) for some in combinations(nodes, size)
    )
    kept = sum(sorted(nodes, reverse=True)[:count])
    assert (2 + kept) / seconds[count] == pytest.approx(best)


@pytest.mark.parametrize("count", range(7))
def test_a_node_is_never_kept_without_its_parent(count: int) -> None:
    tree = Draft((1, 2, 3, 4), parents=(-1, -1, 0, 2), drafter="ngram")
    trust = Trust()
    chain = Draft((1, 2, 3), confidence=(0.99, 0.5, 0.999), drafter="ngram")
    keep = keep_best(
        [trust.offer(tree, 8, 1.0).survival, trust.offer(chain, 8, 1.0).survival], count
    )
    for draft, kept in zip((tree, chain), keep, strict=True):
        assert all(draft.parent(n) == -1 or kept[draft.parent(n)] for n, k in enumerate(kept) if k)
    assert sum(map(sum, keep)) == count


def test_a_sequence_that_accepts_nothing_is_soon_believed_to() -> None:
    trust, track, draft = Trust(), Track(0.5), Draft((1, 2, 3), drafter="ngram")
    for _ in range(20):
        track.judge(trust.learn(trust.offer(draft, 16, 1.0), labels_of(draft, (0, 1, 2))), 3)
    assert trust.offer(draft, 8, track.factor).survival[0] > 0.8
    for _ in range(6):
        track.judge(trust.learn(trust.offer(draft, 16, 1.0), labels_of(draft, ())), 0)
    assert trust.offer(draft, 8, track.factor).survival[0] < 0.6


def test_a_drafter_that_boasts_is_believed_less_than_one_that_is_right() -> None:
    boasts, honest = Trust(), Trust()
    draft = Draft((1,), confidence=(0.95,), drafter="head")
    for _ in range(50):
        boasts.learn(boasts.offer(draft, 16, 1.0), labels_of(draft, ()))
        honest.learn(honest.offer(draft, 16, 1.0), labels_of(draft, (0,)))
    assert (
        boasts.offer(draft, 16, 1.0).survival[0]
        < 0.2
        < 0.9
        < honest.offer(draft, 16, 1.0).survival[0]
    )


def test_longer_offers_may_be_surer_than_short_ones() -> None:
    trust = Trust()
    short, long = (Draft((1,) * n, confidence=(1.0,) * n, drafter="suffix") for n in (1, 8))
    for _ in range(50):
        trust.learn(trust.offer(short, 16, 1.0), labels_of(short, ()))
        trust.learn(trust.offer(long, 16, 1.0), labels_of(long, range(8)))
    assert (
        trust.offer(short, 16, 1.0).survival[0] < 0.3 < 0.8 < trust.offer(long, 16, 1.0).survival[0]
    )


def test_who_has_nothing_is_asked_less_and_less_until_it_is_right() -> None:
    track, step, waits = Track(0.5), 0, []
    for _ in range(40):
        track.asked(step, 0.0, 0.01)
        waits.append(track.due - step)
        step = track.due
    assert waits == sorted(waits) and waits[-1] == LONGEST_WAIT + 1
    track.promises(step)
    assert track.due == step


def test_one_length_is_chosen_for_all_who_ask_a_dear_drafter() -> None:
    good, poor = Asker(0, [0.9, 0.8, 0.7], 0.0), Asker(1, [0.2, 0.05], 0.0)
    order = best_order([good, poor], row=0.1, price=lambda n, nodes: 0.3 * nodes, margin=0.0)
    assert order.places == (0, 1) and order.nodes == 3
    assert order.gain == pytest.approx(0.8 + 0.7 + 0.6 + 0.1 - 0.9)


def test_nobody_asks_a_dear_drafter_that_brings_less_than_it_costs() -> None:
    good = Asker(0, [0.9, 0.8], made=1.4)
    assert not best_order([good], row=0.0, price=lambda n, nodes: 0.31, margin=0.0).places


def test_siblings_are_judged_and_what_lies_below_a_wrong_node_is_not() -> None:
    tree = Draft((1, 2, 3, 4), parents=(-1, -1, 0, 1))
    assert labels_of(tree, (0, 2)) == [(0, True), (1, False), (2, True)]


def test_measured_costs_keep_their_steps_and_never_fall() -> None:
    costs = StepCosts()
    for at in range(400):
        nodes = (0, 1, 3, 4, 8)[at % 5]
        costs.learn(1, nodes, 100, 0.010 if nodes < 4 else 0.015)
    curve = costs.curve(1, 100, 32)
    assert curve[3] < 0.0115 < 0.0135 < curve[4] and curve == sorted(curve)
    assert curve[32] > curve[8] * 1.2  # never tried


def test_a_slow_spell_of_the_machine_does_not_look_like_dear_nodes() -> None:
    costs = StepCosts()
    for at in range(600):
        slow = 1.5 if at // 60 % 2 else 1.0
        costs.learn(1, 4 * (at % 20 != 0), 100, slow * (0.011 if at % 20 else 0.010))
    assert costs.ratios(1, 4)[4] == pytest.approx(1.1, abs=0.06)


def test_prompt_rows_make_nodes_cheap_in_comparison() -> None:
    costs = StepCosts()
    costs.learn(1, 0, 100, 0.013)
    costs.learn(513, 0, 100, 0.135)
    assert costs.ratios(513, 8)[8] < costs.ratios(1, 8)[8]


def test_untried_draft_lengths_cost_in_proportion() -> None:
    costs = DraftCosts()
    costs.learn("head", 1, 2, 0.003)
    assert costs.seconds("head", 1, 4) == pytest.approx(0.006)
    assert 0.003 < costs.seconds("head", 2, 2) < 0.006, "a batch is cheaper than its parts"
    assert costs.seconds("head", 1, 1) == pytest.approx(0.0015)


def test_breaks_double_while_speculation_keeps_losing() -> None:
    guard, lengths = Guard(), []
    for _ in range(3):
        while not guard.of(1).is_off:
            guard.observe(1.0, 1.2, 1.1, sequences=1)
        steps = 0
        while guard.of(1).is_off:
            assert guard.mode(1, plain_known=True) is not Mode.SPECULATE
            steps += 1
        lengths.append(steps)
    assert lengths == [FIRST_BREAK, 2 * FIRST_BREAK, 4 * FIRST_BREAK]


def test_what_loses_in_a_large_batch_is_not_held_against_a_small_one() -> None:
    guard = Guard()
    while not guard.of(16).is_off:
        guard.observe(1.0, 1.2, 1.1, sequences=16)
    assert guard.mode(16, plain_known=True) is not Mode.SPECULATE
    assert guard.mode(1, plain_known=True) is Mode.SPECULATE


def test_while_it_rests_it_looks_now_and_then_and_comes_back_for_a_better_promise() -> None:
    breaks = Breaks(64, 64)
    while not breaks.observe(1.0, 1.2, believed=1.1):
        pass
    looks = [0, 0]
    for price in (0.01, 0.08):
        breaks.looked(price)
        for _ in range(20):
            looks[price > 0.05] += breaks.looks
            assert not breaks.passes()
    assert looks == [5, 1], "seldom, if a look is dear"
    breaks.hears(1.2)
    assert breaks.is_off, "no better than what failed"
    breaks.hears(2.0)
    assert breaks.passes()


def test_a_rest_needs_no_decisions_but_looks_and_plain_steps_before_its_end() -> None:
    guard = Guard()
    assert not guard.rests(16), "it has not begun to rest"
    while not guard.of(16).is_off:
        guard.observe(1.0, 1.2, 1.1, sequences=16)
    decided = [
        None if guard.rests(16) else guard.mode(16, plain_known=True) for _ in range(FIRST_BREAK)
    ]
    assert decided.count(None) > FIRST_BREAK / 2
    assert decided.count(Mode.LOOK) >= 2
    assert None not in decided[-4:], "the next drafts are compared with these steps"
    assert guard.mode(16, plain_known=True) is Mode.SPECULATE


def test_drafts_by_length_reach_their_target_and_the_printed_formula_does_not() -> None:
    from math import log

    tail, steps = Tail(1000.0, ceiling=0.7, efficiency=1.3), 500.0
    ours = proposals_for(tail, steps)
    assert tail.length - accepted(tail, ours) == pytest.approx(steps)
    printed = -tail.length / tail.efficiency * log(1 - tail.ceiling * (1 - steps / tail.length))
    assert tail.length - accepted(tail, printed) > 1.2 * steps


def test_the_number_of_steps_is_the_cheapest() -> None:
    tails = [Tail(length) for length in (50.0, 100.0, 400.0, 1000.0)]

    def seconds(steps: float) -> float:
        return 0.013 * steps + 0.0004 * sum(proposals_for(tail, steps) for tail in tails)

    best = best_steps(tails, 0.013, 0.0004)
    assert all(seconds(best) <= seconds(best * by) + 1e-9 for by in (0.9, 0.99, 1.01, 1.1))
    assert nodes_per_step(tails, 0.013, 0.0004)[0] == 0 < nodes_per_step(tails, 0.013, 0.0004)[3]


def test_a_table_drafts_by_batch_size() -> None:
    table = Table("ngram", {1: 8, 4: 2, 16: 0})
    assert table.plan(load_of(sequences(3)))[0] == Budget("ngram", 8)
    assert table.plan(load_of(sequences(4)))[0] == Budget("ngram", 2)
    assert table.plan(load_of(sequences(20)))[0] == Budget()


def test_a_tree_promises_by_its_levels_however_many_nodes_they_have() -> None:
    """Wide trees are right at a level more often than any of their nodes."""
    trust = Trust()
    tree = Draft((1, 2, 3, 4, 5, 6), parents=(-1, -1, -1, 0, 0, 1), drafter="eagle3")
    for step in range(200):
        right = ((0, 3), (1, 5), (2,), ())[step % 4]
        trust.learn(trust.offer(tree, 16, 1.0), labels_of(tree, right))
    assert trust.breadth == pytest.approx(3.0, abs=0.1)
    first, second, *_ = trust.ahead(1.0, 8)
    assert first == pytest.approx(0.75, abs=0.05)
    assert second == pytest.approx(0.5, abs=0.07)


def test_a_drafter_that_stops_by_itself_promises_no_more_levels() -> None:
    trust, draft = Trust(), Draft((1, 2), drafter="eagle3")
    for _ in range(200):
        trust.learn(trust.offer(draft, 16, 1.0), labels_of(draft, (0, 1)))
    assert sum(trust.ahead(1.0, 8)) == pytest.approx(2.0, abs=0.2)


def test_what_was_trimmed_from_a_tree_is_neither_right_nor_wrong() -> None:
    trust = Trust()
    tree = Draft((1, 2, 3), parents=(-1, -1, 1), confidence=(0.5, 0.05, 0.9), drafter="eagle3")
    keep = [False, True, True]
    for _ in range(100):
        offer = trust.offer(tree, 16, 1.0)
        left = offer.kept(keep)
        trust.learn(offer, labels_of(left, (0, 1)))
    survival = trust.offer(tree, 16, 1.0).survival
    assert survival[1] > 0.9, "the node that was kept was always right"
    assert survival[0] == pytest.approx(0.55, abs=0.1), "of the other one nothing was learned"

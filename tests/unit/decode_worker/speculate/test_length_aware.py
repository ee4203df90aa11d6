"""Length-aware budgets: the long tail drafts, and nothing is remembered that should not be."""

from __future__ import annotations

import pytest

from decode_worker.speculate.das_acceptance import Acceptance
from decode_worker.speculate.fixed import Fixed
from decode_worker.speculate.length_aware import LengthAware
from decode_worker.speculate.lengths import PROBLEMS, Lengths
from decode_worker.speculate.policy import Candidate, Introduced, StepLoad, StepReport
from decode_worker.speculate.utility import Utility
from triptych.drafters.drafter import Hints, Verdict
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence
from triptych.request import FinishReason

NODES = 64


def policy() -> LengthAware:
    return LengthAware(Fixed("suffix", NODES))


def sample(policy: LengthAware, problem: str, tenant: str = "") -> Sequence:
    sequence = Sequence("a", [1], b"", 16)
    policy.begin(sequence, Hints(tenant, problem))
    return sequence


def finish(policy: LengthAware, sequence: Sequence, length: int) -> None:
    sequence.tokens = [1] * (1 + length)
    sequence.finish_reason = FinishReason.STOP
    policy.forget(sequence)


def history(policy: LengthAware, **lengths: int) -> None:
    for problem, length in lengths.items():
        for _ in range(4):
            finish(policy, sample(policy, problem), length)


def nodes(policy: LengthAware, *drawing: Sequence) -> list[int]:
    load = StepLoad(tuple(Candidate(s, NODES, ("suffix",)) for s in drawing), 0, 100)
    return [budget.max_nodes for budget in policy.plan(load)]


def test_the_long_tail_gets_the_drafts_and_the_short_ones_get_none() -> None:
    subject = policy()
    history(subject, short=10, medium=600, long=1000)
    drawing = [sample(subject, problem) for problem in ("short", "medium", "long")]
    short, medium, long = nodes(subject, *drawing)
    assert short == 0 < medium < long


def test_while_samples_wait_nobody_is_held_back() -> None:
    subject = policy()
    history(subject, short=10, long=1000)
    drawing = [sample(subject, problem) for problem in ("short", "long")]
    waiting = sample(subject, "long")
    assert nodes(subject, *drawing) == [NODES, NODES]
    subject.forget(waiting)
    assert nodes(subject, *drawing)[0] == 0


def test_of_unknown_problems_all_samples_get_the_same() -> None:
    subject = policy()
    drawing = [sample(subject, problem) for problem in ("a", "b", "")]
    first, *others = nodes(subject, *drawing)
    assert first > 0 and others == [first, first]


def test_an_answer_that_outgrows_its_problem_is_long() -> None:
    subject = policy()
    history(subject, short=10, long=100)
    grown, other = sample(subject, "short"), sample(subject, "long")
    grown.tokens = [1] * 400
    assert nodes(subject, grown, other)[0] > 0


def test_one_tenants_lengths_say_nothing_about_anothers() -> None:
    subject = policy()
    history(subject, sum=10)
    for _ in range(20):
        finish(subject, sample(subject, "sum", tenant="ann"), 1000)
    own, anns = sample(subject, "sum"), sample(subject, "sum", tenant="ann")
    short, long = nodes(subject, own, anns)
    assert short == 0 < long


def test_drafts_that_are_never_right_get_shorter_budgets_than_those_that_are() -> None:
    found = []
    for right in (0, 4):
        subject = policy()
        one, two = sample(subject, "a"), sample(subject, "b")
        draft = Draft((5, 6, 7, 8), drafter="suffix")
        verdict = Verdict(one, draft, tuple(range(right)), (9,))
        for _ in range(300):
            subject.observe(StepReport((verdict,), 5, 100, {}, 0.01))
        found.append(nodes(subject, one, two)[0])
    assert found[0] < found[1]


def test_a_node_that_costs_much_is_drafted_less() -> None:
    found = []
    for seconds in (0.0101, 0.030):
        subject = policy()
        one, two = sample(subject, "a"), sample(subject, "b")
        draft = Draft((5,) * 16, drafter="suffix")
        plain, drafted = Verdict(one, Draft(()), (), (9,)), Verdict(one, draft, (0,), (9, 9))
        for _ in range(50):
            subject.observe(StepReport((plain,), 2, 100, {}, 0.010))
            subject.observe(StepReport((drafted,), 18, 100, {}, seconds))
        found.append(nodes(subject, one, two)[0])
    assert found[0] > found[1]


def test_cancelled_answers_teach_no_length() -> None:
    subject = policy()
    cancelled = sample(subject, "a")
    subject.forget(cancelled)
    assert len(subject._lengths) == 0


def test_what_ended_is_forgotten_and_old_problems_are_too() -> None:
    subject = policy()
    for number in range(PROBLEMS + 10):
        ended = sample(subject, str(number))
        if number % 1000 == 0:
            nodes(subject, ended)
        finish(subject, ended, 5)
    assert not subject._problems and not subject._caps
    assert len(subject._lengths) == PROBLEMS


def test_only_policies_that_ask_for_it_hear_of_beginnings() -> None:
    assert isinstance(policy(), Introduced)
    assert not isinstance(Utility(), Introduced)


@pytest.mark.parametrize("accepted", [0, 2, 8])
def test_the_share_of_accepted_tokens_is_found(accepted: int) -> None:
    told = Acceptance()
    draft = Draft(tuple(range(8)), drafter="suffix")
    sequence = Sequence("a", [1], b"", 16)
    for _ in range(5000):
        told.learn(Verdict(sequence, draft, tuple(range(accepted)), ()))
    assert told.ceiling == pytest.approx(max(0.05, accepted / (1 + accepted)), abs=0.02)


def test_the_length_expected_of_a_sample_is_that_of_those_that_got_as_far() -> None:
    lengths = Lengths()
    for length in (10, 20, 300):
        lengths.finished("a", length)
    assert lengths.expected_left("a", 0) == 110
    assert lengths.expected_left("a", 100) == 200
    assert lengths.expected_left("b", 100) == 200, "of no known problem: as all others"
    assert lengths.expected_left("a", 400) == 400, "longer than any: as long again"

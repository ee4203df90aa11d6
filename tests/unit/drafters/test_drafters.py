"""What holds for every drafter that works from text alone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from triptych.drafters.drafter import Ask, Drafter, Hints, Verdict
from triptych.engine.draft import NO_DRAFT, ROOT, Draft
from triptych.testing.replay import replay

PROSE = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]


def test_what_followed_before_is_drafted(drafter: Drafter, talk: Any) -> None:
    assert talk(drafter, [10, 11, 12, 13, 14, 15, 99, 10, 11, 12]).draft(3).tokens == (13, 14, 15)


def test_nothing_is_drafted_where_nothing_matches(drafter: Drafter, talk: Any) -> None:
    assert talk(drafter, range(50)).draft() == NO_DRAFT


@pytest.mark.parametrize("seed", range(5))
def test_a_draft_is_never_larger_than_asked_for(drafter: Drafter, talk: Any, seed: int) -> None:
    source = random.Random(seed)
    subject = talk(drafter, source.choices(range(3), k=60))
    for max_nodes in (1, 2, 3, 8, 40):
        draft = subject.draft(max_nodes)
        assert 0 < len(draft) <= max_nodes
        assert len(draft.confidence) == len(draft)
        assert all(0 < confidence <= 1 for confidence in draft.confidence)
        assert all(ROOT <= draft.parent(node) < node for node in range(len(draft)))


@pytest.mark.parametrize("seed", range(5))
def test_growth_between_two_calls_may_be_of_any_length(
    drafter: Drafter, talk: Any, seed: int
) -> None:
    source = random.Random(seed)
    text = source.choices(range(4), k=400)
    often, seldom = talk(drafter, text[:1]), talk(drafter, text[:1])
    num_seen = 1
    while num_seen < len(text):
        added = text[num_seen : num_seen + source.choice([0, 1, 2, 30])]
        num_seen += len(added)
        for token in added:
            often.say([token]).draft()
        seldom.say(added)
        assert seldom.draft().tokens == often.draft().tokens


def test_sequences_keep_apart(drafter: Drafter, talk: Any) -> None:
    talk(drafter, PROSE * 2).draft()
    assert talk(drafter, [7, 7, 3, 1, 4]).draft().tokens != (1, 5, 9)


def test_answers_come_in_the_order_of_the_asks(drafter: Drafter, talk: Any) -> None:
    first, cold, second = (
        talk(drafter, prompt) for prompt in ([1, 2, 3, 4, 1, 2], range(20), [5, 6, 7, 8, 5, 6])
    )
    asks = [Ask(subject.sequence, 2) for subject in (first, cold, second)]
    assert [draft.tokens for draft in drafter.propose(asks)] == [(3, 4), (), (7, 8)]


def test_a_restarted_sequence_drafts_on(drafter: Drafter, talk: Any) -> None:
    subject = talk(drafter, PROSE * 2)
    before = subject.draft()
    subject.sequence.restart()
    assert subject.draft().tokens == before.tokens


def test_strangers_and_second_ends_are_harmless(drafter: Drafter, talk: Any) -> None:
    subject = talk(drafter, PROSE * 2)
    draft = subject.draft()
    subject.end()
    subject.end()
    drafter.observe([Verdict(subject.sequence, draft, (), (1,))])
    assert subject.draft() == NO_DRAFT


def test_drafts_of_others_are_observed_without_harm(drafter: Drafter, talk: Any) -> None:
    subject = talk(drafter, PROSE)
    foreign = Draft((1, 2, 3), drafter="somebody else")
    subject.say([1, 2])
    drafter.observe([Verdict(subject.sequence, foreign, (0,), (1, 2))])
    assert subject.draft() is not None


def test_a_repeated_answer_takes_a_fraction_of_the_rounds(drafter: Drafter) -> None:
    source = random.Random(1)
    text = source.choices(range(1000), k=200)
    walked = replay(drafter, text, text, max_nodes=8)
    assert walked.tokens == 200
    assert walked.tokens_per_round > 6
    cold = replay(drafter, [5], text, max_nodes=8, hints=Hints("somebody else"))
    assert cold.tokens_per_round < 1.2

"""The suffix drafter learns from earlier answers, of one tenant and one problem only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from triptych.drafters.drafter import Hints, Verdict
from triptych.drafters.suffix import SuffixDrafter, SuffixOptions
from triptych.engine.draft import NO_DRAFT
from triptych.testing.replay import replay
from triptych_kernels.suffix_tree import PythonSuffixTree, Window

ANSWER = list(range(100, 160))
OTHER = list(range(500, 560))


def drafter_with_history(hints: Hints, **options: Any) -> SuffixDrafter:
    drafter = SuffixDrafter(SuffixOptions(**options))
    replay(drafter, [1, 2, 3], ANSWER, hints=hints)
    return drafter


@pytest.mark.parametrize("problem", ["", "sum"])
def test_an_earlier_answer_is_drafted(problem: str, talk: Any) -> None:
    hints = Hints("ann", problem)
    subject = talk(drafter_with_history(hints), [1, 2, 3], hints)
    assert subject.draft(3).tokens == (100, 101, 102)


@pytest.mark.parametrize(
    "hints", [Hints("ben", "sum"), Hints("ben"), Hints("", "sum"), Hints("ann", "other")]
)
def test_nobody_else_sees_it(hints: Hints, talk: Any) -> None:
    drafter = drafter_with_history(Hints("ann", "sum"))
    assert talk(drafter, [1, 2, 3, 100, 101], hints).draft() == NO_DRAFT


def test_samples_of_a_problem_see_each_other_while_they_are_written(talk: Any) -> None:
    drafter = SuffixDrafter(SuffixOptions(share_every=20))
    hints = Hints("ann", "sum")
    ahead, behind = talk(drafter, [1, 2, 3], hints), talk(drafter, [1, 2, 3], hints)
    for token in ANSWER[:39]:
        ahead.say([token])
        drafter.observe([Verdict(ahead.sequence, NO_DRAFT, (), (token,))])
    assert behind.draft(3).tokens == (100, 101, 102)
    assert behind.say(ANSWER[:17]).draft(8).tokens == (117, 118, 119), "shared up to here"
    ahead.end()
    assert behind.draft(8).tokens == tuple(range(117, 125)), "across the parts it came in"


def test_what_was_shared_on_the_way_is_not_counted_again_at_the_end(talk: Any) -> None:
    hints = Hints("ann", "sum")
    by_parts = drafter_with_history(hints, share_every=8)
    at_once = drafter_with_history(hints, share_every=1000)
    drafts = [
        [talk(drafter, [7, *ANSWER[:n]], hints).draft() for n in range(1, 60)]
        for drafter in (by_parts, at_once)
    ]
    assert drafts[0] == drafts[1]


def test_the_sequence_itself_wins_ties(talk: Any) -> None:
    drafter = SuffixDrafter()
    replay(drafter, [9], [1, 2, 8])
    assert talk(drafter, [1, 2, 7, 1, 2]).draft(1).tokens == (7,)


def test_prompts_are_not_shared(talk: Any) -> None:
    drafter = SuffixDrafter()
    replay(drafter, [1, 2, 3, 4, 5], [100])
    assert talk(drafter, [1, 2, 3]).draft() == NO_DRAFT


def test_the_history_of_all_is_bounded_and_the_heaviest_pays(talk: Any) -> None:
    window = Window(max_tokens=2000, segment_tokens=500)
    options = SuffixOptions(shared=window, total_shared_tokens=4000)
    drafter = SuffixDrafter(options)
    replay(drafter, [1, 2, 3], ANSWER, hints=Hints("ann", "sum"))
    for number in range(20):
        replay(drafter, [2000], range(1000), max_nodes=64, hints=Hints("ben", str(number)))
        assert drafter.shared.num_tokens <= 4000
    assert talk(drafter, [1, 2, 3], Hints("ann", "sum")).draft(1).tokens == (100,)
    assert talk(drafter, [2000], Hints("ben", "19")).draft(1).tokens == (0,)
    assert talk(drafter, [2000], Hints("ben", "0")).draft(1) == NO_DRAFT


def test_ended_sequences_leave_no_memory_of_their_own() -> None:
    drafter = SuffixDrafter(SuffixOptions(shared=Window(400, 100), total_shared_tokens=400))
    for _ in range(30):
        replay(drafter, OTHER, ANSWER, hints=Hints("ann"))
    most = drafter.shared.num_bytes
    for _ in range(100):
        replay(drafter, OTHER, ANSWER, hints=Hints("ann"))
    assert drafter.shared.num_bytes <= most
    assert not drafter._states


class CountedTree(PythonSuffixTree):
    """Knows how many tokens it was given."""

    num_pushed = 0

    def push(self, tokens: Sequence[int]) -> None:
        CountedTree.num_pushed += len(tokens)


def test_each_token_is_taken_in_once(talk: Any) -> None:
    CountedTree.num_pushed = 0
    subject = talk(SuffixDrafter(make_tree=CountedTree), range(100_000))
    while CountedTree.num_pushed < 100_000:
        subject.draft()
    for token in range(10):
        subject.say([token]).draft()
    assert CountedTree.num_pushed == 100_010


def test_a_huge_prompt_is_taken_in_by_parts(talk: Any) -> None:
    drafter = SuffixDrafter(SuffixOptions(catch_up_tokens=100))
    late = talk(drafter, [*range(200), 150, 151])
    assert [late.draft(1).tokens for _ in range(2)] == [(), (152,)]


def test_an_earlier_rollout_of_the_problem_saves_rounds() -> None:
    drafter = SuffixDrafter()
    hints = Hints("ann", "sum")
    alone = replay(drafter, [1, 2, 3], ANSWER, hints=hints)
    after = replay(drafter, [1, 2, 3], [*ANSWER[:30], 7, *ANSWER[31:]], hints=hints)
    assert alone.tokens_per_round == 1
    assert after.tokens_per_round > 5

"""Prompt lookup finds the longest, newest match and does a constant amount of work per token."""

from __future__ import annotations

import random
from typing import Any

import pytest

from triptych.drafters.calibration import HitRates
from triptych.drafters.drafter import Verdict
from triptych.drafters.ngram import NgramDrafter, NgramIndex
from triptych.engine.draft import Draft


class CountedTokens(list[int]):
    """Knows how many of its items were read."""

    num_read = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.num_read += len(found) if isinstance(key, slice) else 1
        return found


def longest_match(text: list[int], min_n: int, max_n: int) -> tuple[int, int]:
    for length in range(max_n, min_n - 1, -1):
        for end in range(len(text) - 1, length - 1, -1):
            if text[end - length : end] == text[-length:]:
                return length, end
    return 0, 0


@pytest.mark.parametrize("seed", range(10))
def test_the_longest_and_newest_match_is_found(seed: int) -> None:
    source = random.Random(seed)
    text = source.choices(range(3), k=1)
    index = NgramIndex(2, 5)
    for _ in range(200):
        text += source.choices(range(3), k=source.randrange(4))
        index.extend(text, 100)
        assert index.find(text) == longest_match(text, 2, 5)


def test_a_match_shorter_than_wanted_is_none(talk: Any) -> None:
    assert not talk(NgramDrafter(min_n=3), [1, 2, 3, 4, 9, 1, 2]).draft()
    assert talk(NgramDrafter(min_n=2), [1, 2, 3, 4, 9, 1, 2]).draft(2).tokens == (3, 4)


def test_a_loop_is_drafted_past_the_end_of_the_text(talk: Any) -> None:
    assert talk(NgramDrafter(), [1, 2, 3] * 3).draft(7).tokens == (1, 2, 3, 1, 2, 3, 1)


def test_a_token_more_costs_the_same_in_a_huge_context() -> None:
    text = CountedTokens(random.Random(1).choices(range(50_000), k=100_000))
    index = NgramIndex(2, 5)
    index.extend(text, len(text))
    text.num_read = 0
    for token in (1, 2, 3):
        text.append(token)
        index.extend(text, 100)
        index.find(text)
    assert text.num_read < 100


def test_a_huge_prompt_is_taken_in_by_parts(talk: Any) -> None:
    drafter = NgramDrafter(catch_up_tokens=100)
    subject = talk(drafter, [*range(200), 0, 1])
    assert subject.draft(2).tokens == (2, 3)
    late = talk(drafter, [*range(200), 150, 151])
    assert [late.draft(1).tokens for _ in range(3)] == [(), (152,), (152,)]


def test_confidence_becomes_what_was_right(talk: Any) -> None:
    drafter = NgramDrafter()
    subject = talk(drafter, [1, 2, 3, 4, 5, 1, 2])
    first = subject.draft(2)
    assert first.confidence == (2 / 3, 2 / 3)
    for _ in range(500):  # the first token is always right, the second never
        drafter.observe([Verdict(subject.sequence, first, (0,), (3, 9))])
    learned = subject.draft(2)
    assert learned.confidence[0] > 0.98
    assert learned.confidence[1] < 0.02


def test_nodes_that_nobody_tested_teach_nothing() -> None:
    rates = HitRates()
    draft = Draft((7, 8, 9))
    rates.learn(2, Verdict(None, draft, (0,), (7,)))  # type: ignore[arg-type]  # it ended there
    assert rates.rate(2, 1) > 2 / 3
    assert rates.rate(2, 2) == 2 / 3
    rates.learn(2, Verdict(None, draft, (0,), (7, 1)))  # type: ignore[arg-type]
    assert rates.rate(2, 2) < 2 / 3
    assert rates.rate(2, 3) == 2 / 3


def test_new_habits_outweigh_old_ones() -> None:
    rates = HitRates()
    right, wrong = ((0,), (7, 1)), ((), (1,))
    for path, new_tokens in [right] * 5000 + [wrong] * 2000:
        rates.learn(2, Verdict(None, Draft((7,)), path, new_tokens))  # type: ignore[arg-type]
    assert rates.rate(2, 1) < 0.1

"""A late draft is worth what it still says about the text."""

from __future__ import annotations

from decode_worker.speculate.patience import Patience
from triptych.drafters.context_hash import ContextHash
from triptych.drafters.late import behind
from triptych.engine.draft import NO_DRAFT, Draft

TREE = Draft((5, 6, 7, 8, 9), parents=(-1, -1, 1, 1, 3), confidence=(0.1, 0.2, 0.3, 0.4, 0.5))


def test_what_follows_the_tokens_that_came_is_left() -> None:
    assert behind(Draft((1, 2, 3, 4)), [1, 2]) == Draft((3, 4))
    assert behind(TREE, [6]) == Draft((7, 8, 9), (-1, -1, 1), (0.3, 0.4, 0.5))
    assert behind(TREE, [6, 8]) == Draft((9,), (-1,), (0.5,))
    assert behind(TREE, []) == TREE


def test_nothing_is_left_of_a_draft_that_was_wrong_or_is_used_up() -> None:
    assert behind(Draft((1, 2)), [1, 3]) == NO_DRAFT
    assert not behind(Draft((1, 2)), [1, 2])
    assert behind(Draft((1, 2)), [1, 2, 3]) == NO_DRAFT
    assert behind(TREE, [5, 7]) == NO_DRAFT


def test_a_context_has_one_hash_however_it_grew() -> None:
    once, bit_by_bit = ContextHash(), ContextHash()
    bit_by_bit.extend([1])
    bit_by_bit.extend([2, 1 << 31])
    assert once.extend([1, 2, 1 << 31]) == bit_by_bit.extend([])
    assert once.num_tokens == bit_by_bit.num_tokens == 3


def test_a_step_waits_no_longer_than_the_drafts_are_worth() -> None:
    patience = Patience(most_s=0.005)
    assert patience.wait_s(1) == 0.005, "nothing is known yet"
    patience.learn(running=10, accepted=[], step_s=0.02)
    assert patience.wait_s(1) == 0.002, "one of ten sequences gains a token"
    assert patience.wait_s(10) == 0.005
    for _ in range(200):
        patience.learn(running=10, accepted=[0] * 10, step_s=0.02)
    assert patience.wait_s(10) < 1e-5, "drafts that are never right are not waited for"

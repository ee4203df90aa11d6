"""A switching drafter asks whoever pays where the text stands, and keeps trying the other."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import pytest
import torch

from triptych.drafters.drafter import Ask, Hints, Verdict
from triptych.drafters.switching import Gate, SwitchingDrafter, bucket_of, entropy_of
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence
from triptych.request import SamplingParams

CERTAIN = torch.tensor([20.0, 0.0, 0.0, 0.0])
OPEN = torch.zeros(64)


class Scripted:
    """Drafts one token, and tells how often it was asked."""

    def __init__(self, name: str, token: int) -> None:
        self.name = name
        self._token = token
        self.num_asked = 0
        self.num_observed = 0
        self.known: set[Sequence] = set()

    def begin(self, sequence: Sequence, hints: Hints) -> None:
        self.known.add(sequence)

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        self.num_asked += len(asks)
        return [Draft((self._token,) * 2) for _ in asks]

    def observe(self, verdicts: Seq[Verdict]) -> None:
        self.num_observed += len(verdicts)

    def end(self, sequence: Sequence) -> None:
        self.known.discard(sequence)


def sequence() -> Sequence:
    params = SamplingParams(seed=1, max_tokens=1000)
    return Sequence("one", [1, 2, 3], b"", 16, params)


def test_entropy_tells_certain_from_open() -> None:
    assert entropy_of(CERTAIN) < 0.01
    assert entropy_of(OPEN) == pytest.approx(4.1589, abs=1e-3)
    assert bucket_of(entropy_of(CERTAIN)) < bucket_of(entropy_of(OPEN))


def test_entropy_takes_forbidden_tokens() -> None:
    assert entropy_of(torch.tensor([0.0, -torch.inf, 0.0])) == pytest.approx(0.6931, abs=1e-3)


def test_each_drafter_gets_the_places_where_it_is_right() -> None:
    """`first` is right where the target is certain, `second` where it is not."""
    first, second = Scripted("first", 1), Scripted("second", 2)
    drafter = SwitchingDrafter([first, second], clock=iter(range(10**9)).__next__)
    one = sequence()
    drafter.begin(one, Hints())
    asked_when_certain, asked_when_open = [0, 0], [0, 0]
    for number in range(400):
        certain = number % 2 == 0  # this round's token; the gate learned it from the round before
        before = first.num_asked, second.num_asked
        (draft,) = drafter.propose([Ask(one, 2)])
        chose = 0 if first.num_asked > before[0] else 1
        (asked_when_certain if certain else asked_when_open)[chose] += 1
        right = (draft.tokens[0] == 1) == certain
        path, logits = ((0, 1) if right else ()), (OPEN if certain else CERTAIN)
        drafter.observe([Verdict(one, draft, path, (5,) * (len(path) + 1), logits)])
    assert asked_when_certain[0] > 5 * asked_when_certain[1]
    assert asked_when_open[1] > 5 * asked_when_open[0]
    assert asked_when_certain[1] > 3 and asked_when_open[0] > 3, "it keeps trying"
    assert first.num_observed == second.num_observed == 400


def test_a_draft_that_costs_more_than_it_brings_goes_to_the_cheap_one() -> None:
    gate = Gate(2)
    for _ in range(50):
        gate.learn(0, 1, 2)
        gate.learn(1, 1, 3)
    assert gate.choose(1, seconds=(0.0, 0.1), step_seconds=1.0) == 1
    assert gate.choose(1, seconds=(0.0, 2.0), step_seconds=1.0) == 0


def test_nothing_of_an_ended_sequence_stays() -> None:
    first, second = Scripted("first", 1), Scripted("second", 2)
    drafter = SwitchingDrafter([first, second])
    one = sequence()
    drafter.begin(one, Hints())
    drafter.propose([Ask(one, 2)])
    drafter.end(one)
    assert not first.known and not second.known
    assert not drafter._buckets and not drafter._asked

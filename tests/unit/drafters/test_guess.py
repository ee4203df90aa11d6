"""What drafters bet on is what the target will draw, as far as their logits are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.drafters.guess import Guesser
from triptych.engine.sampler import Sampler, Spot
from triptych.engine.sequence import Sequence
from triptych.request import SamplingParams

VOCAB = 500
EOS = (2,)


def spots_of(count: int, **wishes: Any) -> list[Spot]:
    spots = []
    for seed in range(count):
        params = SamplingParams(seed, 100, **wishes)
        sequence = Sequence(str(seed), [5, 6, 7, seed % 50], b"", 16, params)
        sequence.append(11)
        spots.append(Spot(sequence, (12, 13)))
    return spots


def logits_of(rows: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


WISHES: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 0.8, "top_k": 5, "min_p": 0.02},
    {"temperature": 0.9, "frequency_penalty": 1.5, "repetition_penalty": 1.2},
    {"temperature": 0.0, "logit_bias": {13: 50.0}},
    {"temperature": 1.0, "min_tokens": 50},
)


@pytest.mark.parametrize("wishes", WISHES, ids=str)
def test_a_drafter_that_knows_the_targets_logits_bets_on_the_token_it_draws(
    wishes: dict[str, Any],
) -> None:
    sampler = Sampler(EOS)
    spots, logits = spots_of(40, **wishes), logits_of(40)
    guesses = Guesser(sampler, VOCAB).children(logits, spots, 4)
    assert [found[0][0] for found in guesses] == sampler.draw(logits, spots)


@pytest.mark.parametrize("wishes", WISHES, ids=str)
def test_a_smaller_vocabulary_bets_on_the_same_tokens_where_it_has_them(
    wishes: dict[str, Any],
) -> None:
    sampler = Sampler(EOS)
    spots, logits = spots_of(40, **wishes), logits_of(40)
    ids = torch.arange(1, VOCAB, 2)
    logits[:, ::2] = -20.0
    guesses = Guesser(sampler, VOCAB, ids).children(logits[:, ids], spots, 4)
    pairs = zip(guesses, sampler.draw(logits, spots), strict=True)
    assert all(found[0][0] == token for found, token in pairs if token % 2)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_runners_up_are_drawn_when_the_drafter_errs(temperature: float) -> None:
    sampler = Sampler(EOS)
    spots, logits = spots_of(400, temperature=temperature), logits_of(400)
    drawn = sampler.draw(logits, spots)
    wrong = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(9))
    guesses = Guesser(sampler, VOCAB).children(wrong, spots, 8)
    first = sum(found[0][0] == token for found, token in zip(guesses, drawn, strict=True))
    any_ = sum(token in dict(found) for found, token in zip(guesses, drawn, strict=True))
    assert any_ > first + 60


def test_requests_of_all_kinds_share_a_call() -> None:
    sampler = Sampler(EOS)
    mixed = [spots_of(1, **wishes)[0] for wishes in WISHES * 3]
    logits, guesser = logits_of(len(mixed)), Guesser(sampler, VOCAB)
    together = guesser.children(logits, mixed, 4)
    for row, spot in enumerate(mixed):
        (alone,) = guesser.children(logits[row : row + 1], [spot], 4)
        assert [token for token, _ in alone] == [token for token, _ in together[row]]

"""Rules that are lossless in law, through the whole loop: other tokens, as frequent as ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq
from itertools import pairwise
from typing import Any

import pytest
import torch

from decode_worker.speculate.acceptance import InLaw
from decode_worker.speculate.fixed import Fixed
from triptych.drafters.drafter import Ask, Hints, Verdict
from triptych.engine.draft import Draft, Law
from triptych.engine.sequence import Sequence
from triptych.request import SamplingParams
from triptych_kernels.coins import Purpose, coins, stream
from triptych_kernels.verification import Verify, block, rejection, sample

TOKENS = (5, 6, 7)  # all that these requests may draw
LAW = Law(torch.tensor(TOKENS, dtype=torch.int32), torch.tensor([0.6, 0.3, 0.1]))
ANSWERS, LENGTH = 600, 3
LEAST_P = 1e-4


class Drawing:
    """Draws from `LAW`; or drafts the likeliest only, and says what it is told to."""

    name = "drawing"

    def __init__(self, *, draws: bool = True, states: bool = True) -> None:
        self._draws = draws
        self._states = states
        self.num_accepted = 0

    def begin(self, sequence: Sequence, hints: Hints) -> None: ...

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        return [self._draft(ask) for ask in asks]

    def observe(self, verdicts: Seq[Verdict]) -> None:
        self.num_accepted += sum(verdict.num_accepted for verdict in verdicts)

    def end(self, sequence: Sequence) -> None: ...

    def _draft(self, ask: Ask) -> Draft:
        sequence, count = ask
        assert sequence.params is not None
        own = stream(sequence.params.seed, Purpose.DRAFT)
        chance = coins(own, len(sequence.tokens), count)
        drawn = sample(LAW.probs.expand(count, -1), chance).tolist()
        tokens = [TOKENS[at if self._draws else 0] for at in drawn]
        return Draft(tuple(tokens), laws=(LAW,) * count if self._states else ())


def params_of(seed: int, temperature: float) -> SamplingParams:
    return SamplingParams(
        seed=seed,
        max_tokens=LENGTH,
        temperature=temperature,
        top_k=len(TOKENS),
        logit_bias=dict.fromkeys(TOKENS, 100.0),
        frequency_penalty=0.5,
        ignore_eos=True,
    )


def answers(home: Any, temperature: float, count: int) -> list[list[int]]:
    for seed in range(count):
        home.submit([9, 8, 7], params_of(seed, temperature))
    return list(home.run())


@pytest.fixture(params=[rejection, block], ids=["rejection", "block"])
def verify(request: pytest.FixtureRequest) -> Verify:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def speculating(make_home: Callable[..., Any], verify: Verify) -> Callable[[Drawing], Any]:
    def make(drafter: Drawing) -> Any:
        home = make_home(drafters={"drawing": drafter}, policy=Fixed("drawing", LENGTH))
        home.loop._speculator.rule = InLaw(verify)
        return home

    return make


def p_value(one: list[list[int]], other: list[list[int]]) -> float:
    """That both are draws from one law: chi-square over whole answers."""
    counts = [Counter(map(tuple, found)) for found in (one, other)]
    seen = torch.tensor([[own[a] for a in {*counts[0], *counts[1]}] for own in counts]).double()
    expected = seen.sum(0) * seen.sum(1, keepdim=True) / seen.sum()
    chi_square = ((seen - expected) ** 2 / expected).sum()
    freedom = torch.tensor(seen.shape[1] - 1.0, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, chi_square / 2))


@pytest.mark.parametrize("states", [True, False], ids=["laws", "fixed text"])
def test_answers_have_the_law_of_plain_sampling(
    make_home: Callable[..., Any], speculating: Callable[[Drawing], Any], states: bool
) -> None:
    drafter = Drawing(states=states)
    found = answers(speculating(drafter), 1.0, ANSWERS)
    plain = answers(make_home(), 1.0, ANSWERS)
    assert p_value(found, plain) > LEAST_P
    assert found != plain and drafter.num_accepted > ANSWERS / 3


def test_the_test_above_sees_a_drafter_that_lies(
    make_home: Callable[..., Any], speculating: Callable[[Drawing], Any]
) -> None:
    found = answers(speculating(Drawing(draws=False)), 1.0, ANSWERS)
    assert p_value(found, answers(make_home(), 1.0, ANSWERS)) < LEAST_P


def test_greedy_answers_are_those_of_plain_decoding(
    make_home: Callable[..., Any], speculating: Callable[[Drawing], Any]
) -> None:
    plain = answers(make_home(), 0.0, 3)
    assert answers(speculating(Drawing()), 0.0, 3) == plain


def test_the_same_drafts_give_the_same_answers(speculating: Callable[[Drawing], Any]) -> None:
    first, second = (answers(speculating(Drawing()), 1.0, 40) for _ in range(2))
    assert first == second
    assert any(one != other for one, other in pairwise(first)), "seeds matter"

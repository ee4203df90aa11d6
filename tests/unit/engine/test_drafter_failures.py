"""Whatever a drafter does, requests go on with the tokens of plain decoding."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from decode_worker.speculate.dice import Dice
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.request import SamplingParams
from triptych.testing.drafters import Answers, Failing, Misshapen, Oracle


def prompts() -> list[list[int]]:
    draw = random.Random(2)
    return [[draw.randrange(3, 250) for _ in range(n)] for n in (1, 16, 33, 130)]


def answers(home: Any) -> list[list[int]]:
    for index, prompt in enumerate(prompts()):
        home.submit(prompt, SamplingParams(seed=index, max_tokens=24 + index, temperature=0.8))
    return home.run()


@pytest.fixture
def plain(make_home: Callable[..., Any]) -> list[list[int]]:
    return answers(make_home())


def known(found: list[list[int]]) -> Answers:
    return {(tuple(prompt), index): found[index] for index, prompt in enumerate(prompts())}


@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize("verb", ["begin", "propose", "observe", "end"])
def test_a_drafter_that_fails_costs_nothing_but_its_drafts(
    make_home: Callable[..., Any],
    plain: list[list[int]],
    caplog: pytest.LogCaptureFixture,
    verb: str,
    at: int,
) -> None:
    failing = Failing(known(plain), verb, at)
    home = make_home(drafters={"failing": failing}, policy=Dice(9))
    assert answers(home) == plain
    assert failing.calls.count(verb) == at and failing.calls[-1] == verb, "it is left alone"
    assert caplog.text.count(f"drafter failing failed in {verb}") == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda drafts: drafts[:-1],
        lambda drafts: [*drafts, NO_DRAFT],
        lambda drafts: None,
        lambda drafts: [Draft((5, 6), parents=(-1,))] * len(drafts),
        lambda drafts: [Draft((5, 6), confidence=(0.5,))] * len(drafts),
        lambda drafts: [Draft((5,), confidence=(float("nan"),))] * len(drafts),
    ],
    ids=["too few", "too many", "none", "missing parents", "missing confidences", "no probability"],
)
def test_a_drafter_that_answers_what_none_may_is_switched_off(
    make_home: Callable[..., Any],
    plain: list[list[int]],
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[list[Draft]], list[Draft]],
) -> None:
    misshapen = Misshapen(known(plain), spoil)
    home = make_home(drafters={"misshapen": misshapen}, policy=Dice(9))
    assert answers(home) == plain
    assert caplog.text.count("drafter misshapen failed in propose and is switched off") == 1


def test_others_go_on_drafting_when_one_fails(
    make_home: Callable[..., Any], plain: list[list[int]]
) -> None:
    oracle = Oracle(known(plain))
    both: dict[str, Any] = {"failing": Failing(known(plain)), "oracle": oracle}
    home = make_home(drafters=both, policy=Dice(9))
    assert answers(home) == plain
    assert oracle.num_accepted > 20

"""A draft changes when a token is found, never which."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from decode_worker.speculate.dice import Dice
from decode_worker.speculate.policy import Budget, StepLoad, StepReport
from triptych.engine.sequence import Sequence
from triptych.request import SamplingParams, Speculation
from triptych.testing.compute_modes import MODES
from triptych.testing.drafters import Answers, Oracle


@pytest.fixture(params=list(MODES))
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class RecordingDice(Dice):
    """Any budget for anybody, and any trim."""

    def __init__(self) -> None:
        super().__init__(most=9, seed=3)
        self.loads: list[StepLoad] = []
        self.reports: list[StepReport] = []
        self.forgotten: list[Sequence] = []

    def plan(self, load: StepLoad) -> list[Budget]:
        self.loads.append(load)
        return super().plan(load)

    def observe(self, report: StepReport) -> None:
        self.reports.append(report)

    def forget(self, sequence: Sequence) -> None:
        self.forgotten.append(sequence)


def prompts() -> list[list[int]]:
    draw = random.Random(2)
    return [[draw.randrange(3, 250) for _ in range(n)] for n in (1, 15, 16, 17, 33, 130, 300)]


def params_of(index: int) -> SamplingParams:
    if index % 3 == 0:
        return SamplingParams(seed=index, max_tokens=40, temperature=0.0, ignore_eos=True)
    return SamplingParams(
        seed=index,
        max_tokens=40,
        temperature=0.9,
        top_p=0.9,
        frequency_penalty=0.3,
        presence_penalty=0.2,
        repetition_penalty=1.1,
        min_tokens=3,
        ignore_eos=index % 2 == 0,
    )


def answers(home: Any) -> list[list[int]]:
    for index, prompt in enumerate(prompts()):
        home.submit(prompt, params_of(index))
    return home.run()


@pytest.fixture
def plain(make_home: Callable[..., Any]) -> list[list[int]]:
    return answers(make_home())


def known(found: list[list[int]]) -> Answers:
    return {(tuple(prompt), index): found[index] for index, prompt in enumerate(prompts())}


@pytest.mark.parametrize("trees", [False, True], ids=["chains", "trees"])
@pytest.mark.parametrize("settings", [{}, {"chunk_tokens": 20}, {"blocks": 30}], ids=str)
def test_any_draft_and_any_trim_give_the_tokens_of_plain_decoding(
    make_home: Callable[..., Any],
    plain: list[list[int]],
    trees: bool,
    settings: dict[str, Any],
) -> None:
    oracle, dice = Oracle(known(plain), trees=trees), RecordingDice()
    home = make_home(drafters={"oracle": oracle}, policy=dice, **settings)
    assert answers(home) == plain
    assert oracle.num_accepted > 20 and oracle.num_rejected > 10
    assert not oracle.known, "every sequence ended for the drafter too"
    assert len(dice.forgotten) == len(prompts())


def test_what_drafts_left_in_the_blocks_is_in_no_prefix_cache(
    make_home: Callable[..., Any], plain: list[list[int]]
) -> None:
    """Answers that continue answers: their KV comes from blocks that drafts have been in."""
    oracle = Oracle(known(plain), spoils=2, trees=True)
    home = make_home(drafters={"oracle": oracle}, policy=RecordingDice())
    found = answers(home)
    fresh = make_home(cache=False)
    longer = [[*prompt, *answer, 9] for prompt, answer in zip(prompts(), found, strict=True)]
    params = SamplingParams(seed=1, max_tokens=6, temperature=0.0, ignore_eos=True)
    home.loop._speculator._policy = None
    for prompt in longer:
        home.submit(prompt, params)
        fresh.submit(prompt, params)
    assert home.run()[len(found) :] == fresh.run()
    assert sum(sequence.num_cached for sequence in home.sequences[len(found) :]) > 0
    counts = home.pool.counts()
    assert counts["request"] == 0


def test_tokens_outside_the_vocabulary_are_cut_off(
    make_home: Callable[..., Any], plain: list[list[int]]
) -> None:
    liar = Oracle(known(plain), spoils=2, vocab=1 << 40)
    home = make_home(drafters={"oracle": liar}, policy=RecordingDice())
    assert answers(home) == plain


def test_a_policy_sees_every_step_and_its_rows(
    make_home: Callable[..., Any], plain: list[list[int]]
) -> None:
    dice = RecordingDice()
    home = make_home(drafters={"oracle": Oracle(known(plain))}, policy=dice)
    assert answers(home) == plain
    drawn = sum(len(verdict.new_tokens) for report in dice.reports for verdict in report.verdicts)
    assert drawn == sum(map(len, plain))
    for report in dice.reports:
        nodes = sum(1 + len(verdict.draft) for verdict in report.verdicts)
        assert report.rows >= nodes and report.step_seconds > 0


def test_a_policy_hears_of_those_it_planned_for_and_of_nobody_else(
    make_home: Callable[..., Any], plain: list[list[int]]
) -> None:
    dice = RecordingDice()
    home = make_home(drafters={"oracle": Oracle(known(plain))}, policy=dice)
    for index, prompt in enumerate(prompts()):
        home.submit(prompt, params_of(index), speculation=Speculation(off=index % 2 == 0))
    assert home.run() == plain
    for load, report in zip(dice.loads, dice.reports, strict=True):
        planned = [candidate.sequence for candidate in load.candidates]
        assert [verdict.sequence for verdict in report.verdicts] == planned

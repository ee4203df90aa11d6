"""The speculation benchmark asks for a full house, and times nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.speculate import Cell, jobs_of, mismatches, speedup
from bench.speculate_lane import Heat, Job, Outcome, side_by_side
from triptych.request import SamplingParams


class FakeLane:
    """Every job needs one step for its prompt and as many as it may draw tokens."""

    def __init__(self) -> None:
        self.running: list[Any] = []
        self.steps = 0
        self.widths: list[int] = []

    def submit(self, number: int, job: Job) -> Any:
        sequence = SimpleNamespace(
            num_rounds=0,
            num_output=0,
            num_drafted=0,
            num_accepted=0,
            finish_reason=None,
            tokens=list(job.prompt),
            num_prompt=len(job.prompt),
            left=job.params.max_tokens,
        )
        self.running.append(sequence)
        return sequence

    def step(self) -> bool:
        self.steps += 1
        self.widths.append(len(self.running))
        for sequence in self.running:
            sequence.num_rounds += 1
            sequence.num_output += 1
            sequence.tokens.append(7)
            sequence.left -= 1
            sequence.finish_reason = None if sequence.left else "length"
        self.running = [s for s in self.running if s.finish_reason is None]
        return True

    def cancel(self, sequence: Any) -> None:
        self.running.remove(sequence)


def job(tokens: int) -> Job:
    return Job([1, 2], SamplingParams(seed=1, max_tokens=tokens, temperature=0.0))


def test_the_next_answer_takes_the_place_of_one_that_ended_and_an_empty_place_ends_it() -> None:
    lane = FakeLane()
    (found,) = side_by_side([Heat(lane, [job(3), job(5), job(9)], 2)])  # type: ignore[arg-type]
    assert lane.widths == [2] * 5
    assert [len(answer) for answer in found.answers] == [3, 5, 2]
    assert not lane.running, "what is not done is taken back"


def test_steps_in_which_somebody_reads_a_prompt_are_not_timed() -> None:
    (found,) = side_by_side([Heat(FakeLane(), [job(3), job(5), job(9)], 2)])  # type: ignore[arg-type]
    # Steps 1 (both begin) and 4 (the third begins) are left out.
    assert (found.tokens, found.rounds) == (6, 6)


def test_who_is_behind_goes_next() -> None:
    lanes = [FakeLane(), FakeLane()]
    heats = [Heat(lane, [job(50)], 1) for lane in lanes]  # type: ignore[arg-type]
    for _ in range(20):
        min(heats, key=lambda heat: heat.tokens).step()
    assert abs(lanes[0].steps - lanes[1].steps) <= 1


def test_a_prompt_that_is_asked_again_is_asked_by_another_tenant_with_another_seed() -> None:
    jobs = jobs_of([[1], [2]], Cell(0.0, 4, "all"), 8)
    assert len(jobs) == 6
    assert len({(own.prompt[0], own.tenant) for own in jobs}) == 6
    assert len({own.params.seed for own in jobs}) == 6


def test_answers_are_compared_as_far_as_both_got() -> None:
    runs = {
        "plain": Outcome(2.0, 4, 4, answers=[[1, 2, 3], [4]]),
        "own": Outcome(1.0, 4, 2, answers=[[1, 2], [5]]),
    }
    assert mismatches(runs, "own") == 1
    assert speedup(runs, "own") == pytest.approx(2.0)

"""The rollouts benchmark asks what an RL step asks, and counts what it says it counts."""

from __future__ import annotations

import pytest

from bench.rollouts import jobs_of, makespan_ratio, mismatches, rows_of, spread
from bench.speculate_lane import Outcome


def epoch(seconds: float, *answers: list[int]) -> Outcome:
    return Outcome(seconds, sum(map(len, answers)), 2, answers=list(answers))


FOUND = {
    "plain": [epoch(4.0, [1, 2], [3, 4]), epoch(6.0, [1, 2], [3])],
    "das": [epoch(3.0, [1, 2], [3, 4]), epoch(3.0, [1, 9], [3])],
}


def test_no_two_samples_share_a_seed_and_later_samples_come_after_all_problems() -> None:
    epochs = [jobs_of([[1], [2]], e, 3, temperature=0.6, max_tokens=5) for e in range(2)]
    assert len({job.params.seed for jobs in epochs for job in jobs}) == 12
    assert [job.prompt for job in epochs[0]] == [[1], [2]] * 3
    assert {job.problem_id for job in epochs[0]} == {job.problem_id for job in epochs[1]}


def test_a_ratio_is_of_the_time_of_all_epochs() -> None:
    assert makespan_ratio(FOUND) == {"das": pytest.approx(0.6)}


def test_every_epoch_is_compared_with_the_plain_one_of_the_same_number() -> None:
    last = rows_of(FOUND)[-1]
    assert (last["lane"], last["epoch"], last["speedup"]) == ("das", 2, 2.0)
    assert last["tokens_per_round"] == 1.5


def test_a_token_that_differs_is_counted() -> None:
    assert mismatches(FOUND) == 1


def test_problems_come_from_all_over_the_file() -> None:
    assert spread(["a", "b", "c", "d", "e"], 2) == ["a", "c"]
    assert spread(["a"], 2) == ["a"]

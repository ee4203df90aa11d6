"""Samples of one problem share drafts and budgets, never tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from decode_worker.speculate.fixed import Fixed
from decode_worker.speculate.length_aware import LengthAware
from decode_worker.speculate.policy import BudgetPolicy
from decode_worker.speculate.utility import Utility
from triptych.drafters.suffix import SuffixDrafter, SuffixOptions
from triptych.request import SamplingParams, Speculation


def epoch(home: Any, number: int) -> None:
    """Two problems, four samples of each; some greedy, so they repeat each other."""
    draw = random.Random(4)
    for problem in range(2):
        prompt = [draw.randrange(3, 250) for _ in range(20 + 30 * problem)]
        for sample in range(4):
            params = SamplingParams(
                seed=100 * number + 10 * problem + sample,
                max_tokens=30 + 25 * sample,
                temperature=0.6 * (sample % 2),
                ignore_eos=sample < 2,
            )
            home.submit(prompt, params, speculation=Speculation(problem_id=str(problem)))
    home.run()


def answers(home: Any) -> list[list[int]]:
    epoch(home, 0)
    epoch(home, 1)
    return [sequence.tokens[sequence.num_prompt :] for sequence in home.sequences]


@pytest.mark.parametrize("inner", [lambda: Fixed("suffix", 4), Utility], ids=["fixed", "utility"])
@pytest.mark.parametrize("max_running", [3, 32], ids=["some wait", "all run"])
def test_rollouts_have_the_tokens_of_plain_decoding(
    make_home: Callable[..., Any], inner: Callable[[], BudgetPolicy], max_running: int
) -> None:
    plain = answers(make_home())
    policy = LengthAware(inner())
    drafter = SuffixDrafter(SuffixOptions(share_every=16))
    home = make_home(max_running=max_running, drafters={"suffix": drafter}, policy=policy)
    assert answers(home) == plain
    assert not policy._problems and not policy._caps
    assert len(policy._lengths) == 2
    if isinstance(policy._inner, Fixed):
        assert sum(sequence.num_accepted for sequence in home.sequences) > 10

"""The tokens of a request depend on prompt, parameters, seed and weights, and on nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from triptych.request import SamplingParams, choice_seed
from triptych.testing.compute_modes import MODES


@pytest.fixture(params=list(MODES))
def mode(request: pytest.FixtureRequest) -> str:
    """Bits are compared within each way of computing, never between two."""
    return str(request.param)


def prompts() -> list[list[int]]:
    draw = random.Random(1)
    shared = [draw.randrange(3, 250) for _ in range(70)]
    lengths = (1, 5, 15, 16, 17, 33, 128, 300)
    own = [[draw.randrange(3, 250) for _ in range(length)] for length in lengths]
    return [*own, shared, [*shared, 7, 8, 9], shared[:40]]


def mixed_params(index: int) -> SamplingParams:
    if index % 3 == 0:
        return SamplingParams(seed=index, max_tokens=12, temperature=0.0, ignore_eos=True)
    return SamplingParams(
        seed=index,
        max_tokens=12,
        temperature=0.9,
        top_p=0.9,
        top_k=40 if index % 2 else 0,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        ignore_eos=True,
    )


def answers(home: Any) -> list[list[int]]:
    for index, prompt in enumerate(prompts()):
        home.submit(prompt, mixed_params(index))
    return home.run()


@pytest.fixture
def alone(make_home: Callable[..., Any]) -> list[list[int]]:
    """Every request on its own, in one chunk, with nothing cached."""
    found = []
    for index, prompt in enumerate(prompts()):
        home = make_home(chunk_tokens=512)
        home.submit(prompt, mixed_params(index))
        found += home.run()
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"max_running": 32},
        {"max_running": 3},
        {"chunk_tokens": 16},
        {"chunk_tokens": 50},
        {"cache": False},
        {"blocks": 20},
    ],
    ids=str,
)
def test_batching_chunking_and_preemption_change_no_token(
    make_home: Callable[..., Any], alone: list[list[int]], settings: dict[str, Any]
) -> None:
    assert answers(make_home(**settings)) == alone


def test_chunks_that_shrink_and_grow_with_the_streams_change_no_token(
    make_home: Callable[..., Any], alone: list[list[int]]
) -> None:
    home = make_home(max_running=32)
    asked = []

    def rows_beside(streams: int, pairs: float, position: int) -> int:
        asked.append(streams)
        return 1 + (7 * streams + position) % 23

    home.loop.scheduler.rows_beside = rows_beside
    assert answers(home) == alone
    assert max(asked) > 1


def test_a_warm_prefix_cache_changes_no_token(
    make_home: Callable[..., Any], alone: list[list[int]]
) -> None:
    home = make_home()
    assert answers(home) == alone
    again = len(home.sequences)
    assert answers(home)[again:] == alone
    assert sum(sequence.num_cached for sequence in home.sequences[again:]) > 0


def test_a_pool_that_runs_out_preempts_changes_no_token_and_gets_all_blocks_back(
    make_home: Callable[..., Any],
) -> None:
    params = SamplingParams(seed=5, max_tokens=30, temperature=0.8, ignore_eos=True)
    roomy, tight = make_home(), make_home(blocks=7)
    for home in (roomy, tight):
        for prompt in prompts()[8:11]:
            home.submit(prompt[:20], params)
    assert tight.run() == roomy.run()
    assert tight.loop.scheduler.num_preemptions > 0
    counts = tight.pool.counts()
    assert counts["request"] == 0 and counts["free"] + counts["cached"] == 7


def test_siblings_compute_the_prompt_once_and_answer_like_requests_with_their_seeds(
    make_home: Callable[..., Any],
) -> None:
    prompt = prompts()[7]

    def params(choice: int) -> SamplingParams:
        return SamplingParams(seed=choice_seed(99, choice), max_tokens=6, ignore_eos=True)

    together = make_home()
    leader = together.submit(prompt, params(0))
    for choice in (1, 2):
        together.submit(prompt, params(choice), choice=choice, leader=leader)
    found = together.run()
    assert len({tuple(tokens) for tokens in found}) == 3
    assert all(seq.num_cached == 288 for seq in together.sequences[1:])
    for choice in range(3):
        single = make_home()
        single.submit(prompt, params(choice))
        assert single.run() == [found[choice]]


def test_siblings_of_a_cancelled_leader_go_on_alone(make_home: Callable[..., Any]) -> None:
    home = make_home()
    leader = home.submit(prompts()[5])
    sibling = home.submit(prompts()[5], choice=1, leader=leader)
    home.loop.cancel(leader)
    home.run()
    assert sibling.num_output == 8

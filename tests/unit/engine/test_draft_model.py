"""A draft model that is the target drafts exactly what the target will say."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from decode_worker.speculate.dice import Dice
from decode_worker.speculate.fixed import Fixed
from triptych.request import SamplingParams

BLOCK_TOKENS = 16


@pytest.fixture(params=["torch", "bfloat16", "int8", "int8 KV"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def params_of(index: int) -> SamplingParams:
    return SamplingParams(
        seed=index,
        max_tokens=30,
        temperature=(0.0, 0.9)[index % 2],
        top_p=0.9,
        frequency_penalty=0.4 if index % 3 == 0 else 0.0,
        ignore_eos=True,
    )


def answers(home: Any) -> list[list[int]]:
    draw = random.Random(2)
    for index, size in enumerate((1, 15, 16, 33, 130)):
        home.submit([draw.randrange(3, 250) for _ in range(size)], params_of(index))
    return home.run()  # type: ignore[no-any-return]


def test_every_node_of_its_chains_is_right(
    make_home: Callable[..., Any], twin: Callable[..., Any]
) -> None:
    plain = answers(make_home())
    home = make_home(drafters_of=twin(), policy=Fixed("draft_model", 5))
    assert answers(home) == plain
    for sequence in home.sequences:
        assert sequence.num_accepted == sequence.num_drafted > 15


@pytest.mark.parametrize("settings", [{"chunk_tokens": 20}, {"blocks": 24}], ids=str)
def test_trims_trees_and_preemption_change_no_token(
    make_home: Callable[..., Any], twin: Callable[..., Any], settings: dict[str, Any]
) -> None:
    plain = answers(make_home())
    home = make_home(drafters_of=twin(width=3), policy=Dice(9, seed=4), **settings)
    assert answers(home) == plain
    assert sum(sequence.num_accepted for sequence in home.sequences) > 20


def test_it_reads_long_prompts_piece_by_piece(
    make_home: Callable[..., Any], twin: Callable[..., Any]
) -> None:
    plain = answers(make_home())
    home = make_home(drafters_of=twin(catch_up_rows=16), policy=Fixed("draft_model", 5))
    assert answers(home) == plain
    assert all(sequence.num_accepted == sequence.num_drafted for sequence in home.sequences)
    assert sum(sequence.num_accepted for sequence in home.sequences) > 30


def test_a_prompt_from_the_prefix_cache_is_not_read_twice(
    make_home: Callable[..., Any], twin: Callable[..., Any]
) -> None:
    home = make_home(drafters_of=twin(), policy=Fixed("draft_model", 5))
    answers(home)
    home.submit(home.sequences[4].tokens[:150], params_of(0))
    home.run()
    again = home.sequences[-1]
    assert again.num_cached >= 128
    assert again.num_accepted == again.num_drafted > 15

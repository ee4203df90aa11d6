"""A sequence that goes on behind tokens of another home draws what would have come anyway."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from triptych.engine.sequence import Sequence
from triptych.request import FinishReason, SamplingParams

BLOCK_TOKENS = 16
GREEDY = SamplingParams(seed=3, max_tokens=20, temperature=0.0, ignore_eos=True)
KINDS = {
    "greedy": GREEDY,
    "seeded": replace(GREEDY, temperature=0.9, top_p=0.9, top_k=40),
    "penalties": replace(
        GREEDY, temperature=0.8, presence_penalty=0.7, frequency_penalty=0.5, repetition_penalty=1.2
    ),
    "logprobs": replace(GREEDY, temperature=0.7, logprobs=3),
    "min_tokens": replace(GREEDY, temperature=1.0, ignore_eos=False, min_tokens=15),
}


class Ending:
    """A StopWatch: three tokens in a row, wherever the cut is."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._seen: list[int] = []

    def push(self, token_id: int) -> str | None:
        self._seen.append(token_id)
        return "the end" if self._seen[-3:] == self._tokens else None


def prompt() -> list[int]:
    draw = random.Random(7)
    return [draw.randrange(3, 250) for _ in range(37)]


def run(
    home: Any, params: SamplingParams, resumed: list[int], stop: list[int] | None = None
) -> tuple[Sequence, list[Any]]:
    sequence = Sequence(
        request_id="r",
        tokens=prompt(),
        root=b"root",
        block_tokens=BLOCK_TOKENS,
        params=params,
        stop_watch=Ending(stop) if stop else None,
        resumed=tuple(resumed),
    )
    home.loop.submit(sequence)
    while home.loop.step():
        pass
    told = [output.delta for output in home.outputs]
    home.outputs.clear()
    return sequence, told


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_leads_to_the_same_tokens_and_logprobs(
    make_home: Callable[..., Any], kind: str
) -> None:
    params = KINDS[kind]
    whole, told = run(make_home(), params, [])
    output = whole.tokens[whole.num_prompt :]
    for cut in range(1, len(output)):
        sequence, again = run(make_home(chunk_tokens=24), params, output[:cut])
        assert again == told[cut:]
        assert sequence.tokens == whole.tokens
        assert sequence.finish_reason == whole.finish_reason


def test_a_home_that_holds_some_of_it_computes_the_rest_only(make_home: Callable[..., Any]) -> None:
    home = make_home()
    whole, told = run(home, GREEDY, [])
    sequence, again = run(home, GREEDY, whole.tokens[whole.num_prompt :][:13])
    assert again == told[13:]
    assert sequence.num_cached == 48 > sequence.num_prompt


@pytest.mark.parametrize("cut", [7, 8, 9])
def test_a_stop_string_may_begin_before_the_cut(make_home: Callable[..., Any], cut: int) -> None:
    params = KINDS["seeded"]
    whole, _ = run(make_home(), params, [])
    output = whole.tokens[whole.num_prompt :]
    stop = output[7:10]
    sequence, _ = run(make_home(), params, output[:cut], stop)
    assert sequence.finish_reason is FinishReason.STOP and sequence.stop_reason == "the end"
    assert sequence.tokens[sequence.num_prompt :] == output[:10]

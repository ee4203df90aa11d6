"""Structured output and tools from real processes, drafts on: whatever is asked for is valid.

The model is a tiny random one, which has never seen JSON: all the validity is the grammar's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
import pytest_asyncio

from triptych.testing.cluster import Cluster
from triptych.testing.grammars import PERSON, is_person

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]
DICE = [
    "speculation.mode=dice",
    "speculation.drafters=[{kind: suffix, trees: true}, {kind: ngram, min_n: 1}]",
]
MESSAGES: Any = [{"role": "user", "content": "Who? " * 20}]  # long enough to prefill elsewhere
PERSON_FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
TOOLS: Any = [
    {"type": "function", "function": {"name": "greet", "parameters": PERSON}},
    {"type": "function", "function": {"name": "now"}},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def drafting(start_cluster: StartCluster) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of a cluster with a prefill worker, whose drafts are thrown by dice."""
    async with (
        start_cluster(*DICE) as cluster,
        openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


async def people(client: openai.AsyncOpenAI, **options: Any) -> list[Any]:
    """Twenty answers that must be a person: greedy and sampled, alone and as choices of one."""
    asked = [
        client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            response_format=PERSON_FORMAT,
            max_tokens=200,
            seed=seed,
            temperature=(0.0, 1.0)[seed % 2],
            frequency_penalty=0.5 if seed % 3 == 0 else 0.0,
            n=1 + seed % 2 * 3,
            extra_body=options,
        )
        for seed in range(8)
    ]
    return [choice for answer in await asyncio.gather(*asked) for choice in answer.choices]


async def test_twenty_answers_obey_their_schema_with_drafts_and_without(
    drafting: openai.AsyncOpenAI,
) -> None:
    drafted = await people(drafting)
    plain = await people(drafting, speculation="off")
    assert [c.message.content for c in drafted] == [c.message.content for c in plain]
    assert len(drafted) == 20
    for choice in drafted:
        assert choice.finish_reason == "stop" and is_person(choice.message.content)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "greet"}}]
)
async def test_a_required_call_is_one(drafting: openai.AsyncOpenAI, choice: Any) -> None:
    for seed in range(3):
        answer = await drafting.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            tools=TOOLS,
            tool_choice=choice,
            parallel_tool_calls=False,
            max_tokens=400,
            seed=seed,
        )
        [call] = answer.choices[0].message.tool_calls or ()
        assert answer.choices[0].finish_reason == "tool_calls"
        assert call.function.name == "now" or is_person(call.function.arguments)
        assert call.function.name == "greet" or choice == "required"


async def test_streamed_calls_are_those_of_a_whole_answer(drafting: openai.AsyncOpenAI) -> None:
    asked: Any = {
        "model": "tiny",
        "messages": MESSAGES,
        "tools": TOOLS,
        "tool_choice": "required",
        "max_tokens": 600,
        "seed": 5,
    }
    whole = await drafting.chat.completions.create(**asked)
    async with drafting.chat.completions.stream(**asked) as stream:
        final = await stream.get_final_completion()

    def calls_of(answer: Any) -> list[tuple[str, str]]:
        calls = answer.choices[0].message.tool_calls
        return [(call.function.name, call.function.arguments) for call in calls]

    assert calls_of(final) == calls_of(whole)


async def test_a_streamed_object_is_one_piece_of_json(drafting: openai.AsyncOpenAI) -> None:
    stream = await drafting.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        response_format=PERSON_FORMAT,
        max_tokens=200,
        seed=1,
        stream=True,
        logprobs=True,
    )
    chunks = [chunk.choices[0] async for chunk in stream]
    assert is_person("".join(chunk.delta.content or "" for chunk in chunks))
    assert chunks[-1].finish_reason == "stop"


async def test_an_answer_that_is_cut_off_says_so(drafting: openai.AsyncOpenAI) -> None:
    answer = await drafting.chat.completions.create(
        model="tiny", messages=MESSAGES, response_format=PERSON_FORMAT, max_tokens=5
    )
    assert answer.choices[0].finish_reason == "length"
    with pytest.raises(ValueError):
        json.loads(answer.choices[0].message.content or "")

"""What the blocking `openai` client does to a real cluster: parse, stop waiting, go away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from triptych.testing.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]

MESSAGES: Any = [{"role": "user", "content": "Who?"}]


class Home(BaseModel):
    city: str = Field(max_length=5)
    number: int = Field(ge=1, le=99)


class Person(BaseModel):
    name: str = Field(max_length=5)
    kind: Literal["friend", "foe"]
    home: Home | None


@pytest.fixture
def ask(cluster: Cluster) -> Any:
    """async (use) -> what `use(client)` returns, in a thread: the client blocks."""

    async def run(use: Callable[[openai.OpenAI], Any]) -> Any:
        def blocking() -> Any:
            with openai.OpenAI(
                base_url=f"{cluster.url}/v1", api_key="none", max_retries=0
            ) as client:
                return use(client)

        return await asyncio.to_thread(blocking)

    return run


async def test_an_answer_is_parsed_into_its_class(ask: Any) -> None:
    def parsed(client: openai.OpenAI) -> Any:
        return client.chat.completions.parse(
            model="tiny", messages=MESSAGES, response_format=Person, seed=1, n=3, max_tokens=300
        )

    answer = await ask(parsed)
    assert all(isinstance(choice.message.parsed, Person) for choice in answer.choices)


async def test_the_arguments_of_a_call_are_parsed_into_their_class(ask: Any) -> None:
    def parsed(client: openai.OpenAI) -> Any:
        return client.chat.completions.parse(
            model="tiny",
            messages=MESSAGES,
            tools=[openai.pydantic_function_tool(Person)],
            tool_choice="required",
            parallel_tool_calls=False,
            seed=1,
            max_tokens=300,
        )

    [call] = (await ask(parsed)).choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Person)


async def test_only_an_allowed_tool_is_called(ask: Any) -> None:
    tools: Any = [{"type": "function", "function": {"name": name}} for name in ("a", "b", "c")]
    named = {"type": "function", "function": {"name": "b"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}

    def called(client: openai.OpenAI) -> Any:
        choice: Any = allowed
        return client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=tools, tool_choice=choice, max_tokens=800
        )

    calls = (await ask(called)).choices[0].message.tool_calls
    assert {call.function.name for call in calls} == {"b"}


@pytest.mark.parametrize(
    ("body", "answers"),
    [
        ({"guided_regex": "[a-c]{3}"}, {a + b + c for a in "abc" for b in "abc" for c in "abc"}),
        ({"guided_choice": ["yes", "no"]}, {"yes", "no"}),
        ({"guided_grammar": 'root ::= "a" | "b" root'}, {"b" * n + "a" for n in range(200)}),
        ({"structured_outputs": {"choice": ["ja", "nein"]}}, {"ja", "nein"}),
    ],
)
async def test_a_form_may_be_asked_for_in_the_extra_body(
    ask: Any, body: dict[str, Any], answers: set[str]
) -> None:
    def said(client: openai.OpenAI) -> Any:
        chat = client.chat.completions.create(
            model="tiny", messages=MESSAGES, seed=3, max_tokens=200, extra_body=body
        )
        plain = client.completions.create(
            model="tiny", prompt="a", seed=3, max_tokens=200, extra_body=body
        )
        return [chat.choices[0].message.content, plain.choices[0].text]

    assert set(await ask(said)) <= answers


async def test_a_client_that_waits_no_longer_leaves_nothing_behind(
    ask: Any, cluster: Cluster
) -> None:
    def too_long(client: openai.OpenAI) -> Any:
        return client.with_options(timeout=0.2).completions.create(
            model="tiny", prompt="a", max_tokens=1500, n=8, extra_body={"ignore_eos": True}
        )

    with pytest.raises(openai.APITimeoutError):
        await ask(too_long)
    await cluster.until_at_rest(timeout_s=5)


async def test_a_stream_that_is_closed_early_ends_everywhere(ask: Any, cluster: Cluster) -> None:
    def first_words(client: openai.OpenAI) -> list[str]:
        with client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=1500,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as stream:
            return [next(stream).choices[0].delta.content or "" for _ in range(3)]

    assert len(await ask(first_words)) == 3
    await cluster.until_at_rest(timeout_s=5)

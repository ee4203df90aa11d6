"""Tools and structured output through the real `openai` client; a fake home says the words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from triptych.request import FinishReason, Grammar, GrammarKind
from triptych.testing.fake_worker import says
from triptych.wire import grammar_of

MESSAGES: Any = [{"role": "user", "content": "The weather in Paris?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
NOW: Any = {"type": "function", "function": {"name": "now"}}
ANSWER = (
    'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


@pytest.fixture
async def talk(start_world: Any) -> AsyncIterator[Any]:
    """(worker, say, client): `say` sets what the home answers."""
    world = await start_world()
    worker = await world.add_worker("decode-0", max_model_len=4096)

    def say(text: str, **options: Any) -> None:
        ids = world.tokenizer.encode(text)
        end = [] if "finish" in options else [world.tokenizer.eos_token_ids[0]]
        worker.script = says([*ids, *end], **options)

    say(ANSWER)
    async with openai.AsyncOpenAI(
        base_url=f"{await world.serve()}/v1", api_key="none", max_retries=0
    ) as client:
        yield worker, say, client


def spelled(calls: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls or ()]


BOTH = [("get_weather", {"city": "Paris"}), ("now", {})]


async def test_calls_are_told_apart_from_content(talk: Any) -> None:
    _, _, client = talk
    answer = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=[WEATHER, NOW], n=2, logprobs=True
    )
    for choice in answer.choices:
        assert choice.message.content == "I look."
        assert spelled(choice.message.tool_calls) == BOTH
        assert choice.finish_reason == "tool_calls"
        assert len(choice.logprobs.content) == answer.usage.completion_tokens // 2
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls]
    assert len(set(ids)) == 4


async def test_calls_are_streamed_name_first(talk: Any) -> None:
    _, _, client = talk
    stream = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=[WEATHER, NOW], stream=True, logprobs=True
    )
    chunks = [chunk.choices[0] async for chunk in stream]
    pieces = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    heads = [piece for piece in pieces if piece.id is not None]
    assert [(head.index, head.function.name) for head in heads] == [(0, "get_weather"), (1, "now")]
    assert all(head.type == "function" and head.function.arguments == "" for head in heads)
    tails = [piece for piece in pieces if piece.id is None]
    assert all(piece.function.name is None for piece in tails)
    said = "".join(piece.function.arguments for piece in tails if piece.index == 0)
    assert json.loads(said) == {"city": "Paris"}
    assert len([piece for piece in tails if piece.index == 0]) > 3, "as they come"
    assert chunks[-1].finish_reason == "tool_calls"
    num_logprobs = sum(len(chunk.logprobs.content) for chunk in chunks if chunk.logprobs)
    assert num_logprobs > len(ANSWER) // 2


async def test_the_clients_own_accumulator_understands_streamed_calls(talk: Any) -> None:
    _, _, client = talk
    async with client.chat.completions.stream(
        model="tiny", messages=MESSAGES, tools=[WEATHER, NOW]
    ) as stream:
        final = await stream.get_final_completion()
    assert spelled(final.choices[0].message.tool_calls) == BOTH
    assert final.choices[0].message.content == "I look."


async def test_without_parallel_calls_the_first_one_counts(talk: Any) -> None:
    _, _, client = talk
    answer = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=[WEATHER, NOW], parallel_tool_calls=False
    )
    assert spelled(answer.choices[0].message.tool_calls) == BOTH[:1]


async def test_an_answer_without_a_call_is_an_ordinary_one(talk: Any) -> None:
    _, say, client = talk
    say("It is < 5 degrees. ")
    answer = await client.chat.completions.create(model="tiny", messages=MESSAGES, tools=[NOW])
    assert answer.choices[0].message.content == "It is < 5 degrees. "
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"


async def test_a_call_that_is_cut_off_ends_for_its_length(talk: Any) -> None:
    _, say, client = talk
    say('<tool_call>{"name": "now", "arguments": {"a', finish=FinishReason.LENGTH)
    answer = await client.chat.completions.create(model="tiny", messages=MESSAGES, tools=[NOW])
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"a'


async def test_a_conversation_goes_on_with_calls_and_results(talk: Any) -> None:
    worker, say, client = talk
    first = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=[WEATHER, NOW]
    )
    message = first.choices[0].message
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in message.tool_calls
    ]
    say("Rain.")
    turns: Any = [*MESSAGES, message.model_dump(exclude_none=True), *results]
    answer = await client.chat.completions.create(model="tiny", messages=turns, tools=[WEATHER])
    assert answer.choices[0].message.content == "Rain."
    assert len(worker.calls[1].request.prompt_ids) > len(worker.calls[0].request.prompt_ids)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
async def test_who_requires_a_call_sends_its_grammar(talk: Any, choice: Any) -> None:
    worker, _, client = talk
    answer = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=[WEATHER, NOW], tool_choice=choice
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    grammar = grammar_of(worker.calls[0].request.sampling)
    assert grammar is not None and grammar.kind is GrammarKind.LARK
    assert "get_weather" in grammar.text and ("now" in grammar.text) == (choice == "required")


async def test_a_tool_choice_of_none_hides_the_tools(talk: Any) -> None:
    worker, say, client = talk
    say("No.")
    for options in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        await client.chat.completions.create(model="tiny", messages=MESSAGES, **options)
    first, second = (call.request.prompt_ids for call in worker.calls)
    assert list(first) == list(second)


async def test_a_response_format_travels_to_the_home(talk: Any) -> None:
    worker, say, client = talk
    say('{"a": 1}')
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    answer = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, response_format=wanted
    )
    assert json.loads(answer.choices[0].message.content) == {"a": 1}
    await client.completions.create(
        model="tiny", prompt="a", extra_body={"structured_outputs": {"regex": "b+"}}
    )
    asked = [grammar_of(call.request.sampling) for call in worker.calls]
    assert asked == [
        Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)),
        Grammar(GrammarKind.REGEX, "b+"),
    ]


async def test_a_bad_schema_is_refused_by_its_path(talk: Any) -> None:
    _, _, client = talk
    bad: Any = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"$ref": "#/nowhere"}},
    }
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="tiny", messages=MESSAGES, response_format=bad)
    assert refused.value.param == "response_format.json_schema.schema"
    assert "nowhere" in refused.value.message


async def test_thoughts_are_told_beside_the_answer(start_world: Any) -> None:
    world = await start_world(reasoning_parser="think")
    said = world.tokenizer.encode("<think>\nHm, 5?\n</think>\n\nFive.")
    await world.add_worker("decode-0", says([*said, world.tokenizer.eos_token_ids[0]]))
    async with openai.AsyncOpenAI(
        base_url=f"{await world.serve()}/v1", api_key="none", max_retries=0
    ) as client:
        answer = await client.chat.completions.create(model="tiny", messages=MESSAGES)
        message = answer.choices[0].message
        assert (message.content, message.reasoning_content) == ("Five.", "Hm, 5?")
        stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        deltas = [chunk.choices[0].delta async for chunk in stream]
        thought = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
        assert "".join(thought) == "Hm, 5?" and len([each for each in thought if each]) > 1
        assert "".join(delta.content or "" for delta in deltas) == "Five."
        again: Any = [*MESSAGES, message.model_dump(exclude_none=True), *MESSAGES]
        await client.chat.completions.create(model="tiny", messages=again)


async def test_the_responses_api_is_refused_in_words(talk: Any) -> None:
    _, _, client = talk
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
        await client.responses.create(model="tiny", input="Hi")


async def test_embeddings_are_refused_in_words(talk: Any) -> None:
    _, _, client = talk
    with pytest.raises(openai.NotFoundError, match="no embeddings"):
        await client.embeddings.create(model="tiny", input="text")

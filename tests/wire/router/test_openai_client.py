"""The real `openai` client against the real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from triptych.errors import WorkerError
from triptych.request import TokenDelta
from triptych.testing.fake_worker import says

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def talk(start_world: Any) -> AsyncIterator[Any]:
    """(world, client) with one home that says "Hello!" and stops."""
    world = await start_world(api_keys=("key",))
    ids = [*world.tokenizer.encode("Hello!"), world.tokenizer.eos_token_ids[0]]
    await world.add_worker("decode-0", says(ids, cached_tokens=3))
    async with openai.AsyncOpenAI(
        base_url=f"{await world.serve()}/v1", api_key="key", max_retries=0
    ) as client:
        yield world, client


async def test_chat(talk: Any) -> None:
    _, client = talk
    answer = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=20, logprobs=True, top_logprobs=2, n=2
    )
    assert [choice.message.content for choice in answer.choices] == ["Hello!"] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 2
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    assert answer.usage.completion_tokens == 14
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


async def test_streamed_chat(talk: Any) -> None:
    _, client = talk
    stream = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    found = [chunk async for chunk in stream]
    assert found[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in found if c.choices)
    assert text == "Hello!"
    assert found[-2].choices[0].finish_reason == "stop"
    assert found[-1].choices == []
    assert found[-1].usage.total_tokens == found[-1].usage.prompt_tokens + 7


async def test_the_clients_own_accumulator_understands_the_stream(talk: Any) -> None:
    _, client = talk
    async with client.chat.completions.stream(model="tiny", messages=MESSAGES) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello!"
    assert final.choices[0].finish_reason == "stop"


async def test_an_answer_can_be_sent_back(talk: Any) -> None:
    _, client = talk
    answer = await client.chat.completions.create(model="tiny", messages=MESSAGES)
    again = [*MESSAGES, answer.choices[0].message.model_dump(), *MESSAGES]
    answer = await client.chat.completions.create(model="tiny", messages=again)
    assert answer.choices[0].message.content == "Hello!"


async def test_completions(talk: Any) -> None:
    _, client = talk
    answer = await client.completions.create(model="tiny", prompt=["a", "b"], logprobs=1)
    assert [choice.text for choice in answer.choices] == ["Hello!"] * 2
    assert answer.choices[1].logprobs.tokens[0] == "H"
    stream = await client.completions.create(model="tiny", prompt="a", echo=True, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "aHello!"


async def test_models(talk: Any) -> None:
    _, client = talk
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).max_model_len == 256


async def test_errors_arrive_as_the_clients_classes(talk: Any) -> None:
    _, client = talk
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="other", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").models.list()


async def test_a_broken_stream_raises_in_the_client(start_world: Any) -> None:
    world = await start_world()
    steps = [TokenDelta("", 0, (5,)), WorkerError("engine died")]
    await world.add_worker("decode-0", lambda request: steps)
    async with openai.AsyncOpenAI(
        base_url=f"{await world.serve()}/v1", api_key="none", max_retries=0
    ) as client:
        stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="engine died"):
            async for _ in stream:
                pass

"""LangChain's OpenAI classes against real processes: what agents and chains are made of.

The model is a tiny random one: what it says means nothing, and what a grammar asks for is valid.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

from triptych.testing.cluster import Cluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    # Of LangChain's own making: how it types what a model's answer was parsed into.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
]


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=6)
    kind: Literal["friend", "foe"]


@tool
def count(word: Literal["one", "two"]) -> str:
    """Counts."""
    return f"{word}, and so on"


@pytest_asyncio.fixture(loop_scope="module")
async def served(cluster: Cluster) -> AsyncIterator[dict[str, Any]]:
    """How a model finds the cluster. LangChain closes no connections of its own making."""
    async with openai.DefaultAsyncHttpxClient() as http:
        yield {
            "model": "tiny",
            "base_url": f"{cluster.url}/v1",
            "api_key": "none",
            "max_retries": 0,
            "http_async_client": http,
        }


@pytest.fixture
def make_chat(served: dict[str, Any]) -> Callable[..., BaseChatModel]:
    return lambda **options: ChatOpenAI(**{**served, "max_tokens": 300, "seed": 1, **options})


async def test_an_answer_is_the_same_whole_streamed_and_in_a_batch(make_chat: Any) -> None:
    chat = make_chat(temperature=0, max_tokens=8)
    turns = [SystemMessage("Be brief."), HumanMessage([{"type": "text", "text": "Hi"}])]
    whole = await chat.ainvoke(turns)
    assert whole.usage_metadata["output_tokens"] == 8
    assert whole.response_metadata["finish_reason"] == "length"
    chunks = [chunk async for chunk in chat.astream(turns, stream_usage=True)]
    assert "".join(str(chunk.content) for chunk in chunks) == whole.content
    streamed = sum(chunks[1:], chunks[0])
    assert streamed.usage_metadata["total_tokens"] == whole.usage_metadata["total_tokens"]
    for answer in await chat.abatch([turns, turns]):
        assert answer.content == whole.content


async def test_a_bound_tool_is_called_and_its_result_sent_back(make_chat: Any) -> None:
    chat, turns = make_chat(), [HumanMessage("Count.")]
    bound = chat.bind_tools([count], tool_choice="any", parallel_tool_calls=False)
    answer = await bound.ainvoke(turns)
    [call] = answer.tool_calls
    result = await count.ainvoke(call)
    assert result.content in ("one, and so on", "two, and so on")
    after = await chat.bind_tools([count]).ainvoke([*turns, answer, result])
    assert after.response_metadata["finish_reason"] in ("stop", "length", "tool_calls")


async def test_a_streamed_call_is_put_together_by_the_client(make_chat: Any) -> None:
    bound = make_chat().bind_tools([count], tool_choice="count", strict=True)
    gathered: AIMessageChunk | None = None
    async for chunk in bound.astream("Count."):
        gathered = chunk if gathered is None else gathered + chunk
    assert gathered is not None
    [call] = gathered.tool_calls
    assert call["name"] == "count" and call["args"]["word"] in ("one", "two")
    assert gathered.invalid_tool_calls == []


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output_is_an_object_of_its_class(make_chat: Any, method: str) -> None:
    for seed in range(4):
        chat = make_chat(seed=seed).with_structured_output(Person, method=method)
        assert isinstance(await chat.ainvoke("Who?"), Person)


async def test_structured_output_goes_with_tools(make_chat: Any) -> None:
    """As agents ask: call a tool, or answer in the form."""
    for seed in range(4):
        chat = make_chat(seed=seed).with_structured_output(
            Person, tools=[count], strict=True, include_raw=True
        )
        found = await chat.ainvoke("Who?")
        called = [call["args"]["word"] in ("one", "two") for call in found["raw"].tool_calls]
        assert isinstance(found["parsed"], Person) != bool(called) and all(called)


async def test_plain_completions_are_served(served: dict[str, Any]) -> None:
    model = OpenAI(**served, max_tokens=4, temperature=0)
    whole = await model.ainvoke("One, two,")
    assert "".join([text async for text in model.astream("One, two,")]) == whole

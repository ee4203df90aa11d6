from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest

from triptych.errors import CapacityError, RequestError, TriptychError, WorkerError
from triptych.launch.client import ChatClient

ASK = [{"role": "user", "content": "Hello"}]


def chunk(text: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}], **more}


def stream(*events: Mapping[str, Any], done: bool = True) -> httpx.Response:
    frames = [f"data: {json.dumps(event)}\n\n" for event in events]
    frames += ["data: [DONE]\n\n"] if done else []
    return httpx.Response(200, text="".join(frames))


def client(handler: Callable[[httpx.Request], httpx.Response], **options: Any) -> ChatClient:
    transport = httpx.MockTransport(handler)
    return ChatClient("http://127.0.0.1:8000/v1", transport=transport, **options)


async def test_text_arrives_piece_by_piece_and_the_answer_is_the_whole() -> None:
    end = {"choices": [], "usage": {"completion_tokens": 2}, "triptych": {"queue_ms": 1.0}}
    last = chunk()
    last["choices"][0]["finish_reason"] = "stop"
    pieces: list[str] = []
    asked = client(lambda _: stream(chunk(""), chunk("Hi"), chunk(" there"), last, end))
    answer = await asked.ask(ASK, pieces.append)
    assert pieces == ["Hi", " there"]
    assert answer.text == "Hi there"
    assert answer.finish_reason == "stop"
    assert len(answer.arrivals) == 2
    assert answer.usage == {"completion_tokens": 2}
    assert answer.timings == {"queue_ms": 1.0}


async def test_the_request_asks_for_usage_and_timings_and_carries_the_key() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return stream(chunk("x"))

    await client(handle, api_key="k").ask(ASK, print, timings=True, model="m", temperature=0)
    [request] = seen
    assert request.url == "http://127.0.0.1:8000/v1/chat/completions"
    assert request.headers["X-Triptych-Timings"] == "1"
    assert request.headers["Authorization"] == "Bearer k"
    assert json.loads(request.content) == {
        "messages": ASK,
        "stream": True,
        "stream_options": {"include_usage": True},
        "model": "m",
        "temperature": 0,
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, RequestError), (401, RequestError), (429, CapacityError), (503, CapacityError)]
    + [(500, WorkerError), (502, WorkerError)],
)
async def test_an_error_answer_becomes_our_error(status: int, kind: type[TriptychError]) -> None:
    body = {"error": {"message": "no luck", "type": "t", "param": "model", "code": "c"}}
    with pytest.raises(kind, match="no luck"):
        await client(lambda _: httpx.Response(status, json=body)).ask(ASK, print)


async def test_an_error_answer_of_somebody_else_is_quoted() -> None:
    with pytest.raises(WorkerError, match="bad gateway"):
        await client(lambda _: httpx.Response(502, text="bad gateway")).ask(ASK, print)


async def test_an_error_in_the_stream_is_raised_after_its_text() -> None:
    pieces: list[str] = []
    broken = stream(chunk("Hi"), {"error": {"message": "home lost"}}, done=False)
    with pytest.raises(WorkerError, match="home lost"):
        await client(lambda _: broken).ask(ASK, pieces.append)
    assert pieces == ["Hi"]


async def test_a_stream_without_an_end_is_an_error() -> None:
    with pytest.raises(WorkerError, match="broke off"):
        await client(lambda _: stream(chunk("Hi"), done=False)).ask(ASK, print)


async def test_a_router_that_is_not_there_is_named() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with pytest.raises(WorkerError, match="127.0.0.1:8000: connection refused; is the cluster up?"):
        await client(refuse).ask(ASK, print)


async def test_the_served_model_is_asked_for() -> None:
    models = {"object": "list", "data": [{"id": "smollm2-135m"}]}
    assert await client(lambda _: httpx.Response(200, json=models)).model() == "smollm2-135m"

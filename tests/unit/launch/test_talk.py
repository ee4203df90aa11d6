from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from rich.console import Console

from triptych.errors import CapacityError
from triptych.launch.client import ChatClient
from triptych.launch.talk import Talk, converse


class FakeRouter:
    """Answers every conversation with the number of its messages."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.status = 200

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.seen.append(body)
        if self.status != 200:
            return httpx.Response(self.status, json={"error": {"message": "full"}})
        text = f"{len(body['messages'])} messages"
        chunk = {"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}
        return httpx.Response(200, text=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n")


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


@pytest.fixture
def talk(router: FakeRouter) -> Talk:
    client = ChatClient("http://127.0.0.1:8000", transport=httpx.MockTransport(router))
    console = Console(file=io.StringIO(), width=200)
    return Talk(client, console, system="Be brief.", timings=False, settings={"seed": 7})


def typed(lines: list[str]) -> Callable[[str], str]:
    left: Iterator[str] = iter(lines)

    def read(_: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return read


def test_each_answer_sees_the_whole_conversation(talk: Talk, router: FakeRouter) -> None:
    talk.say("one")
    talk.say("two")
    assert [m["content"] for m in router.seen[1]["messages"]] == [
        "Be brief.",
        "one",
        "2 messages",
        "two",
    ]
    assert router.seen[1]["seed"] == 7


def test_a_message_that_failed_can_be_said_again(talk: Talk, router: FakeRouter) -> None:
    router.status = 503
    with pytest.raises(CapacityError, match="full"):
        talk.say("one")
    assert [message["role"] for message in talk.messages] == ["system"]


def test_a_conversation_goes_on_after_an_error_and_ends_with_its_input(
    talk: Talk, router: FakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", typed(["one", "", "/reset", "two"]))
    converse(talk)
    assert [message["content"] for message in talk.messages] == ["Be brief.", "two", "2 messages"]
    router.status = 503
    monkeypatch.setattr("builtins.input", typed(["three", "/exit", "four"]))
    converse(talk)
    assert len(router.seen) == 3
    assert isinstance(talk.console.file, io.StringIO)
    assert "error: full" in talk.console.file.getvalue()

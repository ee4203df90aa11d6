"""The quick way to a chunk writes what the slow one writes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admission.ask import Ask
from router.chat import ChatShape
from router.completions import CompletionShape
from router.generation import Job
from router.prompt import Prompt
from router.render import ChunkWriter, Extras, Shape
from router.schema import CompletionRequest
from router.text import Piece
from triptych.request import FinishReason, SamplingParams
from triptych.tokenizer import Tokenizer


class Body:
    """Takes parts while it is `ready`."""

    def __init__(self) -> None:
        self.ready = True
        self.parts: list[bytes] = []

    def write(self, part: bytes) -> None:
        self.parts.append(part)


class Texts:
    """The part of a generation that a writer asks: the text of a token is here its number."""

    def add_token(self, choice: int, token_id: int) -> str:
        return "" if token_id == 0 else str(token_id)


ASK = Ask("default", 1, 9, 2, arrived=0.0)


def job() -> Job:
    params = [SamplingParams(seed=1, max_tokens=9)]
    return Job("/v1/x", "x-1", 7, time.monotonic(), [Prompt([1])], params, 2, "", ASK)


def shape(kind: str, tokenizer: Tokenizer, model: str) -> Shape:
    if kind == "chat":
        return ChatShape(model, tokenizer, job())
    return CompletionShape(model, tokenizer, job(), CompletionRequest(prompt="x"))


def writer(of: Shape, *, usage: bool = False, body: Body | None = None) -> ChunkWriter:
    wanted: Any = Extras(usage, running_usage=False, timings=False, token_ids=False)
    return ChunkWriter(of, Texts(), wanted, body)  # type: ignore[arg-type]


def piece(text: str, choice: int = 0, finish: FinishReason | None = None) -> Piece:
    return Piece(choice, text, (1,), (), (0,), finish, None)


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("kind", ["chat", "completion"])
@given(text=st.text(min_size=1), model=st.text())
def test_a_template_is_filled_as_the_schema_would(
    tokenizer: Tokenizer, kind: str, usage: bool, text: str, model: str
) -> None:
    quick = writer(shape(kind, tokenizer, model), usage=usage)
    slow = writer(shape(kind, tokenizer, model), usage=usage)
    slow._has_templates = False
    pieces = [piece("one"), piece("other", 1), piece(text), piece(text, 1), piece(text)]
    pieces += [piece("", finish=FinishReason.STOP)]
    assert [quick.events([p]) for p in pieces] == [slow.events([p]) for p in pieces]
    assert len(quick._templates) == 2


def test_the_short_way_opens_behind_a_choices_first_chunk(tokenizer: Tokenizer) -> None:
    body = Body()
    chunks = writer(shape("chat", tokenizer, "m"), body=body)
    assert not chunks.show_token(0, 5)
    chunks.events([piece("one")])
    assert chunks.show_token(0, 5)
    assert not chunks.show_token(1, 5)  # another choice, which has not been greeted
    (part,) = body.parts
    assert part.startswith(b"data: {") and part.endswith(b"}\n\n")
    assert json.loads(part[6:])["choices"][0]["delta"] == {"content": "5"}


def test_the_short_way_is_closed_while_the_client_does_not_read(tokenizer: Tokenizer) -> None:
    body = Body()
    chunks = writer(shape("completion", tokenizer, "m"), body=body)
    chunks.events([piece("one")])
    body.ready = False
    assert not chunks.show_token(0, 5)
    assert body.parts == []


def test_a_token_without_text_sends_nothing(tokenizer: Tokenizer) -> None:
    body = Body()
    chunks = writer(shape("completion", tokenizer, "m"), body=body)
    chunks.events([piece("one")])
    assert chunks.show_token(0, 0)
    assert body.parts == []

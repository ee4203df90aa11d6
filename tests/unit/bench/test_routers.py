"""What is measured with is right: workers answer in steps, and the client reads all of it."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import pytest

from bench.routers.cases import CASES
from bench.routers.http_workers import Answers, Worker
from bench.routers.load import Heard, text_of
from bench.routers.pace import ANSWER, PREFILL_S, STEP_S, PacedEngine
from triptych.testing.tiny_chat import save_tiny_chat
from triptych.tokenizer import Tokenizer


class Transport:
    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(Tokenizer.load(save_tiny_chat(tmp_path)))


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_comes_in_steps_and_is_read_as_a_whole(
    answers: Answers, stream: bool
) -> None:
    engine, transport = PacedEngine(), Transport()
    worker = Worker(engine, answers)
    worker.connection_made(transport)
    body = json.dumps({"max_completion_tokens": 5, "stream": stream}).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    worker.data_received(request + body[:9])
    assert engine.num_running == 0
    worker.data_received(body[9:])
    now = asyncio.get_running_loop().time() + PREFILL_S
    sizes = []
    for step in range(1, 6):
        engine.step(now + step * STEP_S)
        sizes.append(len(transport.written))
    assert engine.num_running == 0
    assert len(set(sizes)) == (5 if stream else 2)
    text = text_of(Heard(raw=transport.written))
    assert text and ANSWER.startswith(text)


async def test_a_prompt_takes_its_time() -> None:
    engine, said = PacedEngine(), []
    engine.begin(1, said.append)
    engine.step(asyncio.get_running_loop().time())
    assert not said


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_everybody_is_asked_the_same(case) -> None:  # type: ignore[no-untyped-def]
    def some() -> list[bytes]:
        return list(itertools.islice(case.bodies(seed=1), 20))

    assert some() == some()
    assert case.times(1, 2.0) == case.times(1, 2.0)
    assert len(set(some())) == 20

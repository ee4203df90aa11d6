"""Workers that answer OpenAI's chat completions over HTTP/1.1, for routers in front of such.

    python -m bench.routers.http_workers --model smollm2-135m

One process, a socket for each worker; a line of JSON with their URLs when they listen. They do as
little as possible beside what the protocol asks for: the two cores are for the router.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import uvloop

from bench.routers.pace import ANSWER, PacedEngine, Run
from triptych.hub import resolve_model
from triptych.tokenizer import Tokenizer

MODEL = "bench"
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_CARD = {"id": MODEL, "object": "model", "created": 1, "owned_by": "bench", "max_model_len": 8192}
_INFO = {"model_path": MODEL, "served_model_name": MODEL, "tokenizer_path": "", "status": "ok"}


class Answers:
    """What is sent, made once: events and whole bodies by number of tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._pieces = [tokenizer.token_text(i) for i in tokenizer.encode(ANSWER)]
        self.events = [_chunk({"content": piece}, None) for piece in self._pieces]
        self.first = _chunk({"role": "assistant", "content": ""}, None)
        self.last = _chunk({}, "length") + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"

    def whole(self, num_tokens: int) -> bytes:
        message = {"role": "assistant", "content": "".join(self._pieces[:num_tokens])}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
        usage = {
            "prompt_tokens": 1,
            "completion_tokens": num_tokens,
            "total_tokens": num_tokens + 1,
        }
        return _json({**_named("chat.completion"), "choices": [choice], "usage": usage})


class Worker(asyncio.Protocol):
    """One connection; requests on it come one after the other."""

    def __init__(self, engine: PacedEngine, answers: Answers) -> None:
        self._engine = engine
        self._answers = answers
        self._unread = b""
        self._run: Run | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport, self._write = transport, transport.write

    def connection_lost(self, error: Exception | None) -> None:
        if self._run is not None:
            self._engine.leave(self._run)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        head, found, rest = self._unread.partition(b"\r\n\r\n")
        if not found:
            return
        if not head.startswith((b"GET ", b"POST ")):  # HTTP/2, tried first
            self._transport.close()
            return
        size = _content_length(head)
        if len(rest) >= size:
            self._unread = rest[size:]
            self._answer(head, rest[:size])

    def _answer(self, head: bytes, content: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path != b"/v1/chat/completions":
            models = {"object": "list", "data": [_CARD]}
            self._write(_json(models if path == b"/v1/models" else _INFO))
            return
        body = json.loads(content)
        num_tokens = body["max_completion_tokens"]
        say = self._streaming(num_tokens) if body.get("stream") else self._waiting(num_tokens)
        self._run = self._engine.begin(num_tokens, say)

    def _streaming(self, num_tokens: int) -> Callable[[int], None]:
        answers, write = self._answers, self._write

        def say(number: int) -> None:
            event = answers.events[number]
            if number == 0:
                event = _HEAD + answers.first + event
            write(event + answers.last if number == num_tokens - 1 else event)

        return say

    def _waiting(self, num_tokens: int) -> Callable[[int], None]:
        def say(number: int) -> None:
            if number == num_tokens - 1:
                self._write(self._answers.whole(num_tokens))

        return say


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _named(kind: str) -> dict[str, object]:
    return {"id": "chatcmpl-bench", "object": kind, "created": 1, "model": MODEL}


def _chunk(delta: dict[str, str], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    data = json.dumps({**_named("chat.completion.chunk"), "choices": [choice]})
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def _json(reply: object) -> bytes:
    body = json.dumps(reply).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


async def serve(model: str, num_workers: int) -> None:
    answers = Answers(Tokenizer.load(resolve_model(model)))
    loop = asyncio.get_running_loop()
    urls = []
    async with asyncio.TaskGroup() as engines:
        for _ in range(num_workers):
            engine = PacedEngine()
            engines.create_task(engine.steps())
            server = await loop.create_server(partial(Worker, engine, answers), "127.0.0.1", 0)
            urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        print(json.dumps({"urls": urls}), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args(argv)
    uvloop.run(serve(args.model, args.workers))


if __name__ == "__main__":
    main()

"""A streaming client that costs next to nothing: it counts events and parses only the last one."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_LAST_READS = 8  # they hold the last events of a stream, whole


@dataclass(slots=True)
class Heard:
    """One stream as its client saw it. Times are perf_counter seconds."""

    asked_at: float = 0.0
    ended_at: float = 0.0
    reads: list[float] = field(default_factory=list)  # one a read that brought events
    num_events: int = 0
    completion_tokens: int = 0


async def stream_all(url: str, bodies: list[dict[str, Any]]) -> list[Heard]:
    """POSTs every body to /v1/completions at once; returns when all streams have ended."""
    loop = asyncio.get_running_loop()
    parts = urlsplit(url)
    streams = []
    for body in bodies:
        done = loop.create_future()
        _, stream = await loop.create_connection(
            lambda done=done: _Stream(done), parts.hostname, parts.port
        )
        streams.append((stream, _posted(body), done))
    for stream, request, _ in streams:
        stream.ask(request)
    try:
        return [await done for _, _, done in streams]
    finally:
        for stream, _, _ in streams:
            stream.close()


class _Stream(asyncio.Protocol):
    def __init__(self, done: asyncio.Future[Heard]) -> None:
        self._done = done
        self._heard = Heard()
        self._last: deque[bytes] = deque(maxlen=_LAST_READS)
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def ask(self, request: bytes) -> None:
        self._heard.asked_at = time.perf_counter()
        self._transport.write(request)

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        heard = self._heard
        events = data.count(b"\n\n")
        if events:
            heard.reads.append(time.perf_counter())
            heard.num_events += events
        self._last.append(data)
        if b"[DONE]" in data or b"\r\n0\r\n\r\n" in data:
            self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError(self._heard_last()))

    def _finish(self) -> None:
        if self._done.done():
            return
        text = self._heard_last()
        found = [line[6:] for line in text.split("\n") if line.startswith("data: {")]
        last = json.loads(found[-1]) if found else {}
        if "usage" not in last:
            self._done.set_exception(ConnectionError(text))
            return
        self._heard.ended_at = time.perf_counter()
        self._heard.completion_tokens = last["usage"]["completion_tokens"]
        self._done.set_result(self._heard)

    def _heard_last(self) -> str:
        return b"".join(self._last).decode(errors="replace")


def _posted(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content

"""A load of chat requests that costs little itself: bytes are counted and looked at, not parsed.

`steady` sends at given times whatever becomes of the earlier requests: for latencies. `flood` keeps
so many requests open: for the work that each one costs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Heard:
    """One answer. Times are monotonic seconds."""

    asked_at: float = 0.0
    first_at: float = 0.0  # head of the answer, which comes with the first token or with all
    ended_at: float = 0.0
    raw: bytes = b""


async def steady(url: str, bodies: Sequence[bytes], times: Sequence[float]) -> list[Heard]:
    """`times`: of each request, seconds from now."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    client = Client(url)

    async def one(body: bytes, at: float) -> Heard:
        await asyncio.sleep(began + at - loop.time())
        return await client.ask(body)

    try:
        return await asyncio.gather(*map(one, bodies, times))
    finally:
        client.close()


async def flood(url: str, bodies: Sequence[bytes], num_open: int) -> list[Heard]:
    client = Client(url)
    waiting = iter(bodies)
    heard: list[Heard] = []

    async def some() -> None:
        for body in waiting:
            heard.append(await client.ask(body))

    try:
        await asyncio.gather(*(some() for _ in range(num_open)))
        return heard
    finally:
        client.close()


class Client:
    """Keeps its connections and uses the one that was used last."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._idle: list[_Connection] = []

    async def ask(self, body: bytes) -> Heard:
        """Raises ConnectionError, with what came, for anything but a whole answer."""
        if self._idle:
            connection = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        async with asyncio.timeout(_TIMEOUT_S):
            heard = await connection.ask(body)
        self._idle.append(connection)
        return heard

    def close(self) -> None:
        for connection in self._idle:
            connection.transport.close()


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, body: bytes) -> asyncio.Future[Heard]:
        self._parts: list[bytes] = []
        self._heard = Heard(asked_at=time.monotonic())
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(_HEAD % len(body) + body)
        return self._done

    def data_received(self, data: bytes) -> None:
        if not self._parts:
            self._heard.first_at = time.monotonic()
        self._parts.append(data)
        # An answer ends with its last chunk or its object; a part of one may look so, too.
        if data.endswith((b"0\r\n\r\n", b"}")):
            raw = b"".join(self._parts)
            if _is_whole(raw):
                self._heard.ended_at, self._heard.raw = time.monotonic(), raw
                if raw.startswith(b"HTTP/1.1 200"):
                    self._done.set_result(self._heard)
                else:
                    self._done.set_exception(ConnectionError(raw[:2000]))

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError(b"".join(self._parts)[-2000:]))


_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


def _is_whole(raw: bytes) -> bool:
    head, _, body = raw.partition(b"\r\n\r\n")
    _, found, size = head.lower().partition(b"content-length:")
    if found:
        return len(body) >= int(size.split(b"\r\n")[0])
    return body.endswith(b"\r\n0\r\n\r\n")


def text_of(heard: Heard) -> str:
    """What the client would show. Raises KeyError or ValueError for what is no chat completion."""
    body = heard.raw.partition(b"\r\n\r\n")[2]
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    if events:
        deltas = [json.loads(each)["choices"][0]["delta"] for each in events]
        return "".join(delta.get("content") or "" for delta in deltas)
    reply: dict[str, Any] = json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])
    text: str = reply["choices"][0]["message"]["content"]
    return text

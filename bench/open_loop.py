"""An open-loop client: a request is sent when it is due, whatever became of those before it.

Connections are kept and used again, as a client library would; there are as many as requests are
open at once. A refusal is answered as its client is told to: once, after Retry-After, or at once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import httptools

Manners = Literal["once", "obedient", "impatient"]

_IMPATIENT_S = 0.05  # until it asks again, whatever it was told
_ATTEMPTS = 20
_TAIL_BYTES = 2048  # they hold a stream's last events, whole


@dataclass(frozen=True, slots=True)
class Planned:
    """One request of a load."""

    at: float  # seconds from the beginning
    tenant: str
    prompt: Sequence[int]
    answer_tokens: int
    body: bytes  # of the HTTP request, head included


@dataclass(slots=True)
class Attempt:
    """One time that a request was sent. Times are perf_counter seconds."""

    sent_at: float
    status: int = 0  # 0: no answer came
    headers: dict[str, str] = field(default_factory=dict)
    first_at: float = 0.0  # byte of a stream's body
    ended_at: float = 0.0
    tokens: int = 0  # generated
    code: str = ""  # of an error, also of one within a stream
    tail: bytes = b""

    @property
    def ttft_s(self) -> float:
        return self.first_at - self.sent_at

    @property
    def itl_s(self) -> float:
        return (self.ended_at - self.first_at) / max(1, self.tokens - 1)

    @property
    def retry_after_s(self) -> float:
        return float(self.headers.get("retry-after", "nan"))

    @property
    def whole(self) -> bool:
        return self.status == 200 and self.tokens > 0 and not self.code


@dataclass(slots=True)
class Asked:
    """A request and what became of it."""

    plan: Planned
    attempts: list[Attempt] = field(default_factory=list)
    late_s: float = 0.0  # of the client: the first attempt was sent so long after it was due


class Client:
    """Lives on one event loop; `close` ends every connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname or "", parts.port or 80
        self._idle: list[_Connection] = []

    async def play(
        self, plans: Sequence[Planned], manners: Manners, until_s: float, patience_s: float
    ) -> list[Asked]:
        """Sends all of it when it is due; no retry after `until_s`. Returns when all is answered.

        What is not answered `patience_s` after `until_s` is given up: its attempt has no status.
        """
        began = time.perf_counter()
        asked = [Asked(plan) for plan in plans]
        tasks = []
        for each in asked:
            due = began + each.plan.at
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            each.late_s = time.perf_counter() - due
            tasks.append(asyncio.create_task(self._ask(each, manners, began + until_s)))
        left_s = began + until_s + patience_s - time.perf_counter()
        _, stuck = await asyncio.wait(tasks, timeout=left_s) if tasks else (set(), set())
        for task in stuck:
            task.cancel()
        if stuck:
            await asyncio.wait(stuck)
        return asked

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    async def _ask(self, asked: Asked, manners: Manners, until: float) -> None:
        for _ in range(1 if manners == "once" else _ATTEMPTS):
            attempt = await self._send(asked)
            if attempt.status != 429:
                return
            pause_s = attempt.retry_after_s if manners == "obedient" else _IMPATIENT_S
            if time.perf_counter() + pause_s > until:
                return
            await asyncio.sleep(pause_s)

    async def _send(self, asked: Asked) -> Attempt:
        connection = await self._connection()
        attempt = Attempt(time.perf_counter())
        asked.attempts.append(attempt)
        try:
            await connection.ask(asked.plan.body, attempt)
        except BaseException:
            connection.close()
            raise
        if connection.reusable:
            self._idle.append(connection)
        return attempt

    async def _connection(self) -> _Connection:
        while self._idle:
            if (connection := self._idle.pop()).reusable:  # the server may have closed it
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, *self._address)
        return connection


class _Connection(asyncio.Protocol):
    """One request at a time. The attempt is filled in as the answer comes."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._parser = httptools.HttpResponseParser(self)
        self._attempt = Attempt(0.0)
        self._done: asyncio.Future[None] | None = None

    @property
    def reusable(self) -> bool:
        return not self._transport.is_closing()

    async def ask(self, request: bytes, attempt: Attempt) -> None:
        self._attempt = attempt
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._finish()

    # ---- of the parser -------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._attempt.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self._attempt.status = self._parser.get_status_code()

    def on_body(self, part: bytes) -> None:
        attempt = self._attempt
        if not attempt.first_at:
            attempt.first_at = time.perf_counter()
        attempt.tail = (attempt.tail + part)[-_TAIL_BYTES:]

    def on_message_complete(self) -> None:
        self._attempt.ended_at = time.perf_counter()
        _read_end(self._attempt)
        self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


def _read_end(attempt: Attempt) -> None:
    """What the end of an answer says: how many tokens, or which error."""
    lines = attempt.tail.decode(errors="replace").splitlines()
    found = [line.removeprefix("data: ") for line in lines if line.startswith(("data: {", "{"))]
    attempt.tail = b""
    last = json.loads(found[-1]) if found else {}
    if "error" in last:
        attempt.code = last["error"]["code"] or last["error"]["type"]
    attempt.tokens = (last.get("usage") or {}).get("completion_tokens", 0)


def posted(body: dict[str, Any], key: str) -> bytes:
    """The whole HTTP request."""
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def sampled(every_s: float, take: Callable[[float], None]) -> None:
    """Calls `take(seconds since now)` again and again, until cancelled."""
    began = time.perf_counter()
    while True:
        take(time.perf_counter() - began)
        await asyncio.sleep(every_s)

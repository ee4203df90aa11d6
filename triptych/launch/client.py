"""A small streaming client of our own chat API, for `triptych up --prompt` and `triptych chat`."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from triptych.errors import CapacityError, RequestError, TriptychError, WorkerError

Message = Mapping[str, str]  # role, content

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_TIMEOUT = httpx.Timeout(600.0, connect=5.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as its reader saw it."""

    text: str
    finish_reason: str | None
    arrivals: tuple[float, ...]  # seconds from sending the request to each piece of text
    usage: Mapping[str, Any] | None
    timings: Mapping[str, Any] | None  # `triptych` of the last chunk, when asked for

    @property
    def median_gap_s(self) -> float | None:
        """Between two pieces of text; None for fewer than two."""
        gaps = [later - earlier for earlier, later in itertools.pairwise(self.arrivals)]
        return statistics.median(gaps) if gaps else None


class ChatClient:
    """`url` is the router's, with or without `/v1`. Errors of the API come as our own."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._base = url.rstrip("/").removesuffix("/v1")
        self._transport = transport
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def model(self) -> str:
        """The name of the served model."""
        async with self._client() as client:
            try:
                answer = await client.get("/v1/models")
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
            if answer.is_error:
                raise explain(answer.status_code, answer.content)
            return str(answer.json()["data"][0]["id"])

    async def ask(
        self,
        messages: Sequence[Message],
        on_text: Callable[[str], None],
        *,
        timings: bool = False,
        **settings: Any,
    ) -> Answer:
        """Streams the answer into `on_text`. `settings` go into the request as they are.

        Raises RequestError, CapacityError or WorkerError; a broken stream is a WorkerError.
        """
        body = {
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **settings,
        }
        headers = {"X-Triptych-Timings": "1"} if timings else {}
        reader = _Reader(on_text, time.monotonic())
        async with self._client() as client:
            try:
                async with client.stream(
                    "POST", "/v1/chat/completions", json=body, headers=headers
                ) as response:
                    if response.is_error:
                        raise explain(response.status_code, await response.aread())
                    async for event in _events(response.aiter_lines()):
                        reader.take(event)
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
        return reader.answer()

    def _client(self) -> httpx.AsyncClient:
        # A proxy of the environment cannot reach our loopback interface.
        local = urlsplit(self._base).hostname in _LOOPBACK
        return httpx.AsyncClient(
            base_url=self._base,
            headers=self._headers,
            timeout=_TIMEOUT,
            transport=self._transport,
            trust_env=not local,
        )

    def _unreachable(self, error: httpx.HTTPError) -> TriptychError:
        reason = str(error) or type(error).__name__
        return WorkerError(f"{self._base}: {reason}; is the cluster up?")


def explain(status: int, body: bytes) -> TriptychError:
    """The error behind an HTTP error answer."""
    try:
        problem = json.loads(body)["error"]
        message, param, code = problem["message"], problem.get("param"), problem.get("code")
    except (ValueError, KeyError, TypeError):
        message, param, code = body[:200].decode(errors="replace") or f"HTTP {status}", None, None
    if status in (429, 503):
        return CapacityError(message)
    if 400 <= status < 500:
        return RequestError(message, param=param, code=code)
    return WorkerError(message)


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[Mapping[str, Any]]:
    """The JSON objects of a server-sent stream. Raises WorkerError when it ends without [DONE]."""
    async for line in lines:
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            return
        if data != line:
            yield json.loads(data)
    raise WorkerError("the stream broke off in the middle of the answer")


class _Reader:
    """Puts the chunks of one streamed answer together."""

    def __init__(self, on_text: Callable[[str], None], sent: float) -> None:
        self._on_text = on_text
        self._sent = sent
        self._pieces: list[str] = []
        self._arrivals: list[float] = []
        self._finish_reason: str | None = None
        self._last: Mapping[str, Any] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        if "error" in event:
            raise WorkerError(event["error"]["message"])
        for choice in event["choices"]:
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            if text := choice["delta"].get("content"):
                self._arrivals.append(time.monotonic() - self._sent)
                self._pieces.append(text)
                self._on_text(text)
        if event.get("usage"):
            self._last = event

    def answer(self) -> Answer:
        return Answer(
            text="".join(self._pieces),
            finish_reason=self._finish_reason,
            arrivals=tuple(self._arrivals),
            usage=self._last.get("usage"),
            timings=self._last.get("triptych"),
        )

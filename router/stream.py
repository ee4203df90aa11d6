"""Answers that end when their client leaves: server-sent events, and whole answers.

A request is one task. When the client leaves, that task is cancelled, which closes the generators
it awaits and with them the gRPC calls, at once and in both kinds of answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from router.errors import ClientGone, DeadlineError, Problem, problem_of, stopping
from router.protocol import BODY_EXTENSION, DirectBody
from triptych.errors import TriptychError

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}


async def while_connected(receive: Receive, work: Coroutine[None, None, _T]) -> _T:
    """The result of `work`; cancels it and raises ClientGone when the client leaves first.

    The request's body must have been read: whatever arrives before the disconnect is dropped.
    """
    job = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({job, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientGone
        return job.result()
    finally:
        for task in (job, watch):
            task.cancel()
        await asyncio.gather(job, watch, return_exceptions=True)


class EventStream(Response):
    """A stream of `data: …` events, closed by `data: [DONE]`.

    The head goes out with the first event: an error before it is an ordinary error answer. A later
    one becomes an error event, and the stream ends without [DONE].

    `events(body)` yields whole events, one or more at a time. After its first ones it may write
    events into `body`, if there is one: a shorter way to the same socket.

    A client that does not read stops the generator: an event is asked for only after the server's
    socket took the last one (uvicorn lets 64 KiB wait), and `deadline_s` ends the wait.
    """

    def __init__(
        self,
        events: Callable[[DirectBody | None], AsyncGenerator[bytes, None]],
        *,
        headers: Callable[[], Mapping[str, str]],  # asked when the first event is there
        deadline_s: float,
        interrupted: Callable[[str], None],  # told why, when there is no proper end
    ) -> None:
        super().__init__()
        self._events = events
        self._more_headers = headers
        self._deadline_s = deadline_s
        self._interrupted = interrupted
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                body = scope.get("extensions", {}).get(BODY_EXTENSION)
                await while_connected(receive, self._pump(send, body))
        except ClientGone:
            self._interrupted("client")
            if not self._started:
                raise
            _log.info("client left in the middle of its stream")
        except TimeoutError:
            self._interrupted("stalled")
            if not self._started:
                raise DeadlineError("no token before the request's deadline") from None
            _log.warning("client did not read its stream before the request's deadline")
        except asyncio.CancelledError:  # the server gives up what outlived its drain
            self._interrupted("stopping")
            if self._started:
                await self._send_last(send, _problem_event(stopping()))
            raise

    async def _pump(self, send: Send, body: DirectBody | None) -> None:
        try:
            async with contextlib.aclosing(self._events(body)) as events:
                async for some in events:
                    if not self._started:
                        await self._start(send)
                    await send({"type": "http.response.body", "body": some, "more_body": True})
            if not self._started:
                await self._start(send)
            await self._send_last(send, b"data: [DONE]\n\n")
        except TriptychError as error:
            if not self._started:
                raise
            _log.warning("stream broke: %s", error)
            self._interrupted("error")
            await self._send_last(send, _problem_event(problem_of(error)))

    async def _start(self, send: Send) -> None:
        self._started = True
        head = Headers({**_HEADERS, **self._more_headers()})
        await send({"type": "http.response.start", "status": 200, "headers": head.raw})

    async def _send_last(self, send: Send, frame: bytes) -> None:
        await send({"type": "http.response.body", "body": frame, "more_body": False})


def event(data: str) -> str:
    """Of text without line breaks, as JSON is."""
    return f"data: {data}\n\n"


def _problem_event(problem: Problem) -> bytes:
    return event(problem.body().decode()).encode()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

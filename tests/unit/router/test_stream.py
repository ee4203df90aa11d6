"""Answers that end with their client, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from router.errors import ClientGone, DeadlineError
from router.protocol import DirectBody
from router.reply import StatusReply
from router.stream import EventStream, event, while_connected
from triptych.errors import CapacityError, WorkerError


class Client:
    """The server's side of a connection: what was sent, and whether the client is still there."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.reads = asyncio.Event()  # cleared: `send` waits, as uvicorn does with a full buffer
        self.reads.set()
        self.full = asyncio.Event()  # set when a `send` waits
        self.heard = asyncio.Event()  # set by the first message

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if not self.reads.is_set():
            self.full.set()
            await self.reads.wait()
        self.sent.append(message)
        self.heard.set()

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


class Numbers:
    """Chunks 0, 1, 2, … with an error or a pause in their place where the test wants it."""

    def __init__(self, *steps: Any) -> None:
        self.steps = steps
        self.asked = 0
        self.closed = False

    async def events(self, body: DirectBody | None) -> AsyncGenerator[bytes, None]:
        try:
            for step in self.steps:
                self.asked += 1
                match step:
                    case asyncio.Event():
                        await step.wait()
                    case BaseException():
                        raise step
                    case _:
                        yield event(StatusReply(status=str(step)).json_text()).encode()
        finally:
            self.closed = True


def stream(numbers: Numbers, reasons: list[str], deadline_s: float = 10.0) -> EventStream:
    return EventStream(
        numbers.events,
        headers=lambda: {"X-Seen": str(numbers.asked)},
        deadline_s=deadline_s,
        interrupted=reasons.append,
    )


async def run(client: Client, numbers: Numbers, reasons: list[str], **options: Any) -> None:
    await stream(numbers, reasons, **options)({}, client.receive, client.send)  # type: ignore[arg-type]


async def test_chunks_become_events_and_done_follows() -> None:
    client, reasons = Client(), list[str]()
    await run(client, Numbers(1, 2), reasons)
    assert client.text == 'data: {"status":"1"}\n\ndata: {"status":"2"}\n\ndata: [DONE]\n\n'
    assert not client.sent[-1]["more_body"]
    assert reasons == []


async def test_the_head_waits_for_the_first_chunk_and_forbids_buffering() -> None:
    client = Client()
    await run(client, Numbers(1), [])
    headers = dict(client.sent[0]["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"x-accel-buffering"] == b"no"
    assert headers[b"x-seen"] == b"1"
    assert b"content-length" not in headers


async def test_an_error_before_the_first_chunk_is_left_to_the_error_handler() -> None:
    client, numbers = Client(), Numbers(CapacityError("full"))
    with pytest.raises(CapacityError):
        await run(client, numbers, [])
    assert client.sent == []
    assert numbers.closed


async def test_a_later_error_is_an_event_and_there_is_no_done() -> None:
    client, reasons = Client(), list[str]()
    await run(client, Numbers(1, WorkerError("the worker died")), reasons)
    assert client.text.endswith(
        'data: {"error":{"message":"the worker died","type":"server_error",'
        '"param":null,"code":"worker_failed"}}\n\n'
    )
    assert "[DONE]" not in client.text
    assert not client.sent[-1]["more_body"]
    assert reasons == ["error"]


async def test_a_client_that_leaves_closes_the_generator_at_once() -> None:
    client, numbers, reasons = Client(), Numbers(1, asyncio.Event()), list[str]()
    task = asyncio.create_task(run(client, numbers, reasons))
    client.gone.set()
    await asyncio.wait_for(task, 5)
    assert numbers.closed
    assert reasons == ["client"]


async def test_a_client_that_leaves_before_the_first_chunk_gets_no_head() -> None:
    client, numbers, reasons = Client(), Numbers(asyncio.Event()), list[str]()
    client.gone.set()
    with pytest.raises(ClientGone):
        await run(client, numbers, reasons)
    assert numbers.closed
    assert client.sent == []
    assert reasons == ["client"]


async def test_a_client_that_does_not_read_stops_the_generator() -> None:
    client, numbers = Client(), Numbers(*range(100))
    client.reads.clear()
    task = asyncio.create_task(run(client, numbers, []))
    await client.full.wait()
    assert numbers.asked == 1
    client.reads.set()
    await task
    assert client.text.count("data: ") == 101


async def test_a_client_that_never_reads_is_given_up_at_the_deadline() -> None:
    client, numbers, reasons = Client(), Numbers(1, 2, 3), list[str]()
    client.reads.clear()
    await run(client, numbers, reasons, deadline_s=0.01)
    assert numbers.closed
    assert reasons == ["stalled"]


async def test_a_stream_that_the_server_gives_up_says_so() -> None:
    client, numbers, reasons = Client(), Numbers(1, asyncio.Event()), list[str]()
    task = asyncio.create_task(run(client, numbers, reasons))
    await client.heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert numbers.closed
    assert "the router is stopping" in client.text
    assert not client.sent[-1]["more_body"]
    assert reasons == ["stopping"]


async def test_no_chunk_by_the_deadline_is_a_deadline_error() -> None:
    client, numbers = Client(), Numbers(asyncio.Event())
    with pytest.raises(DeadlineError):
        await run(client, numbers, [], deadline_s=0.01)
    assert numbers.closed


async def test_the_result_of_connected_work_is_its_own() -> None:
    async def work() -> int:
        return 7

    assert await while_connected(Client().receive, work()) == 7  # type: ignore[arg-type]


async def test_work_nobody_waits_for_is_cancelled() -> None:
    client = Client()
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = asyncio.create_task(while_connected(client.receive, work()))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    client.gone.set()
    with pytest.raises(ClientGone):
        await task
    assert ended == [True]


async def test_cancelling_the_request_cancels_its_work() -> None:
    begun = asyncio.Event()
    ended = []

    async def work() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = asyncio.create_task(while_connected(Client().receive, work()))  # type: ignore[arg-type]
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]

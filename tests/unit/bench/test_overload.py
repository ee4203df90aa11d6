"""The parts of the live overload bench that can be wrong without a cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from bench.open_loop import Asked, Client, Manners, Planned, posted
from bench.overload_phase import Slo, jain
from bench.overload_watch import slope

REFUSAL = (
    b"HTTP/1.1 429 Too Many\r\nretry-after: %d\r\ncontent-length: 38\r\n\r\n"
    b'{"error": {"code": "ttft_slo"}, "a":1}'
)
EVENTS = (
    b'data: {"choices": [{"text": "a"}]}\n\n',
    b'data: {"usage": {"completion_tokens": 7}}\n\ndata: [DONE]\n\n',
)
ANSWER = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"".join(
    b"%x\r\n%b\r\n" % (len(part), part) for part in (*EVENTS, b"")
)


@contextlib.asynccontextmanager
async def serving(*answers: bytes) -> AsyncIterator[tuple[Client, list[int]]]:
    """A client of a server that gives these answers in turn, and the connections asked on."""
    left, connections = list(answers), list[int]()
    serving: list[asyncio.Task[None] | None] = []  # one a connection

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(serving)
        serving.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n{}")
                connections.append(number)
                writer.write(left.pop(0))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        with contextlib.closing(Client(f"http://{host}:{port}")) as client:
            yield client, connections
        await asyncio.wait([task for task in serving if task is not None])


async def asked_with(manners: Manners, *answers: bytes) -> tuple[Asked, list[int]]:
    plan = Planned(0.0, "gold", [1], 7, posted({}, "gold"))
    async with serving(*answers) as (client, connections):
        (asked,) = await client.play([plan], manners, until_s=0.5, patience_s=5.0)
    return asked, connections


@pytest.mark.parametrize(
    ("manners", "statuses"),
    [("once", [429]), ("obedient", [429, 200]), ("impatient", [429, 200])],
)
async def test_clients_ask_again_as_their_manners_are(
    manners: Manners, statuses: list[int]
) -> None:
    asked, connections = await asked_with(manners, REFUSAL % 0, ANSWER)
    assert [attempt.status for attempt in asked.attempts] == statuses
    assert asked.attempts[0].code == "ttft_slo"
    assert set(connections) == {0}, "a connection is used again"


async def test_the_obedient_do_not_come_back_before_they_were_told_to() -> None:
    asked, _ = await asked_with("obedient", REFUSAL % 60, ANSWER)
    assert [attempt.retry_after_s for attempt in asked.attempts] == [60.0]


async def test_an_answer_is_judged_by_its_first_byte_and_its_pace() -> None:
    asked, _ = await asked_with("once", ANSWER)
    (attempt,) = asked.attempts
    assert attempt.whole and attempt.tokens == 7
    assert Slo(ttft_s=60.0, itl_s=60.0).kept(attempt)
    assert not Slo(ttft_s=0.0, itl_s=60.0).kept(attempt)


def test_fairness_is_one_when_all_have_the_same_and_less_when_one_has_more() -> None:
    assert jain([1.0, 1.0, 1.0, 1.0]) == 1.0
    assert jain([1.0, 0.0, 0.0, 0.0]) == 0.25


def test_memory_that_grows_has_a_slope() -> None:
    assert slope([(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]) == pytest.approx(2.0)
    assert slope([(3.0, 5.0)]) == 0.0

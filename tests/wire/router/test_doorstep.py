"""Requests that are turned away before anybody reads their bodies."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.wire.router.test_admission import COMPLETIONS, REJECTED, ask, tenant
from triptych.testing.fake_worker import says

HTTP_REQUESTS = "triptych_http_requests_total"


@pytest.fixture
async def full(start_world: Any) -> Any:
    """A router whose tenant acme has used up its rate for the next quarter of an hour."""
    world = await start_world(tenants=(tenant(requests_per_s=0.001, request_burst=1),))
    await world.add_worker("decode-0", says([5]))
    assert (await ask(world)).status_code == 200
    return world


def head(key: str = "key", path: str = COMPLETIONS, **headers: object) -> bytes:
    fields = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON body."""
    async with asyncio.timeout(5):
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines[1:] if line)
        headers = {name.lower(): value for name, value in pairs}
        body = await reader.readexactly(int(headers["content-length"]))
    return int(lines[0].split()[1]), headers, json.loads(body)


async def connect(world: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(await world.serve())
    return await asyncio.open_connection(parts.hostname, parts.port)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_the_head_alone_is_answered_and_the_connection_serves_on(
    full: Any, path: str
) -> None:
    reader, writer = await connect(full)
    writer.write(head(path=path, Content_Length=1000))  # and nothing of the body
    status, headers, body = await answer_of(reader)
    assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 800 <= int(headers["retry-after"]) <= 1000
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-request-id"]
    writer.write(b"x" * 1000 + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await answer_of(reader))[0] == 200
    writer.close()


async def test_what_is_turned_away_is_counted_as_other_refusals_are(full: Any) -> None:
    assert (await ask(full)).status_code == 429
    assert full.metric(REJECTED, tenant="acme", reason="requests_per_s") == 1
    assert full.metric(HTTP_REQUESTS, route=COMPLETIONS, status="429") == 1


async def test_nothing_of_the_request_is_read(full: Any) -> None:
    said = []

    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    async def send(message: Any) -> None:
        said.append(message)

    headers = [(b"authorization", b"Bearer key"), (b"content-length", b"1000")]
    scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": headers}
    await full.app(scope, receive, send)
    assert said[0]["status"] == 429


async def test_an_unknown_key_is_told_so_however_full_the_router_is(full: Any) -> None:
    assert (await ask(full, key="another")).status_code == 401


async def test_a_body_that_is_too_long_still_ends_the_connection(full: Any) -> None:
    reader, writer = await connect(full)
    writer.write(head(Content_Length=1 << 40))
    status, headers, _ = await answer_of(reader)
    assert (status, headers["connection"]) == (413, "close")
    writer.close()


async def test_a_body_that_does_not_say_its_length_is_read_and_turned_away(full: Any) -> None:
    reader, writer = await connect(full)
    body = json.dumps({"prompt": [7], "max_tokens": 4}).encode()
    writer.write(head(Transfer_Encoding="chunked"))
    writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    assert (await answer_of(reader))[0] == 429
    writer.close()

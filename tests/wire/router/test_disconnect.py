"""Clients that leave, do not read or send too much, over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import pytest

from transport.protos import worker_pb2 as pb
from triptych.request import TokenDelta
from triptych.testing.fake_worker import says

CHAT = "/v1/chat/completions"
INTERRUPTED = "triptych_interrupted_requests_total"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


def posted(path: str, body: Any) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_the_home_thinks_cancels_its_call(
    start_world: Any, path: str, stream: bool
) -> None:
    world = await start_world()
    worker = await world.add_worker("decode-0", lambda request: [asyncio.Event()])
    _, writer = await asyncio.open_connection(*address(await world.serve()))
    body = QUESTION if path == CHAT else {"prompt": ["a", "b"]}
    writer.write(posted(path, {**body, "stream": stream}))
    calls = [await worker.next_call() for _ in body.get("prompt", "1")]
    writer.close()
    for call in calls:
        await asyncio.wait_for(call.cancelled.wait(), 5)
    await world.counted(INTERRUPTED, route=path, reason="client")
    assert world.metric("triptych_live_streams") == 0
    assert world.metric("triptych_http_requests_total", route=path, status="499") == 1


async def test_leaving_in_the_middle_of_a_stream_cancels_its_call(start_world: Any) -> None:
    world = await start_world()
    token = world.tokenizer.encode("a")[0]
    worker = await world.add_worker(
        "decode-0", lambda request: [TokenDelta("", 0, (token,)), asyncio.Event()]
    )
    reader, writer = await asyncio.open_connection(*address(await world.serve()))
    writer.write(posted(CHAT, {**QUESTION, "stream": True}))
    await reader.readuntil(b'"content":"a"')
    call = await worker.next_call()
    assert not call.ended.is_set()
    writer.close()
    await asyncio.wait_for(call.cancelled.wait(), 5)
    await world.counted(INTERRUPTED, route=CHAT, reason="client")


async def test_a_client_that_never_reads_holds_the_home_back(start_world: Any) -> None:
    """64 MiB of deltas: all that may be under way are socket buffers and HTTP/2 windows."""
    world = await start_world()
    token = world.tokenizer.encode("a")[0]
    delta = TokenDelta("", 0, (token,) * 16384)  # 16 KiB on the wire
    total = 4096

    def pours(request: pb.GenerateRequest) -> Iterable[TokenDelta]:
        return (delta for _ in range(total))

    worker = await world.add_worker("decode-0", pours)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address(await world.serve()))
        client.sendall(posted(CHAT, {**QUESTION, "stream": True}))
        call = await worker.next_call()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call.ended.wait(), 2)
        assert call.sent < total / 4
    await asyncio.wait_for(call.cancelled.wait(), 5)
    await world.counted(INTERRUPTED, route=CHAT, reason="client")


async def test_a_client_that_never_reads_holds_up_nobody_else(start_world: Any) -> None:
    """They share the call to the home."""
    world = await start_world()
    token = world.tokenizer.encode("a")[0]

    def pours(request: pb.GenerateRequest) -> Iterable[TokenDelta | pb.RequestStats]:
        if request.sampling.max_tokens == 3:
            return says([token] * 3)(request)
        return (TokenDelta("", 0, (token,) * 1024) for _ in range(100_000))

    worker = await world.add_worker("decode-0", pours)
    url = await world.serve()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address(url))
        client.sendall(posted(CHAT, {**QUESTION, "stream": True}))
        call = await worker.next_call()
        for _ in range(20):
            reply = await world.client.post(CHAT, json={**QUESTION, "max_tokens": 3})
            assert reply.json()["choices"][0]["message"]["content"] == "aaa"
        assert not call.ended.is_set()
    await asyncio.wait_for(call.cancelled.wait(), 5)


async def test_a_client_that_reads_late_misses_nothing(start_world: Any) -> None:
    world = await start_world()
    letters = [world.tokenizer.encode(letter)[0] for letter in "abcdefghij"]
    total, at_once = 40_000, 100
    said = (letters * (total // len(letters)))[:total]
    worker = await world.add_worker("decode-0", says(said, tokens_per_delta=at_once))
    where = address(await world.serve())
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, where)
        body = {**QUESTION, "stream": True}
        await loop.sock_sendall(client, posted(CHAT, body))
        call = await worker.next_call()
        with pytest.raises(TimeoutError):  # the home is held
            await asyncio.wait_for(call.ended.wait(), 1)
        assert call.sent < total / at_once
        heard = b""
        while b"[DONE]" not in heard[-100:]:
            heard += await asyncio.wait_for(loop.sock_recv(client, 1 << 16), 5)
    text = "".join(re.findall(r'"content":"(\w*)"', heard.decode()))
    assert text == "abcdefghij" * (total // len(letters))


async def test_a_declared_size_over_the_limit_is_refused_unread(start_world: Any) -> None:
    world = await start_world(max_body=10_000)
    reader, writer = await asyncio.open_connection(*address(await world.serve()))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: 10001\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 5)  # to the end: the connection is closed
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"at most 10000 bytes" in answer
    writer.close()


async def test_a_body_without_a_size_is_read_no_further_than_the_limit(start_world: Any) -> None:
    world = await start_world(max_body=10_000)
    reader, writer = await asyncio.open_connection(*address(await world.serve()))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    writer.write(b"3000\r\n" + b" " * 0x3000 + b"\r\n")  # and no end of it
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_a_body_of_just_the_limit_is_taken(start_world: Any) -> None:
    body = json.dumps({"prompt": "a"})
    world = await start_world(max_body=len(body))
    await world.add_worker("decode-0")
    headers = {"Content-Type": "application/json"}
    response = await world.client.post("/v1/completions", content=body, headers=headers)
    assert response.status_code == 200
    response = await world.client.post("/v1/completions", content=body + " ", headers=headers)
    assert response.status_code == 413


async def test_a_body_that_does_not_arrive_in_time_is_a_408(
    start_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.body.BODY_DEADLINE_S", 0.05)
    world = await start_world()
    reader, writer = await asyncio.open_connection(*address(await world.serve()))
    writer.write(posted(CHAT, QUESTION)[:-5])
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_leaving_before_the_body_is_complete_asks_no_worker(world: Any) -> None:
    reader, writer = await asyncio.open_connection(*address(await world.serve()))
    writer.write(posted(CHAT, QUESTION)[:-5])
    await writer.drain()
    writer.close()
    await world.counted("triptych_http_requests_total", route=CHAT, status="499")


@pytest.mark.parametrize(
    "raw",
    [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 66_000],
    ids=["no HTTP", "endless header"],
)
async def test_what_is_not_http_gets_the_same_kind_of_error(world: Any, raw: bytes) -> None:
    reader, writer = await asyncio.open_connection(*address(await world.serve()))
    writer.write(raw)
    head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"
    writer.close()


async def test_a_connection_serves_many_requests(world: Any) -> None:
    reader, writer = await asyncio.open_connection(*address(await world.serve()))
    for _ in range(3):
        writer.write(posted(CHAT, {**QUESTION, "max_tokens": 2}))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        assert json.loads(await reader.readexactly(length))["usage"]["completion_tokens"] == 2
    writer.close()

"""Names, and connections to pods that are ready."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from triptych.testing.kubelet.services import ServiceProxy, answer

RECORDS = {"svc.llm.svc.cluster.local": ["10.0.0.1", "10.0.0.2"]}


def question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


def code_and_addresses(reply: bytes) -> tuple[int, list[str]]:
    _, flags, _, count, _, _ = struct.unpack_from("!HHHHHH", reply)
    tail = [reply[len(reply) - 16 * (left + 1) :][12:16] for left in reversed(range(count))]
    return flags & 15, [socket.inet_ntoa(each) for each in tail]


def test_a_name_is_all_its_addresses_in_whatever_case_it_is_asked() -> None:
    reply = answer(question("SVC.llm.svc.cluster.local", 1), RECORDS)
    assert code_and_addresses(reply) == (0, ["10.0.0.1", "10.0.0.2"])


def test_a_known_name_has_no_ipv6_address_and_an_unknown_one_does_not_exist() -> None:
    assert code_and_addresses(answer(question("svc.llm.svc.cluster.local", 28), RECORDS)) == (0, [])
    assert code_and_addresses(answer(question("svc.llm", 1), RECORDS)) == (3, [])


def test_an_answer_is_no_question() -> None:
    with pytest.raises(ValueError, match="question"):
        answer(answer(question("svc.llm", 1), RECORDS), RECORDS)


@contextlib.asynccontextmanager
async def saying(word: bytes) -> AsyncIterator[tuple[str, int]]:
    """A server that says this and closes."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(word)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[:2]


async def heard(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    word = await reader.read()
    writer.close()
    return word


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_service_takes_turns_and_passes_over_pods_that_are_gone() -> None:
    proxy, port, gone = ServiceProxy(), free_port(), ("127.0.0.1", free_port())
    async with saying(b"a") as a, saying(b"b") as b, proxy.serving("127.0.0.1", port):
        proxy.targets = [a, b, gone]
        assert {await heard(port) for _ in range(6)} == {b"a", b"b"}
        proxy.targets = [b]
        assert await heard(port) == b"b"
        proxy.targets = []
        assert await heard(port) == b""

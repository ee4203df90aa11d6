"""The cluster's DNS, and Services with an address of their own: a proxy to pods that are ready."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

_A, _INTERNET = 1, 1
_NO_SUCH_NAME = 3
_TTL_S = 1


class NameServer(asyncio.DatagramProtocol):
    """Answers for `records` (names without a dot behind them) and knows nobody else."""

    def __init__(self) -> None:
        self.records: Mapping[str, Sequence[str]] = {}
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None, "made by an event loop"
        with contextlib.suppress(ValueError, struct.error, IndexError):  # no question: no answer
            self._transport.sendto(answer(data, self.records), addr)

    @classmethod
    @contextlib.asynccontextmanager
    async def serving(cls, address: str) -> AsyncIterator[NameServer]:
        loop = asyncio.get_running_loop()
        transport, server = await loop.create_datagram_endpoint(cls, local_addr=(address, 53))
        try:
            yield server
        finally:
            transport.close()


def answer(query: bytes, records: Mapping[str, Sequence[str]]) -> bytes:
    """The reply to a DNS message (RFC 1035) with one question. Raises ValueError, struct.error."""
    number, flags, questions = struct.unpack_from("!HHH", query)
    if questions != 1 or flags & 0x8000:
        raise ValueError("one question expected")
    name, end = _read_name(query, 12)
    kind, _ = struct.unpack_from("!HH", query, end)
    addresses = records.get(name.lower(), ()) if kind == _A else ()
    code = 0 if name.lower() in records else _NO_SUCH_NAME
    head = struct.pack("!HHHHHH", number, 0x8580 | code, 1, len(addresses), 0, 0)
    said = [
        struct.pack("!HHHIH", 0xC00C, _A, _INTERNET, _TTL_S, 4) + socket.inet_aton(address)
        for address in addresses
    ]
    return head + query[12 : end + 4] + b"".join(said)


def _read_name(message: bytes, at: int) -> tuple[str, int]:
    labels = []
    while length := message[at]:
        if length > 63:
            raise ValueError("a question's name is not compressed")
        labels.append(message[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    return ".".join(labels), at + 1


@dataclass(slots=True)
class ServiceProxy:
    """One port of a Service. Connections go to `targets` in turn, and stay where they are."""

    targets: Sequence[tuple[str, int]] = ()
    _turn: int = 0
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def serving(self, address: str, port: int) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._relay, address, port)
        try:
            yield
        finally:
            server.close()
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a coroutine of the server's"
        self._open.add(task)
        try:
            await self._connect(reader, writer)
        except asyncio.CancelledError:
            pass  # the Service is gone
        finally:
            self._open.discard(task)
            writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(len(self.targets)):
            self._turn += 1
            target = self.targets[self._turn % len(self.targets)]
            try:
                there = await asyncio.open_connection(*target)
            except OSError:
                continue  # not yet noticed that it is gone
            try:
                await _both_ways((reader, writer), there)
            finally:
                there[1].close()
            return


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _both_ways(here: _Stream, there: _Stream) -> None:
    """Until both have said all, or one of them breaks off."""
    copies = [
        asyncio.ensure_future(_copy(here[0], there[1])),
        asyncio.ensure_future(_copy(there[0], here[1])),
    ]
    try:
        await asyncio.gather(*copies)
    except OSError:
        pass  # the other side is told by closing
    finally:
        for copy in copies:
            copy.cancel()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(1 << 16):
        target.write(data)
        await target.drain()
    with contextlib.suppress(OSError):
        target.write_eof()

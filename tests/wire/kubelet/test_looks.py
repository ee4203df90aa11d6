"""Probes over real sockets."""

from __future__ import annotations

import asyncio

from triptych.testing.kubelet.probes import Probe, look

CONTAINER = {"name": "worker"}


async def test_a_look_is_good_for_2xx_only_and_bad_when_nobody_listens() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status = b"200 OK" if b"GET /live " in head else b"503 Busy"
        writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def sees(path: str) -> bool:
        probe = Probe.of({"httpGet": {"path": path, "port": port}, "timeoutSeconds": 5})
        return await look(probe, CONTAINER, "127.0.0.1")

    assert await sees("/live")
    assert not await sees("/ready")
    server.close()
    await server.wait_closed()
    assert not await sees("/live")

"""Hosts in namespaces: who reaches whom, and what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from triptych.testing.cluster import eventually
from triptych.testing.hosts import Host, HostError, Network, run_tool, why_not

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(why_not() is not None, reason=f"no namespaces: {why_not()}"),
]
SERVER = """
import socket
with socket.create_server(("", 8000)) as server:
    while True:
        server.accept()
"""
OWNER = """
import asyncio, os
from triptych.testing.hosts import Network
async def main():
    async with Network.create() as network, network.host("left") as left:
        process = await left.start(["sleep", "1000"])
        print(network.device, process.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def reaches(host: Host, port: int, address: str) -> bool:
    """By TCP, within a second."""
    script = f"import socket; socket.create_connection(('{address}', {port}), timeout=1)"
    with contextlib.suppress(HostError):
        await run_tool(*host.command(sys.executable, "-c", script))
        return True
    return False


async def test_hosts_reach_each_other_while_their_cables_are_in() -> None:
    async with (
        Network.create() as network,
        network.host("left") as left,
        network.host("right") as right,
    ):
        server = await right.start([sys.executable, "-c", SERVER])

        async def listens() -> bool:
            return await reaches(left, 8000, right.address)

        await eventually(listens, timeout_s=30)
        assert not await reaches(left, 8000, left.address)
        await right.cut()
        assert not await listens()
        await right.mend()
        assert await eventually(listens, timeout_s=30)
        await right.end()
        assert await server.wait() != 0


async def test_a_killed_owner_leaves_no_process_and_no_interface() -> None:
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, stdout=PIPE)
    assert owner.stdout is not None
    device, inside = (await owner.stdout.readline()).decode().split()
    assert has_interface(device)
    assert process(inside).exists()
    os.kill(owner.pid, signal.SIGKILL)
    await owner.wait()

    async def gone() -> bool:
        return not has_interface(device) and not process(inside).exists()

    await eventually(gone, timeout_s=30)


def has_interface(device: str) -> bool:
    return device in {name for _, name in socket.if_nameindex()}


def process(pid: str) -> Path:
    """What a zombie does not have."""
    return Path("/proc") / pid / "ns/net"

"""Servers on unix sockets and on loopback, stopped when the test ends."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from transport.channel import RunningServer, start_server
from triptych.wire import to_status

Serve = Callable[..., Coroutine[Any, Any, RunningServer]]


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """Short, as socket paths must be; pytest's tmp_path may be longer."""
    with tempfile.TemporaryDirectory(prefix="tri-") as path:
        yield Path(path)


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, socket_dir: Path) -> str:
    return f"unix:{socket_dir}/server.sock" if request.param == "unix" else "127.0.0.1:0"


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            address: str, *register: Callable[[grpc.aio.Server], None], names: tuple[str, ...] = ()
        ) -> RunningServer:
            server = await start_server(address, register, names, to_status)
            stack.push_async_callback(server.stop, 0.0)
            return server

        yield start

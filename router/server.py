"""uvicorn as a part of our process: its socket, its stop, the file that says where it listens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from router.protocol import HttpProtocol
from triptych.errors import ConfigError

_KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that they close first


class HttpServer(uvicorn.Server):
    """Serves `app`. Signals are the process's business: `leave` starts the end.

    `serve(sockets=[…])` returns when the open requests are answered, or `drain_s` later, when what
    is left has been cancelled.
    """

    def __init__(self, app: ASGIApp, *, drain_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=HttpProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(drain_s),
            )
        )
        self.listening = asyncio.Event()

    def leave(self) -> None:
        """No new connections, open requests may finish. Called again: it does not wait for them."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not here: uvicorn would raise the signal again after a clean end."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """Raises ConfigError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"router.host, router.port: cannot listen on {host}:{port}: {error}"
        ) from error


def url_of(listener: socket.socket) -> str:
    """Where a client on this host reaches the socket."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


@contextlib.contextmanager
def announced(path: Path, *, url: str, registry: str) -> Iterator[None]:
    """Keeps `path` for as long as the router listens; whoever reads it, reads all of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps({"url": url, "registry": registry, "pid": os.getpid()}) + "\n")
    draft.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)

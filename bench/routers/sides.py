"""Each router as a child process in front of the same paced workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil

from bench.engine_peer import PEERS
from bench.routers.http_workers import MODEL
from triptych.config import dump_config, load_config
from triptych.testing.cluster import eventually

BIN = PEERS / "router" / "bin"  # filled by `make routers`
_START_S = 60.0


@dataclass(frozen=True, slots=True)
class Side:
    """Something that answers chat completions, and the process that does it."""

    name: str
    url: str
    process: psutil.Process | None  # None: the workers themselves, nothing in between

    def cpu_s(self) -> float:
        """Of the process and its children so far."""
        if self.process is None:
            return 0.0
        all_ = [self.process, *self.process.children(recursive=True)]
        return sum(t.user + t.system for t in (each.cpu_times() for each in all_))


@contextlib.asynccontextmanager
async def started(names: Sequence[str], folder: Path, model: str) -> AsyncIterator[list[Side]]:
    """`direct`, then the named ones. Raises RuntimeError when one does not come up."""
    async with contextlib.AsyncExitStack() as owned:
        workers = await owned.enter_async_context(
            _child([sys.executable, "-m", "bench.routers.http_workers", "--model", model])
        )
        assert workers.stdout is not None
        urls: list[str] = json.loads(await workers.stdout.readline())["urls"]
        sides = [Side("direct", urls[0], None)]
        for name in names:
            if name == "triptych":
                sides.append(await _ours(owned, folder, model))
            else:
                sides.append(await _theirs(owned, name, urls))
        for side in sides:
            await eventually(partial(_answers, side.url), _START_S)
        yield sides


def installed(name: str) -> bool:
    return name == "triptych" or (BIN / name).exists()


async def _ours(owned: contextlib.AsyncExitStack, folder: Path, model: str) -> Side:
    wanted = [f"model={model}", f"served_model_name={MODEL}", "router.port=0", "log.level=warning"]
    config = folder / "config.yaml"
    config.write_text(dump_config(load_config(None, wanted)))
    command = [sys.executable, "-m", "router", "--config", str(config), "--run-dir", str(folder)]
    router = await owned.enter_async_context(_child(command))

    async def where() -> str | None:
        told = folder / "router.json"
        return json.loads(told.read_text())["url"] if told.exists() else None

    url = await eventually(where, _START_S)
    homes = [sys.executable, "-m", "bench.routers.homes", "--model", model]
    await owned.enter_async_context(_child([*homes, "--registry", f"unix:{folder}/router.sock"]))
    return Side("triptych", url, psutil.Process(router.pid))


async def _theirs(owned: contextlib.AsyncExitStack, name: str, urls: Sequence[str]) -> Side:
    """As they are, with the default policy of each (cache_aware), less logging."""
    port, metrics = _free_port(), _free_port()
    log_level = {"sglang-router": "warn", "vllm-router": "warning"}[name]
    launch = ["launch"] if name == "sglang-router" else []
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--prometheus-port": str(metrics),
        "--log-level": log_level,
        "--worker-startup-check-interval": "1",
    }
    flat = [part for option in options.items() for part in option]
    command = [str(BIN / name), *launch, *flat, "--worker-urls", *urls]
    process = await owned.enter_async_context(_child(command))
    return Side(name, f"http://127.0.0.1:{port}", psutil.Process(process.pid))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def _answers(url: str) -> bool:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 1,
    }
    with contextlib.suppress(httpx.HTTPError):
        async with httpx.AsyncClient() as http:
            return (await http.post(f"{url}/v1/chat/completions", json=body)).status_code == 200
    return False


@contextlib.asynccontextmanager
async def _child(command: Sequence[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

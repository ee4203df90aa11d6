"""A router in this process: a real directory, fake workers, the application over ASGI or TCP."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from router.__main__ import directory
from router.admission.admission import Admission
from router.api import create_app
from router.index.make import make_index
from router.metrics import RouterMetrics
from router.placement import POLICIES
from router.relay import Relay
from router.server import HttpServer, listen, url_of
from router.services import Services
from transport.registry import Directory
from triptych.config import ClusterConfig, ExpertsConfig, RouterConfig
from triptych.testing.fake_worker import FakeWorker, Script, echoes
from triptych.testing.tiny_chat import save_tiny_chat
from triptych.tokenizer import Tokenizer


@dataclass(slots=True)
class World:
    """Everything a test may touch."""

    app: ASGIApp
    services: Services
    directory: Directory
    client: httpx.AsyncClient  # straight into the application
    add_worker: Callable[..., Any]  # async (worker_id, script=echoes, **hello) -> FakeWorker
    serve: Callable[[], Any]  # async () -> base URL on a real socket

    @property
    def tokenizer(self) -> Tokenizer:
        return self.services.tokenizer

    def metric(self, name: str, **labels: str) -> float:
        return self.services.metrics.registry.get_sample_value(name, labels) or 0.0

    async def counted(self, name: str, *, at_least: float = 1, **labels: str) -> None:
        """Waits until the metric has come so far: counters call nobody."""
        async with asyncio.timeout(5):
            while self.metric(name, **labels) < at_least:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(save_tiny_chat(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short, as socket paths must be; pytest's tmp_path may be longer."""
    with tempfile.TemporaryDirectory(prefix="tri-") as path:
        yield Path(path)


@pytest.fixture
async def start_world(tokenizer: Tokenizer, run_dir: Path) -> AsyncIterator[Callable[..., Any]]:
    """async (**router settings) -> World; without any worker yet."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**settings: Any) -> World:
            return await stack.enter_async_context(_world(tokenizer, run_dir, settings))

        yield start


@pytest.fixture
async def world(start_world: Callable[..., Any]) -> World:
    """A router with default settings and one echoing decode worker, decode-0."""
    found: World = await start_world()
    await found.add_worker("decode-0")
    return found


@pytest.fixture(scope="module")
def thread_url(tokenizer: Tokenizer) -> Iterator[str]:
    """The URL of a router with one echoing home, in a thread: for clients that block."""
    started: Future[tuple[str, Callable[[], object]]] = Future()

    async def live() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        with tempfile.TemporaryDirectory(prefix="tri-") as path:
            async with _world(tokenizer, Path(path), {}) as world:
                await world.add_worker("decode-0")
                url = await world.serve()
                started.set_result((url, lambda: loop.call_soon_threadsafe(stop.set)))
                await stop.wait()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, live())
        running.add_done_callback(lambda _: started.done() or started.cancel())
        url, stop = started.result(timeout=30)
        yield url
        stop()
        running.result(timeout=30)


@contextlib.asynccontextmanager
async def _world(
    tokenizer: Tokenizer, run_dir: Path, settings: dict[str, Any]
) -> AsyncIterator[World]:
    config = ClusterConfig(model="tiny", router=RouterConfig(**settings))
    metrics = RouterMetrics(CollectorRegistry())
    index = make_index(config.router.index, metrics.registry)
    async with contextlib.AsyncExitStack() as stack:
        members, registry = await stack.enter_async_context(
            directory(f"unix:{run_dir}/router.sock", ExpertsConfig(), index)
        )
        relay = Relay(
            members,
            POLICIES[config.router.placement],
            model="tiny",
            config=config.router,
            metrics=metrics,
            prefixes=index.prefixes,
        )
        stack.push_async_callback(relay.close)
        services = Services(
            config=config,
            tokenizer=tokenizer,
            workers=members.workers,
            relay=relay,
            metrics=metrics,
            admission=Admission(config, members.workers, metrics),
            started=int(time.time()),
        )
        app = create_app(services)
        client = await stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router")
        )

        async def add_worker(worker_id: str, script: Script = echoes, **hello: Any) -> FakeWorker:
            worker = FakeWorker(worker_id, model="tiny", script=script, **hello)
            listen_at = f"unix:{run_dir}/{worker_id}.sock"
            await stack.enter_async_context(worker.attached(registry=registry, listen=listen_at))
            await members.wait_for(
                lambda views: any(view.worker_id == worker_id for view in views), 10
            )
            return worker

        async def serve() -> str:
            return await stack.enter_async_context(_http(app))

        yield World(app, services, members, client, add_worker, serve)


@contextlib.asynccontextmanager
async def _http(app: ASGIApp) -> AsyncIterator[str]:
    server = HttpServer(app, drain_s=5)
    listener = listen("127.0.0.1", 0)
    url = url_of(listener)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await server.listening.wait()
    try:
        yield url
    finally:
        server.leave()
        await serving

"""`python -m router` as a process of its own: how it starts, how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from triptych.request import TokenDelta
from triptych.testing.fake_worker import FakeWorker, says
from triptych.testing.tiny_chat import save_tiny_chat
from triptych.tokenizer import Tokenizer

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


def write_config(run_dir: Path, **settings: Any) -> Path:
    model = str(save_tiny_chat(run_dir / "tiny"))
    path = run_dir / "cluster.yaml"
    path.write_text(json.dumps({"model": model, "drain_s": 20, "router": {"port": 0}, **settings}))
    return path


@pytest.fixture
def config(run_dir: Path) -> Path:
    return write_config(run_dir)


@contextlib.asynccontextmanager
async def launched(config: Path, run_dir: Path, *more: str) -> AsyncIterator[Any]:
    """The process, killed at the end if it is still there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "router",
        *("--config", str(config), "--run-dir", str(run_dir), *more),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def told(process: Any, words: str) -> str:
    """Reads the log up to a line with these words."""
    seen = b""
    async with asyncio.timeout(60):
        while line := await process.stderr.readline():
            seen += line
            if words in line.decode():
                return seen.decode()
    raise AssertionError(f"the router never said {words!r}:\n{seen.decode()}")


@contextlib.asynccontextmanager
async def worker_at(run_dir: Path, script: Any) -> AsyncIterator[FakeWorker]:
    worker = FakeWorker("decode-0", model="tiny", script=script)
    registry, listen = f"unix:{run_dir}/router.sock", f"unix:{run_dir}/decode-0.sock"
    async with worker.attached(registry=registry, listen=listen):
        yield worker


async def test_it_serves_and_drains_on_sigterm(config: Path, run_dir: Path) -> None:
    ids = Tokenizer.load(run_dir / "tiny").encode("ab")
    go_on = asyncio.Event()

    def pauses(request: Any) -> Any:
        first, *rest = says(ids)(request)
        return [first, go_on, *rest]

    async with launched(config, run_dir) as process:
        await told(process, "listening")
        state = json.loads((run_dir / "router.json").read_text())
        assert state["pid"] == process.pid
        assert state["registry"] == f"unix:{run_dir}/router.sock"
        async with (
            worker_at(run_dir, pauses) as worker,
            httpx.AsyncClient(base_url=state["url"], timeout=30) as client,
        ):
            await told(process, "worker joined")
            assert (await client.get("/ready")).status_code == 200
            metrics = (await client.get("/metrics")).text
            assert 'triptych_attached_workers{role="decode"} 1.0' in metrics
            body = {**QUESTION, "stream": True}
            async with client.stream("POST", CHAT, json=body) as response:
                lines = response.aiter_lines()
                while '"content":"a"' not in await anext(lines):
                    pass
                process.send_signal(signal.SIGTERM)
                await told(process, "draining")
                with pytest.raises(httpx.TransportError):
                    async with httpx.AsyncClient(base_url=state["url"]) as late:
                        await refused(late)
                go_on.set()
                rest = [line async for line in lines]
            assert rest[-2:] == ["data: [DONE]", ""]
            assert not (await worker.next_call()).cancelled.is_set()
            assert await asyncio.wait_for(process.wait(), 20) == 0
    assert not (run_dir / "router.json").exists()


async def refused(client: httpx.AsyncClient) -> None:
    """Asks until nobody listens any more: uvicorn looks at its flag ten times a second."""
    async with asyncio.timeout(10):
        while True:
            await client.get("/live", headers={"Connection": "close"})


def hangs(request: Any) -> Any:
    """One token, if somebody listens; then nothing for ever."""
    return [TokenDelta("", 0, (5,)), asyncio.Event()]


async def test_a_stream_that_takes_longer_than_the_drain_is_cut(run_dir: Path) -> None:
    config = write_config(run_dir, drain_s=0.5)
    async with launched(config, run_dir) as process:
        await told(process, "listening")
        url = json.loads((run_dir / "router.json").read_text())["url"]
        async with (
            worker_at(run_dir, hangs) as worker,
            httpx.AsyncClient(base_url=url, timeout=30) as client,
        ):
            await told(process, "worker joined")
            asked = [
                asyncio.create_task(client.post(CHAT, json={**QUESTION, "stream": stream}))
                for stream in (False, True)
            ]
            calls = [await worker.next_call() for _ in asked]
            process.send_signal(signal.SIGTERM)
            whole, streamed = await asyncio.gather(*asked)
            assert await asyncio.wait_for(process.wait(), 20) == 0
            for call in calls:
                await asyncio.wait_for(call.cancelled.wait(), 5)
    assert (whole.status_code, streamed.status_code) == (503, 200)
    assert "the router is stopping" in whole.json()["error"]["message"]
    assert '"content":"' in streamed.text
    assert "the router is stopping" in streamed.text
    assert "[DONE]" not in streamed.text


async def test_who_waits_in_the_queue_is_served_before_the_router_stops(run_dir: Path) -> None:
    config = write_config(run_dir, router={"port": 0, "admission": {"prefill_tokens": 1}})
    ids = Tokenizer.load(run_dir / "tiny").encode("ab")
    go_on = asyncio.Event()
    async with launched(config, run_dir) as process:
        await told(process, "listening")
        url = json.loads((run_dir / "router.json").read_text())["url"]
        async with (
            worker_at(run_dir, lambda request: [go_on, *says(ids)(request)]) as worker,
            httpx.AsyncClient(base_url=url, timeout=30) as client,
        ):
            await told(process, "worker joined")
            running = asyncio.create_task(client.post(CHAT, json=QUESTION))
            await worker.next_call()
            waiting = asyncio.create_task(client.post(CHAT, json=QUESTION))
            await until_queued(client)
            process.send_signal(signal.SIGTERM)
            await told(process, "draining")
            go_on.set()
            answers = [(await each).status_code for each in (running, waiting)]
            assert await asyncio.wait_for(process.wait(), 20) == 0
    assert answers == [200, 200]


async def until_queued(client: httpx.AsyncClient) -> None:
    """Asks until one request waits at the router."""
    async with asyncio.timeout(10):
        while True:
            metrics = (await client.get("/metrics")).text
            if 'triptych_queued_requests{tenant="default"} 1.0' in metrics:
                return


async def test_an_idle_router_stops_at_once(config: Path, run_dir: Path) -> None:
    async with launched(config, run_dir) as process:
        await told(process, "listening")
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_the_registry_may_listen_on_tcp(config: Path, run_dir: Path) -> None:
    async with launched(config, run_dir, "--registry-listen", "127.0.0.1:0") as process:
        await told(process, "listening")
        registry = json.loads((run_dir / "router.json").read_text())["registry"]
        assert registry.startswith("127.0.0.1:")
        worker = FakeWorker("decode-0", model="tiny", script=says([5]))
        async with worker.attached(registry=registry, listen="127.0.0.1:0"):
            await told(process, "worker joined")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"rooter": {}}, "rooter: unknown key"),
        ({"router": {"host": "203.0.113.1"}}, "router.host"),
    ],
    ids=["model", "key", "address"],
)
async def test_what_cannot_start_says_why_in_one_line(
    run_dir: Path, settings: Any, words: str
) -> None:
    async with launched(write_config(run_dir, **settings), run_dir) as process:
        _, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    *_, last = stderr.decode().strip().splitlines()
    assert last.startswith("router: ")
    assert words in last

"""FFN workers die, hang and leave under a stream, and it goes on with the same tokens."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
import pytest_asyncio

from triptych.testing.cluster import Cluster, eventually
from triptych.testing.tiny_mixture import tiny_mixture
from triptych_kernels.cpu.native import native

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(native() is None, reason="no native kernels here"),
]

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]

POOLS = (
    "pools=[{name: decode, role: decode, threads: 1}, "
    "{name: ffn, role: ffn, replicas: 2, threads: 1}]"
)
LENGTH = 600  # tokens of a stream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    """One home and two FFN workers that host everything twice."""
    model = tiny_mixture(tmp_path_factory.mktemp("mixture"))
    async with start_cluster(f"model={model}", POOLS, "experts.min_deadline_ms=200") as running:
        yield running


def body_of(seed: int, **more: Any) -> dict[str, Any]:
    draw = random.Random(seed)
    prompt = [draw.randrange(3, 250) for _ in range(40)]
    fixed = {"model": "tiny", "max_tokens": LENGTH, "ignore_eos": True, "seed": seed}
    return {**fixed, "prompt": prompt, "return_token_ids": True, "temperature": 0.8, **more}


class Stream:
    """A streaming answer, read as far as it is wanted."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.tokens: list[int] = []
        self.over = False

    async def read(self, count: int = LENGTH) -> list[int]:
        """Until so many tokens are here, or the answer has ended."""
        while len(self.tokens) < count and not self.over:
            line = await anext(self._lines)
            if line == "data: [DONE]":
                self.over = True
            elif line:
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                for choice in event["choices"]:
                    self.tokens += choice.get("token_ids") or []
        return self.tokens


@contextlib.asynccontextmanager
async def streaming(cluster: Cluster, body: dict[str, Any]) -> AsyncIterator[Stream]:
    request = cluster.http.stream("POST", "/v1/completions", json={**body, "stream": True})
    async with request as reply:
        assert reply.status_code == 200
        yield Stream(reply.aiter_lines())


async def answer(cluster: Cluster, body: dict[str, Any]) -> list[int]:
    reply = await cluster.http.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    tokens: list[int] = reply.json()["choices"][0]["token_ids"]
    return tokens


async def metric(cluster: Cluster, worker_id: str, name: str) -> float:
    seen = await cluster.metrics(worker_id)
    return sum(value for (found, _), value in seen.items() if found == f"triptych_ffn_{name}")


async def all_there(cluster: Cluster) -> None:
    """Waits until both workers are connected with the home and host everything."""

    async def probe() -> bool:
        if len(await cluster.workers()) != 3:
            return False
        units = [await metric(cluster, f"ffn-{i}", "units") for i in (0, 1)]
        return await metric(cluster, "decode-0", "workers") == 2 and units == [16, 16]

    await eventually(probe, timeout_s=60)


async def at_rest(cluster: Cluster) -> None:
    """Every KV block is back."""
    blocks = await cluster.until_at_rest(timeout_s=5)
    home = await cluster.worker("decode-0")
    assert home is not None
    states = blocks["decode-0"]
    assert states["pool/free"] + states["prefix/cached"] == home["num_blocks"]


async def test_a_stream_survives_an_ffn_worker_that_is_killed_under_it(cluster: Cluster) -> None:
    await all_there(cluster)
    wanted = await answer(cluster, body_of(1))
    async with streaming(cluster, body_of(1)) as stream:
        await stream.read(50)
        os.kill(cluster.pid("ffn-0"), signal.SIGKILL)
        assert await stream.read() == wanted
    await all_there(cluster)  # it was started again, and is used again
    before = await metric(cluster, "ffn-0", "messages_answered_total")
    assert await answer(cluster, body_of(1)) == wanted
    assert await metric(cluster, "ffn-0", "messages_answered_total") > before
    await at_rest(cluster)


async def test_a_stream_survives_the_end_of_all_ffn_workers_at_once(cluster: Cluster) -> None:
    await all_there(cluster)
    wanted = await answer(cluster, body_of(2))
    at_home = await metric(cluster, "decode-0", "rows_at_home_total")
    async with streaming(cluster, body_of(2)) as stream:
        await stream.read(50)
        for name in ("ffn-0", "ffn-1"):
            os.kill(cluster.pid(name), signal.SIGKILL)
        assert await stream.read() == wanted
    assert await metric(cluster, "decode-0", "rows_at_home_total") > at_home
    await all_there(cluster)
    at_home = await metric(cluster, "decode-0", "rows_at_home_total")
    assert await answer(cluster, body_of(2)) == wanted
    assert await metric(cluster, "decode-0", "rows_at_home_total") == at_home
    await at_rest(cluster)


async def test_a_worker_that_hangs_is_bypassed_and_used_again_when_it_goes_on(
    cluster: Cluster,
) -> None:
    await all_there(cluster)
    wanted = await answer(cluster, body_of(3))
    late = await metric(cluster, "decode-0", "reissued_total")
    pid = cluster.pid("ffn-1")
    async with streaming(cluster, body_of(3)) as stream:
        await stream.read(50)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert await stream.read() == wanted
        finally:
            os.kill(pid, signal.SIGCONT)
    assert await metric(cluster, "decode-0", "reissued_total") > late
    await all_there(cluster)
    assert cluster.pid("ffn-1") == pid, "nobody killed it for being slow"

    async def used_again() -> bool:
        before = await metric(cluster, "ffn-1", "messages_answered_total")
        assert await answer(cluster, body_of(3, max_tokens=50)) == wanted[:50]
        return await metric(cluster, "ffn-1", "messages_answered_total") > before

    await eventually(used_again, timeout_s=30)
    await at_rest(cluster)


async def test_when_all_workers_hang_the_home_goes_on_by_itself(cluster: Cluster) -> None:
    await all_there(cluster)
    wanted = await answer(cluster, body_of(4))
    at_home = await metric(cluster, "decode-0", "rows_at_home_total")
    pids = [cluster.pid(name) for name in ("ffn-0", "ffn-1")]
    async with streaming(cluster, body_of(4)) as stream:
        await stream.read(50)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert await stream.read() == wanted
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
    assert await metric(cluster, "decode-0", "rows_at_home_total") > at_home
    await all_there(cluster)
    assert await answer(cluster, body_of(4)) == wanted
    await at_rest(cluster)


async def test_a_worker_that_is_told_to_stop_takes_no_row_with_it(cluster: Cluster) -> None:
    await all_there(cluster)
    wanted = await answer(cluster, body_of(5))
    reissued = await metric(cluster, "decode-0", "reissued_total")
    at_home = await metric(cluster, "decode-0", "rows_at_home_total")
    async with streaming(cluster, body_of(5)) as stream:
        await stream.read(50)
        os.kill(cluster.pid("ffn-0"), signal.SIGTERM)
        assert await stream.read() == wanted
    assert await metric(cluster, "decode-0", "reissued_total") == reissued
    assert await metric(cluster, "decode-0", "rows_at_home_total") == at_home
    await all_there(cluster)


async def test_workers_forget_a_home_that_is_killed(cluster: Cluster) -> None:
    await all_there(cluster)
    wanted = await answer(cluster, body_of(6, max_tokens=50))
    async with streaming(cluster, body_of(6)) as stream:
        await stream.read(20)
        os.kill(cluster.pid("decode-0"), signal.SIGKILL)
        with contextlib.suppress(AssertionError, StopAsyncIteration, httpx.HTTPError):
            await stream.read()
    await all_there(cluster)

    async def one_each() -> bool:
        return [await metric(cluster, f"ffn-{i}", "homes") for i in (0, 1)] == [1, 1]

    await eventually(one_each, timeout_s=10)
    assert await answer(cluster, body_of(6, max_tokens=50)) == wanted
    await at_rest(cluster)


async def test_a_router_that_is_killed_and_comes_back_changes_nothing_between_them(
    cluster: Cluster,
) -> None:
    await all_there(cluster)
    wanted = await answer(cluster, body_of(7, max_tokens=50))
    seen = {w["worker_id"]: w["metrics_address"] for w in await cluster.workers()}
    old = cluster.pid("router")
    os.kill(old, signal.SIGKILL)

    async def url() -> str | None:
        state = json.loads(cluster.launcher.run_dir.router_file().read_text())
        return None if state["pid"] == old else str(state["url"])

    address = await eventually(url, timeout_s=60)
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        both = replace(cluster, url=address, http=http)
        await all_there(both)
        assert {w["worker_id"]: w["metrics_address"] for w in await both.workers()} == seen
        assert await metric(both, "decode-0", "reissued_total") == 0
        assert await answer(both, body_of(7, max_tokens=50)) == wanted
        await at_rest(both)

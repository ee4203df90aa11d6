"""Routers share nothing but the workers: one can be killed, and come back, without the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from triptych.testing.cluster import Cluster, eventually, parse_metrics

pytestmark = pytest.mark.cluster

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]
BLOCK = 32  # tokens
NUM_STREAMS = 4  # at each router


def body_of(seed: int, **more: Any) -> dict[str, Any]:
    draw = random.Random(seed)
    prompt = [draw.randrange(3, 250) for _ in range(100)]
    fixed = {"model": "tiny", "ignore_eos": True, "seed": seed, "return_token_ids": True}
    return {**fixed, "prompt": prompt, "max_tokens": 1000, **more}


async def stream(cluster: Cluster, body: dict[str, Any], began: asyncio.Event) -> list[int]:
    """Raises httpx.HTTPError when the connection breaks."""
    token_ids: list[int] = []
    asked = {**body, "stream": True}
    async with cluster.http.stream("POST", "/v1/completions", json=asked) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    token_ids += choice.get("token_ids") or ()
                began.set()
    return token_ids


async def complete(cluster: Cluster, body: dict[str, Any]) -> dict[str, Any]:
    reply = await cluster.http.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


async def token_ids(cluster: Cluster, body: dict[str, Any]) -> list[int]:
    found: list[int] = (await complete(cluster, body))["choices"][0]["token_ids"]
    return found


async def counted(cluster: Cluster, family: str) -> dict[str, float]:
    """A family of the router's metrics, by the label that it has."""
    samples = parse_metrics((await cluster.http.get("/metrics")).text)
    return {
        next(iter(labels))[1]: value for (name, labels), value in samples.items() if name == family
    }


async def epochs(cluster: Cluster) -> dict[str, int]:
    return {worker["worker_id"]: worker["epoch"] for worker in await cluster.workers()}


async def knows_all_caches(cluster: Cluster) -> bool:
    """The router counts as many blocks for each worker as that worker holds."""
    held = {name: kept["prefix/cached"] for name, kept in (await cluster.kv_blocks()).items()}
    told = await counted(cluster, "triptych_router_kv_blocks")
    return len(held) == 2 and any(held.values()) and told == held


async def test_a_killed_router_takes_its_own_streams_and_no_others(
    start_cluster: StartCluster,
) -> None:
    async with (
        start_cluster("router.replicas=2") as cluster,
        cluster.at_router("router-1") as other,
    ):
        bodies = [body_of(seed) for seed in range(2 * NUM_STREAMS)]
        expected = [await token_ids(cluster, body) for body in bodies]
        began = [asyncio.Event() for _ in bodies]
        running = [
            asyncio.create_task(stream((cluster, other)[n % 2], body, event))
            for n, (body, event) in enumerate(zip(bodies, began, strict=True))
        ]
        for event in began:
            await event.wait()
        old = cluster.pid("router-1")
        os.kill(old, signal.SIGKILL)
        answers = await asyncio.gather(*running, return_exceptions=True)
        assert answers[::2] == expected[::2]
        assert all(isinstance(answer, httpx.HTTPError) for answer in answers[1::2])
        assert await counted(cluster, "triptych_router_continuations_total") == {}
        retried = [token_ids(cluster, body) for body in bodies[1::2]]
        assert await asyncio.gather(*retried) == expected[1::2]

        async def another() -> bool:
            return cluster.launcher.pid("router-1") not in (None, old)

        await eventually(another, timeout_s=30)
        assert await _until_it_answers(other) == await epochs(cluster)
        await cluster.until_at_rest(timeout_s=10)


async def test_a_restarted_router_knows_what_its_workers_hold(start_cluster: StartCluster) -> None:
    async with (
        start_cluster("router.replicas=2") as cluster,
        cluster.at_router("router-1") as other,
    ):
        body = body_of(1, max_tokens=4)
        await complete(cluster, body)  # router-1 had no part in it
        os.kill(cluster.pid("router-1"), signal.SIGKILL)
        await _until_it_answers(other)
        await eventually(lambda: knows_all_caches(other), timeout_s=30)
        longer = {**body, "prompt": [*body["prompt"], *range(3, 90)]}
        answer = await complete(other, longer)
        cached = len(body["prompt"]) // BLOCK * BLOCK
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
        predicted = await counted(other, "triptych_router_kv_predicted_tokens_total")
        assert predicted["prefill-0"] == cached


async def _until_it_answers(cluster: Cluster) -> dict[str, int]:
    """The epochs of the workers that a restarted router counts, once it has both again."""

    async def both() -> dict[str, int] | None:
        with contextlib.suppress(httpx.HTTPError):
            found = await epochs(cluster)
            return found if len(found) == 2 else None
        return None

    return await eventually(both, timeout_s=60)

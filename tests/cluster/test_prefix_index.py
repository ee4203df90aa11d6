"""What the router knows of its workers' prefix caches, in a real cluster."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable

import pytest

from triptych.testing.cluster import Cluster, eventually, parse_metrics

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]

BLOCK = 32  # tokens

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]


def prompt_of(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, 250) for _ in range(length)]


async def complete(cluster: Cluster, prompt: list[int]) -> int:
    """How many tokens of the prompt were cached."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "ignore_eos": True}
    reply = await cluster.http.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    cached: int = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


async def by_worker(cluster: Cluster, name: str) -> dict[str, float]:
    """A metric of the router's index."""
    samples = parse_metrics((await cluster.http.get("/metrics")).text)
    return {
        dict(labels)["worker"]: value
        for (found, labels), value in samples.items()
        if found == f"triptych_router_kv_{name}"
    }


async def settled(cluster: Cluster) -> dict[str, float]:
    """Waits until the router knows as many blocks as the workers have; how many."""

    async def known() -> dict[str, float] | None:
        told = await by_worker(cluster, "blocks")
        has = {name: kept["prefix/cached"] for name, kept in (await cluster.kv_blocks()).items()}
        return told if told == has and any(has.values()) else None

    return await eventually(known, 10)


async def test_a_second_turn_is_predicted_exactly(start_cluster: StartCluster) -> None:
    async with start_cluster("engine.chunk_tokens=64") as cluster:
        first = prompt_of(300, 1)
        assert await complete(cluster, first) == 0
        blocks = await settled(cluster)
        assert set(blocks) == {"prefill-0", "decode-0"} and blocks["prefill-0"] == 300 // BLOCK
        cached = await complete(cluster, [*first, *prompt_of(200, 2)])
        assert cached == 300 // BLOCK * BLOCK
        assert (await by_worker(cluster, "predicted_tokens_total"))["prefill-0"] == cached
        assert (await by_worker(cluster, "actual_tokens_total"))["prefill-0"] == cached
        assert (await by_worker(cluster, "error_tokens_total"))["prefill-0"] == 0


async def test_a_restarted_worker_is_known_anew(start_cluster: StartCluster) -> None:
    async with start_cluster("engine.chunk_tokens=64") as cluster:
        await complete(cluster, prompt_of(300, 1))
        await settled(cluster)
        old = (await cluster.worker("prefill-0") or {})["metrics_address"]
        os.kill(cluster.pid("prefill-0"), signal.SIGKILL)

        async def back() -> bool:
            now = await cluster.worker("prefill-0")
            return now is not None and now["metrics_address"] != old

        await eventually(back, 60)
        second = prompt_of(300, 2)
        await complete(cluster, second)
        blocks = await settled(cluster)
        assert blocks["prefill-0"] == 300 // BLOCK, "of the old process nothing is left"
        assert await complete(cluster, [*second, *prompt_of(100, 3)]) == 300 // BLOCK * BLOCK
        assert (await by_worker(cluster, "error_tokens_total"))["prefill-0"] == 0


@pytest.mark.parametrize("mode", ["approximate", "off"])
async def test_other_modes_serve_the_same(start_cluster: StartCluster, mode: str) -> None:
    async with start_cluster("engine.chunk_tokens=64", f"router.index={mode}") as cluster:
        first = prompt_of(300, 1)
        assert await complete(cluster, first) == 0
        assert await complete(cluster, [*first, 3, 4]) == 300 // BLOCK * BLOCK
        predicted = await by_worker(cluster, "predicted_tokens_total")
        assert sum(predicted.values()) == (300 // BLOCK * BLOCK if mode == "approximate" else 0)

"""The same tokens through every topology, link and chunk size."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from triptych.testing.cluster import Cluster, eventually

pytestmark = pytest.mark.cluster

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]

AGGREGATED = "pools=[{name: decode, role: decode}]"
SPLITS = {
    "shm": ["transport.links=[shm]", "transport.require=shm"],
    "shm, layer groups": ["transport.links=[shm]", "transport.announce_layers=1"],
    "shm, small chunks, small batches": [
        "transport.links=[shm]",
        "engine.chunk_tokens=32",
        "engine.max_running=2",
    ],
    "any drafts": [
        "speculation.mode=dice",
        "speculation.drafters=[{kind: suffix, trees: true}, {kind: ngram, min_n: 1}]",
    ],
    "no drafts": ["speculation.mode=off"],
    "tcp": ["transport.links=[tcp]", "transport.require=tcp"],
    "nixl": ["transport.links=[nixl]", "transport.require=nixl"],
}


def bodies() -> list[dict[str, Any]]:
    draw = random.Random(3)
    shared = [draw.randrange(3, 250) for _ in range(90)]
    prompts = [[draw.randrange(3, 250) for _ in range(n)] for n in (1, 20, 63, 64, 65, 400)]
    prompts += [shared, [*shared, 5, 6], shared[:70]]
    found = []
    for index, prompt in enumerate(prompts):
        body: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": 12}
        body |= {"ignore_eos": True, "return_token_ids": True, "temperature": 0.0}
        if index % 2:
            body |= {"temperature": 0.9, "seed": index, "top_p": 0.95, "n": 1 + index % 3}
        found.append(body)
        if len(prompt) > 60:
            grammar = {"structured_outputs": {"regex": "[a-f]{3,9}(-[0-9]{2}){1,3}"}}
            found.append(body | {"ignore_eos": False, "temperature": 1.0, "seed": index} | grammar)
    return found


async def answers(cluster: Cluster) -> list[list[list[int]]]:
    replies = await asyncio.gather(
        *(cluster.http.post("/v1/completions", json=body) for body in bodies())
    )
    found = []
    for reply in replies:
        assert reply.status_code == 200, reply.text
        choices = sorted(reply.json()["choices"], key=lambda choice: int(choice["index"]))
        found.append([choice["token_ids"] for choice in choices])
    return found


DRAFT_POOL = "pools=[{name: decode, role: decode}, {name: draft, role: draft, threads: 1}]"
REMOTE = {
    "remote drafts": [
        DRAFT_POOL,
        "speculation.mode=fixed",
        "speculation.drafters=[{kind: remote, pool: draft, deadline_ms: 200}]",
    ],
    "remote drafts in trouble": [
        DRAFT_POOL,
        "speculation.mode=dice",
        "speculation.drafters=[{kind: remote, pool: draft, trouble: 0.4}, {kind: ngram}]",
    ],
}


@pytest.fixture(scope="module")
def aggregated(start_cluster: StartCluster) -> list[list[list[int]]]:
    async def ask() -> list[list[list[int]]]:
        async with start_cluster(AGGREGATED) as cluster:
            return await answers(cluster)

    return asyncio.run(ask())


@pytest.mark.parametrize("overrides", SPLITS.values(), ids=SPLITS)
async def test_a_split_cluster_gives_the_tokens_of_an_aggregated_one_cold_and_warm(
    start_cluster: StartCluster, aggregated: list[list[list[int]]], overrides: list[str]
) -> None:
    if "nixl" in overrides[0] and importlib.util.find_spec("nixl_cu12") is None:
        pytest.skip("the nixl extra is not installed: pip install --no-deps nixl-cu12")
    async with start_cluster(*overrides) as cluster:
        assert await answers(cluster) == aggregated
        assert await answers(cluster) == aggregated
        prefill = await cluster.metrics("prefill-0")
        finished = ("triptych_requests_total", frozenset({("outcome", "finished")}))
        assert prefill[finished] >= 5, "the prompts went through the prefill worker"
        decode = await cluster.metrics("decode-0")
        moved = [v for (name, _), v in decode.items() if name == "triptych_kv_transfer_bytes_total"]
        assert sum(moved) > 0
        assert not [name for name, _ in decode if name == "triptych_kv_fallbacks_total"]


@pytest.mark.parametrize("overrides", REMOTE.values(), ids=REMOTE)
async def test_a_draft_worker_changes_no_token_not_even_when_it_is_killed_under_way(
    start_cluster: StartCluster, aggregated: list[list[list[int]]], overrides: list[str]
) -> None:
    async with start_cluster(*overrides) as cluster:
        assert await answers(cluster) == aggregated
        await eventually(partial(has_drafted, cluster), timeout_s=60)
        under_way = asyncio.create_task(answers(cluster))
        os.kill(cluster.pid("draft-0"), signal.SIGKILL)
        assert await under_way == aggregated

        async def back() -> bool:
            seen = await cluster.metrics("decode-0")
            connected = "triptych_remote_drafter_connected", frozenset({("drafter", "remote")})
            return bool(seen[connected]) and await cluster.worker("draft-0") is not None

        await eventually(back, timeout_s=60)
        assert await answers(cluster) == aggregated


async def has_drafted(cluster: Cluster) -> bool:
    """Asks again until the draft worker, which may come up late, has had a part in it."""
    await answers(cluster)
    seen = await cluster.metrics("decode-0")
    drafted = (
        "triptych_drafted_tokens_total",
        frozenset({("drafter", "remote"), ("handoff", "home")}),
    )
    return seen.get(drafted, 0) > 0

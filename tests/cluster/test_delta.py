"""A model with states (linear attention) in a cluster: they travel with the KV, unseen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_request import complete, prompt_of
from triptych.testing.checkpoints import served_checkpoint
from triptych.testing.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio]

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]


async def answers(cluster: Cluster) -> list[Any]:
    long = prompt_of(330, 5)
    replies = [
        await complete(cluster, prompt=prompt, max_tokens=24, return_token_ids=True, n=n, seed=3)
        for prompt, n in ((prompt_of(50, 1), 1), (long, 2), ([*long, 7], 1))
    ]
    return [[choice["token_ids"] for choice in reply["choices"]] for reply in replies]


async def test_a_split_cluster_gives_the_tokens_of_one_home_and_says_why_nothing_is_skipped(
    start_cluster: StartCluster, tmp_path: Path
) -> None:
    model = f"model={served_checkpoint(tmp_path / 'served', 'qwen3_next')}"
    async with start_cluster(model, "pools=[{name: decode, role: decode}]") as home:
        wanted = await answers(home)
    async with start_cluster(model, "engine.chunk_tokens=64") as split:
        assert await answers(split) == wanted
        decode = await split.metrics("decode-0")
        moved = [v for (name, _), v in decode.items() if name == "triptych_kv_transfer_bytes_total"]
        assert sum(moved) > 0
        assert await answers(split) == wanted
        asked = {"model": "tiny", "prompt": prompt_of(40, 2), "sparse_attention": {"scale": 8}}
        reply = await split.http.post("/v1/completions", json=asked)
        assert reply.status_code == 400
        assert "skips nothing" in reply.json()["error"]["message"]

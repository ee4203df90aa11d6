"""Prefill and decode on hosts of their own: slow links, cut links, new addresses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from triptych.config import load_config
from triptych.testing.cluster import eventually
from triptych.testing.distant_cluster import DistantCluster, distant_cluster
from triptych.testing.hosts import Network, why_not

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(why_not() is not None, reason=f"no namespaces: {why_not()}"),
]
KV_BYTES = ("triptych_kv_transfer_bytes_total", frozenset({("link", "tcp")}))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DistantCluster]:
    config = load_config(
        None,
        [
            f"model={tiny_model}",
            "served_model_name=tiny",
            "router.host=0.0.0.0",
            "router.placement=least-loaded",  # a prompt is handed over whenever it can be
            "transport.links=[tcp]",
            "engine.chunk_tokens=128",
            "kv.memory=32MiB",
            "pools=[{name: prefill, role: prefill, threads: 1}, "
            "{name: decode, role: decode, threads: 1}]",
        ],
    )
    folder = tmp_path_factory.mktemp("hosts")
    async with Network.create() as network, distant_cluster(network, config, folder) as running:
        yield running


def body_of(length: int, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    prompt = [draw.randrange(3, 250) for _ in range(length)]
    return {"model": "tiny", "prompt": prompt, "max_tokens": 16, "ignore_eos": True, "seed": 7}


async def told(cluster: DistantCluster, body: dict[str, Any], salt: str) -> dict[str, Any]:
    """`salt` keeps apart what prefix caches hold."""
    reply = await cluster.http.post(
        "/v1/completions",
        json={**body, "cache_salt": salt},
        headers={"X-Triptych-Timings": "1"},
    )
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


async def fetched_bytes(cluster: DistantCluster) -> float:
    return (await cluster.metrics("decode-0")).get(KV_BYTES, 0.0)


async def test_kv_goes_over_tcp_between_hosts(cluster: DistantCluster) -> None:
    answer = await told(cluster, body_of(700, 1), "first")
    assert answer["triptych"]["prefill_worker"] == "prefill-0"
    assert answer["triptych"]["kv_path"].startswith("tcp")
    assert not answer["triptych"]["fallbacks"]


async def test_an_answer_is_the_same_though_its_link_is_cut_in_mid_transfer(
    cluster: DistantCluster,
) -> None:
    body = body_of(1800, 2)
    expected = text_of(await told(cluster, body, "calm"))
    prefill = cluster.hosts["prefill-0"]
    await prefill.limit(rate_mbit=2)  # the transfer takes some seconds
    try:
        before, resent = await fetched_bytes(cluster), cluster.resent_segments("prefill-0")
        asked = asyncio.create_task(told(cluster, body, "cut"))

        async def under_way() -> bool:
            return await fetched_bytes(cluster) > before

        await eventually(under_way, timeout_s=60)
        assert not asked.done()
        await prefill.cut()

        async def missed() -> bool:
            return cluster.resent_segments("prefill-0") > resent + 2

        await eventually(missed, timeout_s=60)
        assert not asked.done()
        await prefill.mend()
        assert text_of(await asked) == expected
    finally:
        await prefill.mend()
        await prefill.unlimit()
    await cluster.until_at_rest(timeout_s=30)


async def test_a_peer_that_comes_back_with_another_address_is_used_again(
    cluster: DistantCluster,
) -> None:
    before = await cluster.worker("prefill-0")
    assert before is not None
    await cluster.kill_host("prefill-0")
    host = await cluster.start_worker("prefill-0")

    async def moved() -> bool:
        now = await cluster.worker("prefill-0")
        return now is not None and now["epoch"] != before["epoch"]

    await eventually(moved, timeout_s=60)
    answer = await told(cluster, body_of(700, 3), "moved")
    assert answer["triptych"]["prefill_worker"] == "prefill-0"
    assert answer["triptych"]["kv_path"].startswith("tcp")
    assert not answer["triptych"]["fallbacks"]
    now = await cluster.worker("prefill-0")
    assert now is not None
    assert now["address"].startswith(host.address)
    assert not before["address"].startswith(host.address)

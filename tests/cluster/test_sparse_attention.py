"""Sparse attention for one request: the same answer in every topology, told in its usage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.test_request import complete, prompt_of
from triptych.testing.cluster import Cluster
from triptych_kernels.cpu.native import native

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(native() is None, reason="no native kernels here"),
]

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]
SPARSE = {"scale": 380.0}
PAGES = {"scale": 380.0, "pages": {"tokens": 128, "share": 0.2}}


def repetitive(length: int) -> list[int]:
    phrase = prompt_of(40, 7)
    parts = (phrase if n % 3 else prompt_of(30, n) for n in range(length))
    return [token for part in parts for token in part][:length]


async def answers(cluster: Cluster, how: dict[str, Any] = SPARSE) -> list[dict[str, Any]]:
    """Dense, then sparse, of the same prompt."""
    asked = {"prompt": repetitive(900), "max_tokens": 24, "return_token_ids": True}
    dense = await complete(cluster, **asked)
    return [dense, await complete(cluster, **asked, sparse_attention=how)]


async def skipped_tiles(cluster: Cluster, worker: str) -> float:
    label = ("triptych_sparse_attention_tiles_total", frozenset({("decision", "skipped")}))
    return (await cluster.metrics(worker)).get(label, 0.0)


async def test_a_split_cluster_and_one_home_leave_out_the_same_and_say_so(
    start_cluster: StartCluster,
) -> None:
    async with start_cluster() as cluster:
        split = await answers(cluster)
        counted = [await skipped_tiles(cluster, name) for name in ("prefill-0", "decode-0")]
    async with start_cluster("pools=[{name: decode, role: decode}]") as cluster:
        whole = await answers(cluster)
    for one, other in zip(split, whole, strict=True):
        assert one["choices"][0]["token_ids"] == other["choices"][0]["token_ids"]
    dense, sparse = split
    assert "sparse_attention" not in dense["usage"]
    told = sparse["usage"]["sparse_attention"]
    assert 0 < told["skipped_tiles"] < told["tiles"] and told["max_omitted"] > 0
    assert sum(counted) == told["skipped_tiles"]
    # What dense attention left in the caches is other KV.
    assert sparse["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def pages(cluster: Cluster, worker: str) -> float:
    counted = await cluster.metrics(worker)
    name = "triptych_sparse_attention_pages_total"
    return sum(
        counted.get((name, frozenset({("decision", word)})), 0.0) for word in ("read", "skipped")
    )


async def test_answers_choose_the_same_pages_in_a_split_cluster_and_at_one_home(
    start_cluster: StartCluster,
) -> None:
    async with start_cluster() as cluster:
        _, split = await answers(cluster, PAGES)
        assert await pages(cluster, "prefill-0") == 0, "rows of prompts read everything"
        told = split["usage"]["sparse_attention"]
        assert await pages(cluster, "decode-0") == told["pages"]
    one_home = "pools=[{name: decode, role: decode}]"
    usual = "router.sparse_attention={scale: 380, pages: {tokens: 128, share: 0.2}}"
    async with start_cluster(one_home, usual) as cluster:
        whole, asked_too = await answers(cluster, PAGES)
    assert 0 < told["pages_read"] < told["pages"] / 3
    ids = [each["choices"][0]["token_ids"] for each in (split, whole, asked_too)]
    assert ids == ids[:1] * 3
    assert whole["usage"]["sparse_attention"]["pages_read"] > 0

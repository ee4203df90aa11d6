"""Models that choose their tokens in a cluster: what DeepSeek-V3.2 chooses by travels with the KV,
NSA makes it of that; to be sparse twice is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from tests.cluster.test_request import complete, prompt_of
from triptych.testing.checkpoints import INDEX_TOP_K, served_checkpoint
from triptych.testing.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]


@pytest.fixture(scope="module", params=["deepseek_v32", "nsa"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"model={served_checkpoint(tmp_path_factory.mktemp('chooses'), request.param)}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def split(start_cluster: StartCluster, model: str) -> AsyncIterator[Cluster]:
    async with start_cluster(model, "engine.chunk_tokens=64", "speculation.mode=dice") as running:
        yield running


async def answers(cluster: Cluster) -> list[Any]:
    """Prompts that all make rows choose, one of them behind a prefix that is cached by then."""
    long = prompt_of(330, 5)
    replies = [
        await complete(cluster, prompt=prompt, max_tokens=24, return_token_ids=True, n=n, seed=3)
        for prompt, n in ((prompt_of(3 * INDEX_TOP_K, 1), 1), (long, 2), ([*long, 7], 1))
    ]
    return [[choice["token_ids"] for choice in reply["choices"]] for reply in replies]


async def test_a_split_cluster_with_drafts_gives_the_tokens_of_one_home(
    split: Cluster, start_cluster: StartCluster, model: str
) -> None:
    alone = ("pools=[{name: decode, role: decode}]", "speculation.mode=off")
    async with start_cluster(model, *alone) as home:
        wanted = await answers(home)
    assert await answers(split) == wanted
    decode = await split.metrics("decode-0")
    moved = [v for (name, _), v in decode.items() if name == "triptych_kv_transfer_bytes_total"]
    assert sum(moved) > 0
    assert await answers(split) == wanted


async def test_sparse_attention_on_top_is_refused_with_the_remedy(split: Cluster) -> None:
    asked = {"model": "tiny", "prompt": prompt_of(40, 2), "sparse_attention": {"scale": 8}}
    reply = await split.http.post("/v1/completions", json=asked)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == "sparse_attention"
    assert "chooses by itself" in error["message"] and 'say "off"' in error["message"]

"""Turns of one conversation: what a home holds of it is not computed again by anybody."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.test_request import complete, prompt_of
from triptych.testing.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]


async def turns(cluster: Cluster) -> list[dict[str, Any]]:
    """Two: 200 tokens and an answer of 100, then all that and 60 more."""
    first = await complete(cluster, prompt=prompt_of(200, 5), max_tokens=100, return_token_ids=True)
    said = [*prompt_of(200, 5), *first["choices"][0]["token_ids"]]
    second = await complete(
        cluster, prompt=[*said, *prompt_of(60, 6)], max_tokens=20, return_token_ids=True
    )
    return [first, second]


async def test_the_prefill_worker_reads_an_earlier_answer_from_its_home(
    start_cluster: StartCluster,
) -> None:
    async with start_cluster() as cluster:
        first, second = await turns(cluster)
    # Without what the home lends, the prefill worker would know the first prompt only: 192 tokens.
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 288
    assert second["triptych"]["prefill_worker"] == "prefill-0"
    assert second["triptych"]["fallbacks"] == []
    async with start_cluster("pools=[{name: decode, role: decode}]") as cluster:
        alone = await turns(cluster)
    for split, whole in zip((first, second), alone, strict=True):
        assert split["choices"][0]["token_ids"] == whole["choices"][0]["token_ids"]

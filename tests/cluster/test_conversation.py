"""Turns of one conversation: what a home holds of it is not computed again by anybody."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.test_request import complete, prompt_of
from triptych.testing.cluster import Cluster, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]

BLOCK = 32  # tokens

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


def cached_tokens(answer: dict[str, Any]) -> int:
    cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


async def chat(
    cluster: Cluster, messages: list[dict[str, str]], key: str = "", **fields: Any
) -> dict[str, Any]:
    """The answer, which `messages` then holds, too."""
    body = {"messages": messages, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    reply = await cluster.http.post(
        "/v1/chat/completions", json={**body, **fields}, headers=headers
    )
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
    return {**answer, "decision": reply.headers["x-triptych-decision"]}


def said(number: int) -> dict[str, str]:
    return {"role": "user", "content": f"{number}: and what of the harbour, the lamps? " * 6}


async def test_a_chats_later_turns_are_mostly_cached_and_the_decision_says_so(
    start_cluster: StartCluster,
) -> None:
    pools = ", ".join(f"{{name: {it}, role: {it}, replicas: 2}}" for it in ("decode", "prefill"))
    async with start_cluster("router.placement=predicted", f"pools=[{pools}]") as cluster:
        messages: list[dict[str, str]] = []
        answers = []
        for number in range(4):
            messages.append(said(number))
            answers.append(await chat(cluster, messages))
    for before, answer in itertools.pairwise(answers):
        assert cached_tokens(answer) > before["usage"]["prompt_tokens"] - BLOCK
        assert "reason=" in answer["decision"]
        # What the router knew by then: of the last answer's own blocks it may not have heard yet.
        known = re.search(r"cached=(\d+);", answer["decision"])
        assert known and before["usage"]["prompt_tokens"] - BLOCK < int(known[1])


@pytest.mark.parametrize(
    "mine, other",
    [({"cache_salt": "a"}, {"cache_salt": "b"}), ({"key": "mine"}, {"key": "other"})],
    ids=["salts", "isolated tenants"],
)
async def test_another_ones_turn_finds_nothing_of_a_conversation(
    start_cluster: StartCluster, mine: dict[str, str], other: dict[str, str]
) -> None:
    tenants = (
        "router.tenants=[{name: me, keys: [mine], isolate: true}, {name: they, keys: [other]}]"
    )
    async with start_cluster(*([tenants] if "key" in mine else [])) as cluster:
        messages = [said(0)]
        await chat(cluster, messages, **mine)
        messages.append(said(1))
        theirs = await chat(cluster, list(messages), **other)
        assert cached_tokens(theirs) == 0
        ours = await chat(cluster, list(messages), **mine)
        assert cached_tokens(ours) >= 3 * BLOCK
        assert ours["choices"][0]["message"] == theirs["choices"][0]["message"]


async def test_history_that_only_its_home_holds_is_fetched_instead_of_computed(
    start_cluster: StartCluster,
) -> None:
    async with start_cluster() as cluster:
        first = await complete(
            cluster, prompt=prompt_of(300, 5), max_tokens=84, return_token_ids=True
        )
        epoch = ((await cluster.worker("prefill-0")) or {})["epoch"]
        os.kill(cluster.pid("prefill-0"), signal.SIGKILL)

        async def is_back() -> bool:
            worker = await cluster.worker("prefill-0")
            return worker is not None and worker["epoch"] != epoch

        await eventually(is_back, 60)  # and holds nothing
        history = [*prompt_of(300, 5), *first["choices"][0]["token_ids"]]
        second = await complete(cluster, prompt=[*history, *prompt_of(60, 6)], max_tokens=4)
        samples = await cluster.metrics("prefill-0")
    assert second["triptych"]["prefill_worker"] == "prefill-0"
    assert cached_tokens(second) == 11 * BLOCK  # 383 tokens have KV: eleven full blocks
    fetched = samples["triptych_kv_transfer_bytes_total", frozenset({("link", "shm")})]
    assert fetched > 0 and second["triptych"]["fallbacks"] == []

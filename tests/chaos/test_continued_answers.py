"""Whatever was asked of an answer holds when its home is killed, or hangs, in the middle of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from triptych.testing.cluster import Cluster, eventually, parse_metrics

pytestmark = pytest.mark.cluster

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]
CHAT = "/v1/chat/completions"
POOLS = (
    "pools=[{name: prefill, role: prefill, threads: 1}, "
    "{name: decode, role: decode, replicas: 2, threads: 1}]"
)
NUMBERS = {"type": "array", "items": {"type": "integer", "maximum": 99}, "minItems": 150}
LONG_OBJECT = {
    "type": "object",
    "properties": {"first": NUMBERS, "second": NUMBERS},
    "required": ["first", "second"],
    "additionalProperties": False,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": LONG_OBJECT}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": LONG_OBJECT}}]
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "max_tokens": 600},
    "sampled": {"temperature": 0.9, "top_p": 0.9, "max_tokens": 600},
    "choices": {"n": 2, "temperature": 1.0, "max_tokens": 500},
    "logprobs": {"logprobs": True, "top_logprobs": 2, "n": 2, "max_tokens": 400},
    "pages": {"sparse_attention": {"pages": {"tokens": 128}}, "n": 2, "max_tokens": 600},
    "penalties": {"frequency_penalty": 0.5, "presence_penalty": 0.3, "max_tokens": 600},
    "schema": {"response_format": SCHEMA, "max_tokens": 2000},
    "schema, choices": {"response_format": SCHEMA, "n": 2, "max_tokens": 2000},
    "tool": {"tools": TOOLS, "tool_choice": "required", "max_tokens": 2000},
}


def body_of(kind: str, **more: Any) -> dict[str, Any]:
    question = {"role": "user", "content": f"{kind}? " * 12}
    fixed = {"model": "tiny", "messages": [question], "seed": 7, "stream": True}
    free = "response_format" not in KINDS[kind] and "tools" not in KINDS[kind]
    return {**fixed, "ignore_eos": free, **KINDS[kind], **more}


async def told(
    cluster: Cluster, body: dict[str, Any], began: asyncio.Event | None = None
) -> list[dict[str, Any]]:
    """All that a stream says of each choice."""
    found: list[dict[str, Any]] = [
        {"text": "", "arguments": "", "logprobs": [], "end": None} for _ in range(body.get("n", 1))
    ]
    async with cluster.http.stream("POST", CHAT, json=body) as reply:
        assert reply.status_code == 200, await reply.aread()
        line = ""
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                _add(found[choice["index"]], choice)
                if began is not None and any(choice["delta"].values()):
                    began.set()
            if line == "data: [DONE]":
                break
    return found


def _add(to: dict[str, Any], choice: dict[str, Any]) -> None:
    delta = choice["delta"]
    to["text"] += delta.get("content") or ""
    for call in delta.get("tool_calls") or ():
        to["arguments"] += call["function"].get("arguments") or ""
    to["logprobs"] += (choice.get("logprobs") or {}).get("content") or ()
    to["end"] = choice["finish_reason"] or to["end"]


async def calmly_told(cluster: Cluster, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The undisturbed answer. What it leaves in prefix caches helps nobody else."""
    return await told(cluster, {**body, "cache_salt": "calm"})


async def stopped_body(cluster: Cluster) -> dict[str, Any]:
    """A request that a stop string ends, late in an answer of several hundred tokens."""
    [answer] = await calmly_told(cluster, body_of("greedy"))
    text = answer["text"]
    stop = next(
        text[at : at + 9]
        for at in range(len(text) // 2, len(text))
        if text.find(text[at : at + 9]) == at
    )
    return body_of("greedy", stop=[stop])


async def continuations(cluster: Cluster) -> dict[str, float]:
    counted = parse_metrics((await cluster.http.get("/metrics")).text)
    return {
        dict(labels)["reason"]: value
        for (name, labels), value in counted.items()
        if name == "triptych_router_continuations_total"
    }


async def salvaged_blocks(cluster: Cluster, *, without: str) -> float:
    """What the other home copied out of its neighbours' memory."""
    [heir] = {"decode-0", "decode-1"} - {without}
    return (await cluster.metrics(heir))["triptych_kv_salvaged_blocks_total", frozenset()]


@contextlib.asynccontextmanager
async def streaming(
    cluster: Cluster, bodies: list[dict[str, Any]]
) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """All of them have begun and, being long, are not done."""
    began = [asyncio.Event() for _ in bodies]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(told(cluster, body, event))
            for body, event in zip(bodies, began, strict=True)
        ]
        for event in began:
            await event.wait()
        yield tasks


async def busiest_home(cluster: Cluster) -> dict[str, Any]:
    async def busy() -> dict[str, Any] | None:
        homes = [w for w in await cluster.workers() if w["role"] == "decode" and w["running"]]
        return max(homes, key=lambda home: int(home["running"]), default=None)

    return await eventually(busy, timeout_s=10)


async def test_whatever_was_asked_of_an_answer_holds_when_its_home_is_killed(
    start_cluster: StartCluster,
) -> None:
    async with start_cluster(POOLS, "engine.chunk_tokens=64") as cluster:
        bodies = [body_of(kind) for kind in KINDS] + [await stopped_body(cluster)]
        expected = [await calmly_told(cluster, body) for body in bodies]
        assert expected[-1][0]["end"] == "stop"
        assert json.loads(expected[list(KINDS).index("schema")][0]["text"]).keys() >= {"first"}
        assert json.loads(expected[list(KINDS).index("tool")][0]["arguments"]).keys() >= {"first"}
        async with streaming(cluster, bodies) as running:
            victim = (await busiest_home(cluster))["worker_id"]
            os.kill(cluster.pid(victim), signal.SIGKILL)
        for body, task, answer in zip(bodies, running, expected, strict=True):
            assert task.result() == answer, body
        assert (await continuations(cluster))["gone"] >= 1
        assert await salvaged_blocks(cluster, without=victim) > 0
        await cluster.until_at_rest(timeout_s=10)


async def test_a_home_that_hangs_is_left_and_comes_back_to_no_harm(
    start_cluster: StartCluster,
) -> None:
    async with start_cluster(POOLS, "engine.chunk_tokens=64") as cluster:
        kinds = ("greedy", "choices", "schema", "logprobs")
        bodies = [body_of(kind, max_tokens=1200) for kind in kinds]  # still told when it hangs
        expected = [await calmly_told(cluster, body) for body in bodies]
        async with streaming(cluster, bodies) as running:
            home = await busiest_home(cluster)
            os.kill(cluster.pid(home["worker_id"]), signal.SIGSTOP)
            try:
                answers = await asyncio.gather(*running)
            finally:
                os.kill(cluster.pid(home["worker_id"]), signal.SIGCONT)
        assert answers == expected
        assert (await continuations(cluster))["silent"] >= 1
        assert await salvaged_blocks(cluster, without=home["worker_id"]) > 0

        async def is_back() -> bool:
            now = await cluster.worker(home["worker_id"])
            return now is not None and now["epoch"] == home["epoch"] and not now["running"]

        await eventually(is_back, timeout_s=30)
        await cluster.until_at_rest(timeout_s=10)
        # Both homes serve again, and what the one had said too late is nowhere.
        again = await asyncio.gather(*(told(cluster, body) for body in bodies * 2))
        assert again == expected * 2

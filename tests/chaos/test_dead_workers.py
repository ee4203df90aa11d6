"""Workers die, hang and come back; requests go on, with the same tokens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from triptych.testing.cluster import Cluster, eventually, parse_metrics

pytestmark = pytest.mark.cluster

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]


def body_of(length: int, seed: int, **more: Any) -> dict[str, Any]:
    draw = random.Random(seed)
    prompt = [draw.randrange(3, 250) for _ in range(length)]
    fixed = {"model": "tiny", "max_tokens": 8, "ignore_eos": True, "seed": 1}
    return {**fixed, "prompt": prompt, "return_token_ids": True, **more}


async def ask(cluster: Cluster, body: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
    headers = {"X-Triptych-Timings": "1"}
    reply = await cluster.http.post("/v1/completions", json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    return answer["choices"][0]["token_ids"], answer["triptych"]


async def until_attached(cluster: Cluster, worker_id: str, *, not_epoch: int) -> None:
    """Waits for a restarted worker to come back under its old name."""

    async def back() -> bool:
        worker = await cluster.worker(worker_id)
        return worker is not None and worker["epoch"] != not_epoch

    await eventually(back, timeout_s=60)


async def epoch_of(cluster: Cluster, worker_id: str) -> int:
    worker = await cluster.worker(worker_id)
    assert worker is not None
    return int(worker["epoch"])


def ask_at_length(cluster: Cluster, first_seed: int) -> list[asyncio.Task[Any]]:
    """Enough long prompts to keep prefill workers busy until one of them has been killed."""
    bodies = [body_of(1500, first_seed + number) for number in range(16)]
    return [asyncio.create_task(ask(cluster, body)) for body in bodies]


async def busy_prefill(cluster: Cluster) -> str:
    """Waits until a prefill worker computes something; its id."""

    async def busy() -> str | None:
        workers = [w for w in await cluster.workers() if w["role"] == "prefill" and w["running"]]
        return workers[0]["worker_id"] if workers else None

    return await eventually(busy, timeout_s=30)


async def test_a_request_survives_a_prefill_worker_that_is_killed_under_it(
    start_cluster: StartCluster,
) -> None:
    # Small chunks make a prefill long enough to be killed in the middle.
    async with start_cluster("engine.chunk_tokens=16") as cluster:
        body = body_of(1500, 1)
        expected, _ = await ask(cluster, {**body, "cache_salt": "before"})
        old = await epoch_of(cluster, "prefill-0")
        others = ask_at_length(cluster, 200)
        running = asyncio.create_task(ask(cluster, body))  # waits behind them
        await busy_prefill(cluster)
        os.kill(cluster.pid("prefill-0"), signal.SIGKILL)
        answers = await asyncio.gather(running, *others)
        assert answers[0][0] == expected
        fallbacks = [rung for _, timings in answers for rung in timings["fallbacks"]]
        assert any(rung.startswith("home:") for rung in fallbacks)
        await until_attached(cluster, "prefill-0", not_epoch=old)
        tokens, timings = await ask(cluster, {**body, "cache_salt": "after"})
        assert tokens == expected
        assert timings["prefill_worker"] == "prefill-0" and timings["fallbacks"] == []


async def test_another_prefill_worker_takes_over_with_the_reservation_kept(
    start_cluster: StartCluster,
) -> None:
    pools = "[{name: prefill, role: prefill, replicas: 2}, {name: decode, role: decode}]"
    async with start_cluster("engine.chunk_tokens=16", f"pools={pools}") as cluster:
        running = ask_at_length(cluster, 300)
        busy = await busy_prefill(cluster)
        os.kill(cluster.pid(busy), signal.SIGKILL)
        moved = [
            timings
            for _, timings in await asyncio.gather(*running)
            if any(rung.startswith("other-worker:") for rung in timings["fallbacks"])
        ]
        assert moved and all(timings["prefill_worker"] not in {"", busy} for timings in moved)


def mixed_bodies() -> list[dict[str, Any]]:
    """Streamed and whole, greedy and seeded, with all that must not be lost."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.9, "top_p": 0.9},
        {"n": 2, "temperature": 1.0},
        {"logprobs": 2},
        {"temperature": 0.7, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"temperature": 0, "stop": ["never to be found"]},
        {"repetition_penalty": 1.2, "min_tokens": 50},
        {"n": 2, "temperature": 0.8, "logprobs": 1},
    ]
    return [
        body_of(40 + 30 * i, 400 + i, max_tokens=400, stream=i % 2 == 0, **kind)
        for i, kind in enumerate(kinds)
    ]


async def whole_answer(
    cluster: Cluster, body: dict[str, Any], began: asyncio.Event | None = None
) -> list[tuple[str, list[int], str]]:
    """Text, tokens and finish reason of each choice, however they came."""
    found = [("", list[int](), "") for _ in range(body.get("n", 1))]
    async with cluster.http.stream("POST", "/v1/completions", json=body) as reply:
        assert reply.status_code == 200
        if not body["stream"]:
            answer = json.loads(await reply.aread())
            assert answer["usage"]["completion_tokens"] == 400 * len(found)
            return [
                (c["text"], c["token_ids"], c["finish_reason"])
                for c in sorted(answer["choices"], key=lambda c: int(c["index"]))
            ]
        lines = [line async for line in _noted(reply, began) if line]
    assert lines[-1] == "data: [DONE]", lines[-1]
    for line in lines[:-1]:
        for c in json.loads(line.removeprefix("data: "))["choices"]:
            text, ids, finish = found[c["index"]]
            ids += c.get("token_ids") or ()
            found[c["index"]] = (text + c["text"], ids, c["finish_reason"] or finish)
    return found


async def _noted(reply: httpx.Response, began: asyncio.Event | None) -> AsyncIterator[str]:
    async for line in reply.aiter_lines():
        if began is not None:
            began.set()
        yield line


@pytest.mark.parametrize("victim", ["decode-0", "prefill-0"])
async def test_a_killed_worker_loses_no_stream(start_cluster: StartCluster, victim: str) -> None:
    async with start_cluster() as cluster:
        bodies = mixed_bodies()
        expected = await asyncio.gather(*(whole_answer(cluster, body) for body in bodies))
        old = await epoch_of(cluster, victim)
        began = [asyncio.Event() for _ in bodies]
        running = [
            asyncio.create_task(whole_answer(cluster, body, event))
            for body, event in zip(bodies, began, strict=True)
        ]
        for event, body in zip(began, bodies, strict=True):
            if body["stream"]:
                await event.wait()
        os.kill(cluster.pid(victim), signal.SIGKILL)
        assert await asyncio.gather(*running) == expected
        if victim == "decode-0":
            counted = parse_metrics((await cluster.http.get("/metrics")).text)
            gone = ("triptych_router_continuations_total", frozenset([("reason", "gone")]))
            assert counted[gone] >= 4
        await until_attached(cluster, victim, not_epoch=old)
        await cluster.until_at_rest(timeout_s=5)


async def test_a_home_that_is_killed_comes_back(start_cluster: StartCluster) -> None:
    async with start_cluster() as cluster:
        old = await epoch_of(cluster, "decode-0")
        os.kill(cluster.pid("decode-0"), signal.SIGKILL)
        await until_attached(cluster, "decode-0", not_epoch=old)
        tokens, timings = await ask(cluster, body_of(200, 4))
        assert len(tokens) == 8 and timings["kv_path"] == "shm"
        await cluster.until_at_rest(timeout_s=5)


async def test_a_restarted_router_is_rebuilt_by_its_workers_which_drop_its_orphans(
    start_cluster: StartCluster,
) -> None:
    async with start_cluster() as cluster:
        old = cluster.pid("router")
        body = body_of(20, 3, max_tokens=2000, stream=True)
        with contextlib.suppress(httpx.HTTPError):  # its clients' connections break
            async with cluster.http.stream("POST", "/v1/completions", json=body) as reply:
                lines = reply.aiter_lines()
                await anext(lines)
                os.kill(old, signal.SIGKILL)
                async for _ in lines:
                    pass
        url = await eventually(lambda: url_of_another_router(cluster, old), timeout_s=30)
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            both = replace(cluster, url=url, http=http)
            await eventually(lambda: attached(both, 2), timeout_s=30)
            await both.until_at_rest(timeout_s=5)
            _, timings = await ask(both, body_of(200, 5))
        assert timings["kv_path"] == "shm"


async def url_of_another_router(cluster: Cluster, old: int) -> str | None:
    """None: the router with process id `old` was the last one that listened."""
    state = json.loads(cluster.launcher.run_dir.router_file().read_text())
    return None if state["pid"] == old else str(state["url"])


async def attached(cluster: Cluster, count: int) -> bool:
    return len(await cluster.workers()) == count


async def test_a_draining_worker_finishes_its_stream(start_cluster: StartCluster) -> None:
    async with start_cluster() as cluster:
        body = body_of(100, 6, max_tokens=150, stream=True)
        async with cluster.http.stream("POST", "/v1/completions", json=body) as reply:
            lines = reply.aiter_lines()
            await anext(lines)
            os.kill(cluster.pid("decode-0"), signal.SIGTERM)
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"


async def test_a_request_that_gives_up_on_a_prefill_worker_takes_no_other_along(
    start_cluster: StartCluster,
) -> None:
    async with start_cluster("engine.chunk_tokens=16", "router.request_deadline_s=60") as cluster:
        await ask(cluster, body_of(300, 8))  # opens the path
        patient = [asyncio.create_task(ask(cluster, body_of(1500, 80 + i))) for i in range(4)]
        await busy_prefill(cluster)
        hasty = body_of(1500, 90)
        async with stopped(cluster.pid("prefill-0")):  # or it might be done in no time
            with pytest.raises(httpx.TimeoutException):
                await cluster.http.post("/v1/completions", json=hasty, timeout=0.2)
        for task in patient:
            _, timings = await task
            assert timings["prefill_worker"] == "prefill-0" and timings["fallbacks"] == []


@contextlib.asynccontextmanager
async def stopped(pid: int) -> AsyncIterator[None]:
    """SIGSTOP for the length of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_prefill_worker_that_hangs_is_left_at_the_deadline(
    start_cluster: StartCluster,
) -> None:
    async with start_cluster("transport.prefill_deadline_s=1.0") as cluster:
        body = body_of(300, 7)
        expected, _ = await ask(cluster, {**body, "cache_salt": "before"})
        async with stopped(cluster.pid("prefill-0")):
            tokens, timings = await ask(cluster, body)
        assert tokens == expected
        assert any(rung.startswith("home:") for rung in timings["fallbacks"])
        await cluster.until_at_rest(timeout_s=10)

"""Limits, queues and refusals as a client meets them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from transport.protos import worker_pb2 as pb
from triptych.testing.fake_worker import Script, says

COMPLETIONS = "/v1/completions"
QUEUED, REJECTED = "triptych_queued_requests", "triptych_rejected_requests_total"
ONE_AT_A_TIME = {
    "prefill_tokens": 1
}  # a prompt without a first token is all that there is room for


def tenant(**settings: Any) -> dict[str, Any]:
    return {"name": "acme", "keys": ("key",), **settings}


async def ask(world: Any, *, key: str = "key", headers: Any = (), **fields: Any) -> httpx.Response:
    body = {"prompt": [7], "max_tokens": 4, **fields}
    sent = {"Authorization": f"Bearer {key}", **dict(headers)}
    response: httpx.Response = await world.client.post(COMPLETIONS, json=body, headers=sent)
    return response


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def when(event: asyncio.Event) -> Script:
    """Answers after the event."""

    def script(request: pb.GenerateRequest) -> Iterable[Any]:
        yield event
        yield from says([5])(request)

    return script


async def until_queued(world: Any, number: int, tenant: str = "default") -> None:
    async with asyncio.timeout(5):
        while world.metric(QUEUED, tenant=tenant) != number:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_over_its_request_rate_a_tenant_is_told_when_to_come_back(start_world: Any) -> None:
    world = await start_world(tenants=(tenant(requests_per_s=0.01, request_burst=1),))
    await world.add_worker("decode-0")
    first = await ask(world)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert first.headers["x-ratelimit-reset-requests"].startswith("1m")
    second = await ask(world)
    error = error_of(second, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "0.01 requests per second" in error["message"]
    assert 90 <= int(second.headers["retry-after"]) <= 100
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    assert world.metric(REJECTED, tenant="acme", reason="requests_per_s") == 1


async def test_over_its_token_rate_a_tenant_is_turned_away(start_world: Any) -> None:
    world = await start_world(tenants=(tenant(tokens_per_s=1, token_burst=10),))
    await world.add_worker("decode-0")
    response = await ask(world, prompt=[7] * 6)
    assert response.status_code == 200
    # 10 tokens were expected and as many used: 6 of the prompt and 4 that the echo said.
    assert response.headers["x-ratelimit-remaining-tokens"] == "0"
    error_of(await ask(world, prompt=[7] * 6), 429)
    assert world.metric(REJECTED, tenant="acme", reason="tokens_per_s") == 1


async def test_only_so_many_requests_of_a_tenant_are_open_at_once(start_world: Any) -> None:
    world = await start_world(api_keys=("other",), tenants=(tenant(max_concurrent=1),))
    free = asyncio.Event()
    worker = await world.add_worker("decode-0", when(free))
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(ask(world, stream=True))
        await worker.next_call()
        turned = await ask(world)
        error = error_of(turned, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "concurrency_limit_exceeded")
        assert int(turned.headers["retry-after"]) >= 1
        assert world.metric(REJECTED, tenant="acme", reason="max_concurrent") == 1
        others = tasks.create_task(ask(world, key="other"))
        await worker.next_call()
        free.set()
    assert (first.result().status_code, others.result().status_code) == (200, 200)
    assert (await ask(world)).status_code == 200


async def test_an_unknown_key_is_no_tenants(start_world: Any) -> None:
    world = await start_world(tenants=(tenant(),))
    assert error_of(await ask(world, key="wrong"), 401)["code"] == "invalid_api_key"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_there_is_no_room_for_waits_and_a_full_queue_says_so(
    start_world: Any, stream: bool
) -> None:
    world = await start_world(admission={**ONE_AT_A_TIME, "max_queued": 1})
    free = asyncio.Event()
    worker = await world.add_worker("decode-0", when(free))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(ask(world, stream=stream))
        await worker.next_call()
        waiting = tasks.create_task(ask(world, stream=stream))
        await until_queued(world, 1)
        third = await ask(world, stream=stream)
        assert error_of(third, 429)["code"] == "queue_full"
        assert int(third.headers["retry-after"]) >= 1
        assert len(worker.calls) == 1
        free.set()
    assert (running.result().status_code, waiting.result().status_code) == (200, 200)
    assert world.metric("triptych_queue_wait_seconds_count", tenant="default") == 1
    assert world.metric("triptych_admitted_tokens_total", tenant="default") > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_while_it_waits_leaves_the_queue(
    start_world: Any, stream: bool
) -> None:
    world = await start_world(admission=ONE_AT_A_TIME)
    free = asyncio.Event()
    worker = await world.add_worker("decode-0", when(free))
    url = await world.serve()
    async with httpx.AsyncClient(base_url=url) as client, asyncio.TaskGroup() as tasks:
        running = tasks.create_task(ask(world))
        await worker.next_call()
        body = {"prompt": [9], "stream": stream}
        waiting = asyncio.create_task(client.post(COMPLETIONS, json=body))
        await until_queued(world, 1)
        waiting.cancel()
        await until_queued(world, 0)
        free.set()
    assert running.result().status_code == 200
    assert [list(call.request.prompt_ids) for call in worker.calls] == [[7]]


async def test_the_lower_priority_goes_first(start_world: Any) -> None:
    world = await start_world(admission=ONE_AT_A_TIME)
    free = asyncio.Event()
    worker = await world.add_worker("decode-0", when(free))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ask(world))
        await worker.next_call()
        for number, priority in enumerate((3, 1, 2)):
            tasks.create_task(ask(world, prompt=[priority], priority=priority))
            await until_queued(world, number + 1)
        free.set()
    assert [list(call.request.prompt_ids) for call in worker.calls] == [[7], [1], [2], [3]]


async def test_a_priority_outside_of_the_tenants_bounds_is_refused(start_world: Any) -> None:
    world = await start_world(tenants=(tenant(min_priority=0),))
    await world.add_worker("decode-0")
    assert error_of(await ask(world, priority=-1), 400)["param"] == "priority"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_that_has_passed_is_not_worth_an_answer(
    start_world: Any, stream: bool
) -> None:
    world = await start_world()
    worker = await world.add_worker("decode-0")
    by_header = await ask(world, stream=stream, headers={"X-Request-Deadline-Ms": "0.001"})
    assert error_of(by_header, 429)["code"] == "deadline"
    assert error_of(await ask(world, stream=stream, deadline_ms=0.001), 429)["code"] == "deadline"
    assert not worker.calls


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_that_passes_in_the_queue_ends_the_wait(
    start_world: Any, stream: bool
) -> None:
    world = await start_world(admission=ONE_AT_A_TIME, tenants=(tenant(requests_per_s=100),))
    free = asyncio.Event()
    worker = await world.add_worker("decode-0", when(free))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(ask(world))
        await worker.next_call()
        late = await ask(world, stream=stream, deadline_ms=100)
        assert error_of(late, 429)["code"] == "deadline"
        assert late.headers["x-ratelimit-limit-requests"] == "100"
        assert world.metric(QUEUED, tenant="acme") == 0
        free.set()
    assert running.result().status_code == 200
    assert len(worker.calls) == 1


async def test_a_home_hears_how_much_of_the_deadline_is_left(start_world: Any) -> None:
    world = await start_world()
    worker = await world.add_worker("decode-0")
    assert (await ask(world, deadline_ms=30_000.0)).status_code == 200
    assert 20 < (await worker.next_call()).deadline_s <= 30


@pytest.mark.parametrize("given", ["soon", "-5", "nan", "0", "1e99"])
async def test_a_deadline_header_that_is_no_time_is_refused(start_world: Any, given: str) -> None:
    world = await start_world()
    await world.add_worker("decode-0")
    response = await ask(world, headers={"X-Request-Deadline-Ms": given})
    assert error_of(response, 400)["param"] == "X-Request-Deadline-Ms"


async def test_an_isolated_tenant_shares_no_cached_prefix(start_world: Any) -> None:
    world = await start_world(api_keys=("other",), tenants=(tenant(isolate=True),))
    worker = await world.add_worker("decode-0")
    for key in ("key", "other"):
        assert (await ask(world, key=key)).status_code == 200
    assert [call.request.cache_salt for call in worker.calls] == ["tenant:acme:", ""]
    forged = await ask(world, key="other", cache_salt="tenant:acme:")
    assert error_of(forged, 400)["param"] == "cache_salt"


async def test_when_the_last_home_leaves_those_who_wait_are_told(start_world: Any) -> None:
    world = await start_world(admission=ONE_AT_A_TIME)
    worker = await world.add_worker("decode-0", when(asyncio.Event()))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ask(world))
        await worker.next_call()
        waiting = tasks.create_task(ask(world))
        await until_queued(world, 1)
        await worker.leave()
    assert error_of(waiting.result(), 503)["code"] == "no_capacity"


async def test_who_waits_goes_when_workers_report_that_others_have_ended(start_world: Any) -> None:
    world = await start_world()
    free = asyncio.Event()
    worker = await world.add_worker("decode-0", when(free))
    worker.load = pb.WorkerLoad(free_blocks=16, waiting=500)  # of another router
    await world.directory.wait_for(lambda views: views[0].waiting == 500, 5)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ask(world))
        await worker.next_call()
        tasks.create_task(ask(world))
        await until_queued(world, 1)
        worker.load = pb.WorkerLoad(free_blocks=16)
        await asyncio.wait_for(worker.next_call(), 5)
        free.set()

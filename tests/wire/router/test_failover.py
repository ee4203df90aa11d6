"""Homes that die, refuse or break their promises."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest

from triptych.errors import CapacityError, RequestError, WorkerError
from triptych.request import TokenDelta
from triptych.testing.fake_worker import says, stats

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "seed": 5}


def fails(*steps: Any) -> Any:
    return lambda request: steps


def delta(*token_ids: int, choice: int = 0) -> TokenDelta:
    return TokenDelta("", choice, token_ids)


async def test_a_dead_home_is_replaced_before_the_first_token(start_world: Any) -> None:
    world = await start_world()
    dead = await world.add_worker("decode-0")
    await dead.go_deaf()
    alive = await world.add_worker("decode-1", says(world.tokenizer.encode("ok")))
    for _ in range(4):
        response = await world.client.post(CHAT, json=QUESTION)
        assert response.status_code == 200
        assert response.json()["choices"][0]["message"]["content"] == "ok"
        assert response.headers["x-triptych-decision"].startswith("decode=decode-1; prefill=none")
    assert len(alive.calls) == 4
    assert {call.request.sampling.seed for call in alive.calls} == {5}
    lost = world.metric("triptych_placements_total", reason="home-lost", remote_prefill="no")
    assert lost >= 1


async def test_a_home_without_room_is_replaced_too(start_world: Any) -> None:
    world = await start_world()
    await world.add_worker("decode-0", fails(CapacityError("full")))
    await world.add_worker("decode-1")
    for _ in range(3):
        assert (await world.client.post(CHAT, json=QUESTION)).status_code == 200


async def test_a_home_that_cancels_the_call_counts_as_lost(start_world: Any) -> None:
    world = await start_world()
    await world.add_worker("decode-0", fails(grpc.StatusCode.CANCELLED))
    await world.add_worker("decode-1")
    for _ in range(3):
        assert (await world.client.post(CHAT, json=QUESTION)).status_code == 200


async def test_a_home_that_stops_while_it_thinks_is_replaced(start_world: Any) -> None:
    world = await start_world()
    stopping = await world.add_worker("decode-0", fails(asyncio.Event()))
    asked = asyncio.create_task(world.client.post(CHAT, json=QUESTION))
    await stopping.next_call()
    await world.add_worker("decode-1")
    await stopping.go_deaf()
    assert (await asked).headers["x-triptych-decision"].startswith("decode=decode-1; prefill=none")


async def test_without_another_home_in_time_a_stream_breaks(start_world: Any) -> None:
    world = await start_world(home_wait_s=0.2)
    stopping = await world.add_worker("decode-0", fails(delta(5), asyncio.Event()))
    asked = asyncio.create_task(world.client.post(CHAT, json={**QUESTION, "stream": True}))
    await stopping.next_call()
    await world.counted("triptych_completion_tokens_total")
    await stopping.go_deaf()
    response = await asked
    assert response.status_code == 200
    assert '"code":"worker_failed"' in response.text
    assert "[DONE]" not in response.text


async def test_dead_homes_only_are_an_error(start_world: Any) -> None:
    world = await start_world(home_wait_s=0.2)
    for number in range(3):
        await (await world.add_worker(f"decode-{number}")).go_deaf()
    response = await world.client.post(CHAT, json=QUESTION)
    assert response.status_code == 502
    assert "unreachable" in response.json()["error"]["message"]


async def test_no_room_anywhere_is_a_503_with_the_homes_words(start_world: Any) -> None:
    world = await start_world()
    for number in range(2):
        await world.add_worker(f"decode-{number}", fails(CapacityError("all slots taken")))
    response = await world.client.post(CHAT, json=QUESTION)
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "all slots taken"
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("error", "status", "param"),
    [(WorkerError("engine died"), 502, None), (RequestError("n: no", param="n"), 400, "n")],
)
async def test_what_the_home_says_reaches_the_client(
    start_world: Any, error: Exception, status: int, param: str | None
) -> None:
    world = await start_world()
    worker = await world.add_worker("decode-0", fails(error))
    await world.add_worker("decode-1", fails(error))
    for stream in (False, True):
        response = await world.client.post(CHAT, json={**QUESTION, "stream": stream})
        assert response.status_code == status
        assert response.json()["error"]["message"] == str(error)
        assert response.json()["error"]["param"] == param
    assert len(worker.calls) <= 2  # such a failure is not tried elsewhere


async def test_a_stream_that_breaks_ends_with_an_error_event(start_world: Any) -> None:
    world = await start_world()
    ids = world.tokenizer.encode("ab")
    await world.add_worker("decode-0", fails(delta(*ids), WorkerError("engine died")))
    await world.add_worker("decode-1", fails(delta(*ids), WorkerError("engine died")))
    response = await world.client.post(CHAT, json={**QUESTION, "stream": True})
    assert response.status_code == 200
    *events, last, nothing = response.text.split("\n\n")
    assert nothing == ""
    assert json.loads(events[-1].removeprefix("data: "))["choices"][0]["delta"] == {"content": "ab"}
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "engine died"
    assert "[DONE]" not in response.text
    assert world.metric("triptych_interrupted_requests_total", route=CHAT, reason="error") == 1
    response = await world.client.post(CHAT, json=QUESTION)
    assert response.status_code == 502


@pytest.mark.parametrize(
    "script",
    [
        lambda request: [],
        lambda request: [delta(5)],
        lambda request: [delta(5), stats(request, 1)],
        lambda request: list(says([5])(request))[:-1],
        lambda request: [delta(5, choice=1)],
        lambda request: [*says([5])(request), delta(6)],
    ],
    ids=["nothing", "no end", "no reason", "no stats", "no such choice", "after the end"],
)
async def test_a_home_that_breaks_its_promise_is_a_502(start_world: Any, script: Any) -> None:
    world = await start_world()
    await world.add_worker("decode-0", script)
    response = await world.client.post(CHAT, json=QUESTION)
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "worker_failed"


async def test_the_deadline_travels_to_the_home_and_back(start_world: Any) -> None:
    world = await start_world(request_deadline_s=0.2)
    worker = await world.add_worker("decode-0", fails(asyncio.Event()))
    response = await world.client.post(CHAT, json=QUESTION)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    call = await worker.next_call()
    assert call.deadline_s is not None
    assert call.deadline_s <= 0.2
    await asyncio.wait_for(call.cancelled.wait(), 5)


async def test_a_restarted_home_gets_a_connection_of_its_own(start_world: Any) -> None:
    world = await start_world()
    old = await world.add_worker("decode-0", epoch=1)
    assert (await world.client.post(CHAT, json=QUESTION)).status_code == 200
    await old.leave()
    await world.directory.wait_for(lambda views: not views, 5)
    new = await world.add_worker("decode-0", epoch=2)
    assert (await world.client.post(CHAT, json=QUESTION)).status_code == 200
    assert len(new.calls) == 1
    assert list(world.services.relay._homes._channels) == [("decode-0", 2)]

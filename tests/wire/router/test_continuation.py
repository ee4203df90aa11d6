"""Streams that outlive their homes: nothing missing, nothing twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
import pytest

from transport.protos import worker_pb2 as pb
from triptych.request import FinishReason, TokenDelta, TokenLogprobs
from triptych.testing.fake_worker import Script, Step, stats

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "seed": 5}
FIRST, SECOND = "one two three", "four five"


def answers(
    *choices: Sequence[int], until: int | None = None, then: Step | None = None, cached: int = 0
) -> Script:
    """Each choice's whole answer, of which this home says what is still missing.

    It gets as far as `until` tokens of a choice, then `then` happens: by default nothing more.
    """

    def script(request: pb.GenerateRequest) -> Iterable[Step]:
        got = {item.choice: item for item in request.resumed}
        yield pb.RequestBegan(cached_tokens=cached)
        told = 0
        for place in range(max(map(len, choices))):
            if place == until:
                yield then or asyncio.Event()
            for choice, ids in enumerate(choices):
                known = got.get(choice, pb.Resumed())
                if known.done or not len(known.token_ids) <= place < len(ids):
                    continue
                last = place == len(ids) - 1
                told += 1
                yield TokenDelta(
                    request.request_id,
                    choice,
                    (ids[place],),
                    logprobs=_logprobs(request, ids[place]),
                    finish_reason=FinishReason.LENGTH if last else None,
                )
        yield stats(request, told, cached_tokens=cached)

    return script


def _logprobs(request: pb.GenerateRequest, token_id: int) -> tuple[TokenLogprobs, ...]:
    return (TokenLogprobs(token_id, -0.5),) if request.sampling.HasField("logprobs") else ()


def texts(response: Any, n: int = 1) -> list[str]:
    """Of a stream that ended as it should, by choice."""
    events = response.text.split("\n\n")
    assert events[-2] == "data: [DONE]", response.text
    found = [""] * n
    for event in events[:-2]:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            found[choice["index"]] += choice["delta"].get("content", "")
    return found


async def ask(world: Any, **more: Any) -> asyncio.Task[Any]:
    """A request that has got some tokens from its home."""
    asked = asyncio.create_task(world.client.post(CHAT, json={**QUESTION, **more}))
    await world.counted("triptych_completion_tokens_total")
    return asked


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_goes_on_at_another_home(start_world: Any, stream: bool) -> None:
    world = await start_world()
    ids = world.tokenizer.encode(FIRST)
    dying = await world.add_worker("decode-0", answers(ids, until=4, cached=3))
    asked = await ask(world, stream=stream)
    other = await world.add_worker("decode-1", answers(ids, cached=9))
    await dying.go_deaf()
    response = await asked
    if stream:
        assert texts(response) == [FIRST]
    else:
        answer = response.json()
        assert answer["choices"][0]["message"]["content"] == FIRST
        assert answer["usage"]["completion_tokens"] == len(ids)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
    (call,) = other.calls
    first, again = dying.calls[0].request, call.request
    assert list(again.resumed) == [pb.Resumed(choice=0, token_ids=ids[:4])]
    assert (again.prompt_ids, again.sampling) == (first.prompt_ids, first.sampling)
    assert 0 < again.time_left_s < first.time_left_s
    assert response.headers["x-triptych-decision"].startswith("decode=decode-0; prefill=none")
    assert world.metric("triptych_router_continuations_total", reason="gone") == 1
    assert world.metric("triptych_router_continuation_gap_seconds_count") == 1


async def test_choices_go_on_where_each_of_them_was(start_world: Any) -> None:
    world = await start_world()
    one, two = world.tokenizer.encode(FIRST), world.tokenizer.encode(SECOND)[:4]
    dying = await world.add_worker("decode-0", answers(one, two, until=5))
    asked = await ask(world, stream=True, n=2, logprobs=True)
    await world.counted("triptych_choices_total", route=CHAT, finish_reason="length")
    other = await world.add_worker("decode-1", answers(one, two))
    await dying.go_deaf()
    assert texts(await asked, 2) == [FIRST, world.tokenizer.decode(two)]
    assert list(other.calls[0].request.resumed) == [
        pb.Resumed(choice=0, token_ids=one[:5]),
        pb.Resumed(choice=1, done=True),
    ]


async def test_a_stream_waits_for_its_only_home_to_come_back(start_world: Any) -> None:
    world = await start_world()
    ids = world.tokenizer.encode(FIRST)
    dying = await world.add_worker("decode-0", answers(ids, until=4))
    asked = await ask(world, stream=True)
    await dying.leave()
    await world.directory.wait_for(lambda views: not views, 5)
    await world.add_worker("decode-0", answers(ids), epoch=2)
    assert texts(await asked) == [FIRST]


async def test_a_request_that_waits_for_its_first_token_waits_for_its_home_too(
    start_world: Any,
) -> None:
    world = await start_world()
    ids = world.tokenizer.encode(FIRST)
    dying = await world.add_worker("decode-0", answers(ids, until=0))
    asked = asyncio.create_task(world.client.post(CHAT, json={**QUESTION, "stream": True}))
    await dying.next_call()
    await dying.leave()
    await world.directory.wait_for(lambda views: not views, 5)
    await world.add_worker("decode-0", answers(ids), epoch=2)
    assert texts(await asked) == [FIRST]


async def test_a_stream_survives_as_many_homes_as_let_it_grow(start_world: Any) -> None:
    world = await start_world(max_lost_homes=1)
    ids = world.tokenizer.encode(FIRST)
    homes = [await world.add_worker("decode-0", answers(ids, until=2))]
    asked = await ask(world, stream=True)
    for number in range(1, 5):
        until = 2 + 2 * number if number < 4 else None
        homes.append(await world.add_worker(f"decode-{number}", answers(ids, until=until)))
        await homes[-2].leave()
        await homes[-1].next_call()
        assert len(homes[-1].calls[0].request.resumed[0].token_ids) == 2 * number
        await world.counted("triptych_completion_tokens_total", at_least=until or 1)
    assert texts(await asked) == [FIRST]


async def test_a_request_that_kills_its_homes_does_not_kill_them_all(start_world: Any) -> None:
    world = await start_world(max_lost_homes=2)
    ids = world.tokenizer.encode(FIRST)
    poisoned = answers(ids, until=0, then=grpc.StatusCode.UNAVAILABLE)
    homes = [await world.add_worker(f"decode-{number}", poisoned) for number in range(5)]
    response = await world.client.post(CHAT, json=QUESTION)
    assert response.status_code == 502
    assert sum(len(home.calls) for home in homes) == 3


async def test_a_home_that_drains_hands_its_stream_over(start_world: Any) -> None:
    world = await start_world()
    ids = world.tokenizer.encode(FIRST)
    leaving = await world.add_worker("decode-0", answers(ids, until=4))
    asked = await ask(world, stream=True)
    await world.add_worker("decode-1", answers(ids))
    leaving.hand_over()
    assert texts(await asked) == [FIRST]
    assert world.metric("triptych_router_continuations_total", reason="moved") == 1


async def test_a_home_that_stops_reporting_is_given_up(start_world: Any) -> None:
    world = await start_world()
    ids = world.tokenizer.encode(FIRST)
    hanging = await world.add_worker("decode-0", answers(ids, until=4))
    asked = await ask(world, stream=True)
    await world.add_worker("decode-1", answers(ids))
    await hanging.fall_silent()
    assert texts(await asked) == [FIRST]
    assert world.metric("triptych_router_continuations_total", reason="silent") == 1
    await hanging.calls[0].cancelled.wait()


async def test_a_home_whose_engine_stands_still_is_given_up_and_gets_nothing_new(
    start_world: Any,
) -> None:
    world = await start_world(step_limit_s=10)
    ids = world.tokenizer.encode(FIRST)
    hanging = await world.add_worker("decode-0", answers(ids, until=4))
    asked = await ask(world, stream=True)
    await world.add_worker("decode-1", answers(ids))
    hanging.load.step_s = 11
    assert texts(await asked) == [FIRST]
    assert world.metric("triptych_router_continuations_total", reason="stalled") == 1
    for _ in range(4):
        response = await world.client.post(CHAT, json=QUESTION)
        assert response.headers["x-triptych-decision"].startswith("decode=decode-1; prefill=none")


async def test_an_answer_that_only_lacks_its_stats_is_whole(start_world: Any) -> None:
    world = await start_world()
    ids = world.tokenizer.encode(FIRST)
    home = await world.add_worker("decode-0", answers(ids, ids + ids[:1], until=len(ids), cached=2))

    def no_more(request: pb.GenerateRequest) -> Iterable[Step]:
        yield from list(answers(ids, cached=2)(request))[:-1]
        yield grpc.StatusCode.UNAVAILABLE

    home.script = no_more
    response = await world.client.post(CHAT, json=QUESTION, headers={"X-Triptych-Timings": "1"})
    answer = response.json()
    assert answer["choices"][0]["message"]["content"] == FIRST
    assert answer["usage"]["completion_tokens"] == len(ids)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 2
    assert answer["triptych"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert len(home.calls) == 1

"""What a home tells, until the request's reader takes it."""

from __future__ import annotations

import asyncio

import pytest

from router.inbox import Inbox
from transport.protos import worker_pb2 as pb
from triptych.errors import WorkerError
from triptych.request import FinishReason, TokenDelta

END = TokenDelta("r", 0, (9,), finish_reason=FinishReason.STOP)


def inbox(holds: list[bool] | None = None) -> Inbox:
    return Inbox("r", ([] if holds is None else holds).append)


async def waiting(box: Inbox) -> asyncio.Task[list[TokenDelta | pb.RequestStats]]:
    """A reader that has nothing to take yet."""
    reader = asyncio.create_task(box.take())
    await asyncio.sleep(0)
    return reader


async def test_bare_tokens_that_have_gathered_come_as_one_delta() -> None:
    box = inbox()
    for token_id in (5, 6):
        box.put_token(token_id)
    box.put(END)
    assert await box.take() == [TokenDelta("r", 0, (5, 6)), END]


async def test_a_reader_gets_a_token_as_soon_as_it_comes() -> None:
    box = inbox()
    reader = await waiting(box)
    box.put_token(5)
    assert await reader == [TokenDelta("r", 0, (5,))]


async def test_an_error_waits_for_its_turn() -> None:
    box = inbox()
    box.put_token(5)
    box.fail(WorkerError("died"))
    assert box.ended
    assert await box.take() == [TokenDelta("r", 0, (5,))]
    with pytest.raises(WorkerError, match="died"):
        await box.take()


async def test_nothing_fails_after_the_end() -> None:
    box, stats = inbox(), pb.RequestStats(completion_tokens=1)
    box.put(stats)
    box.fail(WorkerError("the connection broke"))
    assert await box.take() == [stats]


async def test_a_deadline_wakes_the_reader_and_is_no_word_of_the_home() -> None:
    box = inbox()
    reader = await waiting(box)
    box.give_up(TimeoutError())
    with pytest.raises(TimeoutError):
        await reader
    assert not box.ended  # so the home is still to be told


async def test_a_reader_that_takes_nothing_has_its_home_held() -> None:
    holds: list[bool] = []
    box = inbox(holds)
    for _ in range(5000):
        box.put_token(5)
    assert holds == [True]
    (delta,) = await box.take()
    assert isinstance(delta, TokenDelta) and len(delta.token_ids) == 5000
    assert holds == [True, False]


async def test_the_shortcut_takes_tokens_while_the_reader_waits_and_only_then() -> None:
    taken: list[int] = []
    box = inbox()
    box.shortcut = lambda token_id: token_id < 10 and not taken.append(token_id)
    box.put_token(1)  # nobody waits: what is being written now would be overtaken
    assert await box.take() == [TokenDelta("r", 0, (1,))]
    reader = await waiting(box)
    box.put_token(2)
    box.put_token(10)  # refused
    box.put_token(3)  # must not overtake 10
    assert await reader == [TokenDelta("r", 0, (10, 3))]
    assert taken == [2]


async def test_a_shortcut_that_fails_ends_this_request_only() -> None:
    def fails(token_id: int) -> bool:
        raise WorkerError("no such token")

    box = inbox()
    box.shortcut = fails
    reader = await waiting(box)
    box.put_token(1)  # raises nothing: the home's other requests are served here, too
    with pytest.raises(WorkerError, match="no such token"):
        await reader

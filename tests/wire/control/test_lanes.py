"""Many requests of one router on one call, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from transport.channel import connect
from transport.lanes import Answer, Lane, LaneServer
from transport.protos import worker_pb2 as pb
from transport.protos import worker_pb2_grpc
from triptych.errors import CapacityError
from triptych.wire import to_status

StartHome = Callable[[Answer], Awaitable[tuple[LaneServer, str]]]


class Router:
    """One open call, and what came on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        stub: Any = worker_pb2_grpc.DecodeWorkerStub(channel)
        self.call = stub.Generate()

    async def open(self, lane: int, request_id: str = "") -> None:
        request = pb.GenerateRequest(request_id=request_id)
        await self.call.write(pb.GenerateCall(lane=lane, open=request))

    async def cancel(self, lane: int) -> None:
        await self.call.write(pb.GenerateCall(lane=lane, cancel=True))

    async def hold(self, lane: int, wanted: bool) -> None:
        await self.call.write(pb.GenerateCall(lane=lane, hold=wanted))

    async def hear(self) -> pb.GenerateReplies | None:
        """The next message; None: the home ended the call."""
        async with asyncio.timeout(5):
            found = await self.call.read()
        return found if isinstance(found, pb.GenerateReplies) else None

    async def hear_end(self, lane: int) -> pb.GenerateReply:
        """Reads on until the lane's last word."""
        while heard := await self.hear():
            for reply in heard.others:
                if reply.lane == lane and reply.WhichOneof("event") != "delta":
                    return reply
        raise AssertionError("the call ended before the request did")


@pytest.fixture
def start_home(serve: Any, address: str) -> StartHome:
    async def start(answer: Answer) -> tuple[LaneServer, str]:
        lanes = LaneServer(answer, to_status)

        class Home(worker_pb2_grpc.DecodeWorkerServicer):
            async def Generate(self, calls: Any, context: Any) -> AsyncIterator[Any]:
                async with contextlib.aclosing(lanes.serve(calls)) as replies:
                    async for batch in replies:
                        yield batch

        server = await serve(
            address,
            lambda server: worker_pb2_grpc.add_DecodeWorkerServicer_to_server(Home(), server),
        )
        return lanes, server.address

    return start


async def test_what_is_said_to_many_requests_at_once_is_one_message(start_home: StartHome) -> None:
    step, opened = asyncio.Event(), asyncio.Semaphore(0)

    async def answer(request: pb.GenerateRequest, lane: Lane) -> pb.RequestStats:
        opened.release()
        await step.wait()
        lane.token(lane.number * 10)
        return pb.RequestStats(completion_tokens=1)

    _, target = await start_home(answer)
    async with connect(target) as channel:
        router = Router(channel)
        for lane in range(1, 9):
            await router.open(lane)
            await opened.acquire()
        step.set()
        heard = await router.hear()
        assert heard is not None
        assert list(heard.lanes) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert list(heard.token_ids) == [10, 20, 30, 40, 50, 60, 70, 80]
        assert (await router.hear_end(8)).stats.completion_tokens == 1


async def test_an_error_ends_its_own_request_and_no_other(start_home: StartHome) -> None:
    failed = asyncio.Event()

    async def answer(request: pb.GenerateRequest, lane: Lane) -> pb.RequestStats:
        if request.request_id == "bad":
            failed.set()
            raise CapacityError("full")
        await failed.wait()
        return pb.RequestStats()

    _, target = await start_home(answer)
    async with connect(target) as channel:
        router = Router(channel)
        await router.open(1, "good")
        await router.open(2, "bad")
        ends = {}
        while len(ends) < 2:
            heard = await router.hear()
            assert heard is not None
            ends |= {reply.lane: reply for reply in heard.others}
        assert ends[1].HasField("stats")
        assert ends[2].error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert "full" in ends[2].error.details


async def test_a_cancelled_request_leaves_the_others_alone(start_home: StartHome) -> None:
    cancelled, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: pb.GenerateRequest, lane: Lane) -> pb.RequestStats:
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return pb.RequestStats()

    _, target = await start_home(answer)
    async with connect(target) as channel:
        router = Router(channel)
        await router.open(1)
        await router.open(2)
        await router.cancel(1)
        await asyncio.wait_for(cancelled.wait(), 5)
        go_on.set()
        assert (await router.hear_end(2)).HasField("stats")


async def test_a_router_that_goes_away_ends_its_requests_and_no_others(
    start_home: StartHome,
) -> None:
    open_now: set[str] = set()
    change, go_on = asyncio.Condition(), asyncio.Event()

    async def answer(request: pb.GenerateRequest, lane: Lane) -> pb.RequestStats:
        open_now.add(request.request_id)
        try:
            async with change:
                change.notify_all()
            await go_on.wait()
        finally:
            await asyncio.sleep(0)  # clean-up may take turns
            open_now.discard(request.request_id)
            async with change:
                change.notify_all()
        return pb.RequestStats()

    async def until_open(wanted: set[str]) -> None:
        async with asyncio.timeout(5), change:
            await change.wait_for(lambda: open_now == wanted)

    _, target = await start_home(answer)
    async with connect(target) as stays, connect(target) as goes:
        router, leaver = Router(stays), Router(goes)
        await router.open(1, "a")  # lanes of different routers may have the same number
        await leaver.open(1, "b")
        await leaver.open(2, "c")
        await until_open({"a", "b", "c"})
        leaver.call.cancel()
        await until_open({"a"})
        go_on.set()
        assert (await router.hear_end(1)).HasField("stats")


async def test_a_held_request_is_told_later_and_in_order(start_home: StartHome) -> None:
    held = asyncio.Event()

    async def answer(request: pb.GenerateRequest, lane: Lane) -> pb.RequestStats:
        if request.request_id == "other":
            return pb.RequestStats()
        while not lane.held:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for token_id in (7, 8, 9):
            lane.token(token_id)
        held.set()
        return pb.RequestStats(completion_tokens=3)

    _, target = await start_home(answer)
    async with connect(target) as channel:
        router = Router(channel)
        await router.open(1)
        await router.hold(1, True)
        await asyncio.wait_for(held.wait(), 5)
        await router.open(2, "other")
        first = await router.hear()
        assert first is not None
        assert [reply.lane for reply in first.others] == [2] and not first.lanes
        await router.hold(1, False)
        told = await router.hear()
        assert told is not None
        assert (list(told.lanes), list(told.token_ids)) == ([1, 1, 1], [7, 8, 9])
        assert told.others[0].stats.completion_tokens == 3


async def test_a_home_that_leaves_ends_each_call_with_its_last_request(
    start_home: StartHome,
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: pb.GenerateRequest, lane: Lane) -> pb.RequestStats:
        begun.set()
        await go_on.wait()
        return pb.RequestStats()

    home, target = await start_home(answer)
    async with connect(target) as busy, connect(target) as idle:
        router, other = Router(busy), Router(idle)
        await router.open(1)
        await asyncio.wait_for(begun.wait(), 5)
        await other.call.wait_for_connection()
        home.leave()
        assert await other.hear() is None
        await router.open(2)
        refused = await router.hear_end(2)
        assert refused.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        go_on.set()
        assert (await router.hear_end(1)).HasField("stats")
        assert await router.hear() is None


async def test_an_answer_that_is_cut_short_is_told(start_home: StartHome) -> None:
    async def answer(request: pb.GenerateRequest, lane: Lane) -> pb.RequestStats:
        raise asyncio.CancelledError

    _, target = await start_home(answer)
    async with connect(target) as channel:
        router = Router(channel)
        await router.open(1)
        ended = await router.hear_end(1)
        assert ended.error.code == grpc.StatusCode.CANCELLED.value[0]

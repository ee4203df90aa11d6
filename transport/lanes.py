"""The home's side of `Generate`: all requests of one router, each on a lane of one call.

Each request is answered by a task of its own. What it says is collected, and whenever gRPC is ready
for the next message, everything that was said since the last one goes out together: one message per
engine step, however many requests are running.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

import grpc

from transport.interceptor import ToStatus, explain_error
from transport.protos import worker_pb2 as pb

_MAX_OTHERS = 4096  # of one message; a router that was away for long gets several


class Lane:
    """One request's way back to its router: never blocks, never fails. For the event loop only.

    While the router holds the lane, what is said stays here.
    """

    def __init__(self, number: int, outbox: _Outbox) -> None:
        self.number = number
        self._outbox = outbox
        self._kept: list[int | pb.GenerateReply] = []
        self._going_on = asyncio.Event()
        self._going_on.set()

    @property
    def held(self) -> bool:
        return not self._going_on.is_set()

    def token(self, token_id: int) -> None:
        """Choice 0 went on by this token, and there is nothing else to tell about it."""
        self._say(token_id)

    def delta(self, message: pb.TokenDelta) -> None:
        self._say(pb.GenerateReply(lane=self.number, delta=message))

    def began(self, message: pb.RequestBegan) -> None:
        self._say(pb.GenerateReply(lane=self.number, began=message))

    def end(self, stats: pb.RequestStats) -> None:
        self._say(pb.GenerateReply(lane=self.number, stats=stats))

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        error = pb.RequestError(code=code.value[0], details=details)
        self._say(pb.GenerateReply(lane=self.number, error=error))

    def move(self) -> None:
        """Another home is to go on behind what was said here."""
        self._say(pb.GenerateReply(lane=self.number, moved=True))

    def hold(self, wanted: bool) -> None:
        """What the router asks for when its client does not read, and when it reads again."""
        if wanted:
            self._going_on.clear()
            return
        self._going_on.set()
        kept, self._kept = self._kept, []
        for item in kept:
            self._say(item)

    async def taken(self) -> None:
        """Waits until gRPC took all that was said: for who speaks faster than messages travel."""
        await self._going_on.wait()
        await self._outbox.empty.wait()

    def _say(self, item: int | pb.GenerateReply) -> None:
        if self._going_on.is_set():
            self._outbox.put(self.number, item)
        else:
            self._kept.append(item)


Answer = Callable[[pb.GenerateRequest, Lane], Coroutine[None, None, pb.RequestStats]]


class LaneServer:
    """Answers the calls of all routers. `answer` is a request's whole life.

    It says its deltas on the lane and returns the stats, which end the request; is cancelled when
    nobody listens any more; or raises, and the router is told what `to_status` makes of that.
    """

    def __init__(self, answer: Answer, to_status: ToStatus) -> None:
        self._answer = answer
        self._to_status = to_status
        self._calls: set[_RouterCall] = set()
        self._leaving = False

    def leave(self) -> None:
        """Refuses new requests from now on; each router's call ends with its last open one."""
        self._leaving = True
        for call in self._calls:
            call.leave()

    def hand_over(self) -> None:
        """Leaves, and ends what is still open: the routers place it elsewhere."""
        self.leave()
        for call in self._calls:
            call.hand_over()

    async def serve(
        self, calls: AsyncIterator[pb.GenerateCall]
    ) -> AsyncGenerator[pb.GenerateReplies, None]:
        """One router's call, from beginning to end. All its requests end with it."""
        call = _RouterCall(self._answer, self._to_status)
        if self._leaving:
            call.leave()
        self._calls.add(call)
        try:
            async with contextlib.aclosing(call.replies(calls)) as replies:
                async for batch in replies:
                    yield batch
        finally:
            self._calls.discard(call)


class _Outbox:
    """What was said on all lanes of one call and is not sent yet."""

    def __init__(self) -> None:
        self.news = asyncio.Event()  # there is something to send, or to think about
        self.empty = asyncio.Event()
        self._lanes: list[int] = []
        self._token_ids: list[int] = []
        self._others: list[pb.GenerateReply] = []

    def put(self, lane: int, item: int | pb.GenerateReply) -> None:
        # Tokens overtake what else was said: no token of choice 0 comes after its end, and the
        # deltas of a request with log-probabilities are never bare tokens.
        if isinstance(item, int):
            self._lanes.append(lane)
            self._token_ids.append(item)
        else:
            self._others.append(item)
        self.news.set()
        self.empty.clear()

    def take(self) -> pb.GenerateReplies | None:
        """The next message; None: all is sent."""
        if not self._lanes and not self._others:
            self.empty.set()
            return None
        lanes, self._lanes = self._lanes, []
        token_ids, self._token_ids = self._token_ids, []
        others, self._others = self._others[:_MAX_OTHERS], self._others[_MAX_OTHERS:]
        return pb.GenerateReplies(lanes=lanes, token_ids=token_ids, others=others)


class _RouterCall:
    """The call of one router."""

    def __init__(self, answer: Answer, to_status: ToStatus) -> None:
        self._answer = answer
        self._to_status = to_status
        self._outbox = _Outbox()
        self._lanes: dict[int, Lane] = {}  # the router listens, and there may be more to tell
        self._answers: dict[Lane, asyncio.Task[pb.RequestStats]] = {}
        self._leaving = False
        self._moving: set[Lane] = set()

    def leave(self) -> None:
        self._leaving = True
        self._outbox.news.set()

    def hand_over(self) -> None:
        for number, lane in list(self._lanes.items()):
            lane.hold(False)  # the next home would only draw again what is kept here
            if lane in self._answers:
                self._moving.add(lane)
                self._answers[lane].cancel()
            else:
                self._lanes.pop(number)

    async def replies(
        self, calls: AsyncIterator[pb.GenerateCall]
    ) -> AsyncGenerator[pb.GenerateReplies, None]:
        reading = asyncio.create_task(self._read(calls))
        reading.add_done_callback(lambda _: self._outbox.news.set())
        try:
            while not reading.done() and not (self._leaving and not self._lanes):
                await self._outbox.news.wait()
                self._outbox.news.clear()
                while batch := self._outbox.take():
                    yield batch
            if reading.done() and not reading.cancelled():
                reading.result()
        finally:
            # A task of its own: a second cancellation must not cut the clean-up short.
            await asyncio.shield(asyncio.create_task(self._close(reading)))

    async def _read(self, calls: AsyncIterator[pb.GenerateCall]) -> None:
        async for call in calls:
            match call.WhichOneof("verb"):
                case "open":
                    self._open(call.lane, call.open)
                case "cancel":
                    lane = self._lanes.pop(call.lane, None)
                    if lane in self._answers:
                        self._answers[lane].cancel()
                case "hold":
                    self._hold(call.lane, call.hold)

    def _open(self, number: int, request: pb.GenerateRequest) -> None:
        lane = Lane(number, self._outbox)
        if self._leaving:
            lane.fail(grpc.StatusCode.UNAVAILABLE, "the worker is leaving")
            return
        self._lanes[number] = lane
        self._answers[lane] = asyncio.create_task(self._answer(request, lane))
        self._answers[lane].add_done_callback(partial(self._ended, lane))

    def _hold(self, number: int, wanted: bool) -> None:
        lane = self._lanes.get(number)
        if lane is not None:
            lane.hold(wanted)
            self._forget_if_done(lane)

    def _ended(self, lane: Lane, answer: asyncio.Task[pb.RequestStats]) -> None:
        del self._answers[lane]
        if answer.cancelled():
            if lane in self._moving:
                self._moving.discard(lane)
                lane.move()
            elif lane.number in self._lanes:  # the router did not ask for that
                lane.fail(grpc.StatusCode.CANCELLED, "the request was cut short")
        elif error := answer.exception():
            lane.fail(*explain_error(error, self._to_status, "Generate"))
        else:
            lane.end(answer.result())
        self._forget_if_done(lane)

    def _forget_if_done(self, lane: Lane) -> None:
        if lane not in self._answers and not lane.held:
            self._lanes.pop(lane.number, None)
            self._outbox.news.set()

    async def _close(self, reading: asyncio.Task[None]) -> None:
        """The one clean-up of a router's requests: nobody listens to them any more."""
        self._lanes.clear()
        tasks: list[asyncio.Task[Any]] = [reading, *self._answers.values()]
        for task in tasks:
            if not task.cancelling():  # else it cleans up already
                task.cancel()
        await asyncio.wait(tasks)

"""The router's side of `Generate`: one call to a home carries all requests that it has there.

One message of the home tells what a step did for all of them; it is handed out to their inboxes in
one go, and each request takes what its inbox holds when it gets its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import logging
from collections.abc import Iterator
from contextvars import Context
from typing import Any

import grpc

from router.errors import DeadlineError
from router.inbox import Inbox
from router.progress import Progress
from transport.protos import worker_pb2 as pb
from transport.protos import worker_pb2_grpc
from triptych.errors import TriptychError, WorkerError
from triptych.wire import from_status, token_delta

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # gone, or going

_log = logging.getLogger(__name__)


class Loss(enum.StrEnum):
    """How a home was lost."""

    GONE = "gone"  # the call to it broke
    MOVED = "moved"  # it leaves, and hands over what it cannot finish
    SILENT = "silent"  # it stopped reporting
    STALLED = "stalled"  # it reports, and its engine stands still


class HomeLost(Exception):
    """The home went away. Whether it had begun with the request is unknown."""

    def __init__(self, reason: TriptychError, kind: Loss = Loss.GONE) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.kind = kind


class HomeLink:
    """One open call to one home. Once `broken` it never works again; open another."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        stub: Any = worker_pb2_grpc.DecodeWorkerStub(channel)
        self._rpc: Any = stub.Generate()
        self._numbers = itertools.count(1)
        self._inboxes: dict[int, Inbox] = {}
        self._unsaid: asyncio.Queue[pb.GenerateCall] = asyncio.Queue()
        self.broken = False
        # They work for all requests: their log lines bear no request's id.
        self._listening = asyncio.create_task(self._listen(), context=Context())
        self._speaking = asyncio.create_task(self._speak(), context=Context())

    @contextlib.contextmanager
    def open(self, request: pb.GenerateRequest, progress: Progress) -> Iterator[Inbox]:
        """Asks the home; leaving the block before the end cancels the request there. `progress`
        grows with what the home tells.
        """
        lane = next(self._numbers)

        def hold(wanted: bool) -> None:
            self._unsaid.put_nowait(pb.GenerateCall(lane=lane, hold=wanted))

        inbox = self._inboxes[lane] = Inbox(request.request_id, hold, progress)
        self._unsaid.put_nowait(pb.GenerateCall(lane=lane, open=request))
        try:
            yield inbox
        finally:
            del self._inboxes[lane]
            if not inbox.ended:
                self._unsaid.put_nowait(pb.GenerateCall(lane=lane, cancel=True))

    def give_up(self, error: HomeLost) -> None:
        """The home does not answer any more: its requests hear why, and nothing that it may say
        later.
        """
        self._break(error)
        self._rpc.cancel()

    async def close(self) -> None:
        """Ends the call and with it all requests that are open on it."""
        self._break(WorkerError("the router closed its connection to the worker"))
        self._rpc.cancel()
        for task in (self._listening, self._speaking):
            task.cancel()
        await asyncio.gather(self._listening, self._speaking, return_exceptions=True)

    # ---- from the home -------------------------------------------------------------------------

    async def _listen(self) -> None:
        try:
            while isinstance(replies := await self._rpc.read(), pb.GenerateReplies):
                self._hand_out(replies)
            self._break(_as_error(grpc.StatusCode.UNAVAILABLE, "it ended the call"))
        except grpc.aio.AioRpcError as error:
            self._break(_as_error(error.code(), error.details() or ""))
        except Exception as error:
            _log.exception("a home's message made no sense")
            self._break(WorkerError(f"the worker sent what makes no sense: {error!r}"))
        finally:  # gRPC cancels us, too, when the channel is closed under the call
            self._break(WorkerError("the router closed its connection to the worker"))
            self._speaking.cancel()

    def _hand_out(self, replies: pb.GenerateReplies) -> None:
        inboxes = self._inboxes
        for lane, token_id in zip(replies.lanes, replies.token_ids, strict=True):
            inbox = inboxes.get(lane)
            if inbox is not None:  # else nobody waits for it any more
                inbox.put_token(token_id)
        for reply in replies.others:
            inbox = inboxes.get(reply.lane)
            if inbox is not None:
                _put(inbox, reply)

    def _break(self, error: Exception) -> None:
        """Only the first error counts."""
        self.broken = True
        for inbox in self._inboxes.values():
            inbox.fail(error)

    # ---- to the home ---------------------------------------------------------------------------

    async def _speak(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:  # until the call breaks; `_listen` hears why
                await self._rpc.write(await self._unsaid.get())


def _put(inbox: Inbox, reply: pb.GenerateReply) -> None:
    match reply.WhichOneof("event"):
        case "delta":
            inbox.put(token_delta(inbox.request_id, reply.delta))
        case "stats":
            inbox.put(reply.stats)
        case "began":
            inbox.progress.add_cached(reply.began.cached_tokens)
        case "moved":
            leaving = WorkerError("the worker is leaving and could not finish the request")
            inbox.fail(HomeLost(leaving, Loss.MOVED))
        case "error":
            code = _CODES.get(reply.error.code, grpc.StatusCode.UNKNOWN)
            inbox.fail(_as_error(code, reply.error.details))


def _as_error(code: grpc.StatusCode, details: str) -> Exception:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError("the request did not finish before its deadline")
    error = from_status(code, details)
    return HomeLost(error) if code in _LOST else error

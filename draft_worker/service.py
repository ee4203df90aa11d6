"""The draft worker's gRPC face: one call per decode worker and drafter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from functools import partial

import grpc

from draft_worker.contexts import Client
from draft_worker.loop import DraftLoop
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import DraftWorkerServicer
from triptych.engine.thread import StepThread
from triptych.errors import ConfigError

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[pb.DraftCall, pb.DraftReplies]
_Outbox = asyncio.Queue[pb.DraftReplies | None]  # None: the call is over


class DraftService(DraftWorkerServicer):
    """`drafters`: hash of the configuration by name, the default first."""

    def __init__(
        self, drafters: Mapping[str, str], target: str, loop: DraftLoop, thread: StepThread
    ) -> None:
        self._drafters = drafters
        self._target = target
        self._loop = loop
        self._thread = thread
        self._open: set[_Outbox] = set()

    def leave(self) -> None:
        """Ends every call: decode workers go elsewhere, or wait until somebody is back."""
        for outbox in self._open:
            outbox.put_nowait(None)

    async def Draft(
        self, calls: AsyncIterator[pb.DraftCall], context: Context
    ) -> AsyncIterator[pb.DraftReplies]:
        hello = (await anext(calls, pb.DraftCall())).hello
        yield pb.DraftReplies(welcome=self._welcome(hello))
        outbox = _Outbox()
        event_loop = asyncio.get_running_loop()
        client = Client(
            worker_id=hello.worker_id,
            drafter=hello.drafter or next(iter(self._drafters)),
            reply=lambda replies: _post(event_loop, outbox, replies),
        )
        reading = asyncio.create_task(self._read(calls, client, outbox))
        self._open.add(outbox)
        try:
            while (replies := await outbox.get()) is not None:
                yield replies
        finally:
            self._open.discard(outbox)
            reading.cancel()
            self._thread.post(partial(self._loop.close, client))

    def _welcome(self, hello: pb.DraftHello) -> pb.DraftWelcome:
        """Raises ConfigError for a decode worker whose drafts would be worth nothing."""
        drafter = hello.drafter or next(iter(self._drafters))
        if hello.target != self._target:
            problem = f"drafts are for {self._target}, not for {hello.target}"
        elif drafter not in self._drafters:
            problem = f"no drafter {drafter!r} here; there are {', '.join(self._drafters)}"
        else:
            log.info("drafting for %s", hello.worker_id, extra={"fields": {"drafter": drafter}})
            return pb.DraftWelcome(
                drafter=drafter, config_hash=self._drafters[drafter], target=self._target
            )
        log.error("%s is refused: %s", hello.worker_id or "a caller", problem)
        raise ConfigError(problem)

    async def _read(
        self, calls: AsyncIterator[pb.DraftCall], client: Client, outbox: _Outbox
    ) -> None:
        try:
            async for call in calls:
                self._thread.post(partial(self._loop.take, client, call))
        finally:
            outbox.put_nowait(None)


def _post(event_loop: asyncio.AbstractEventLoop, outbox: _Outbox, replies: pb.DraftReplies) -> None:
    event_loop.call_soon_threadsafe(outbox.put_nowait, replies)

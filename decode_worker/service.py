"""The decode worker's gRPC face: one call per request. Cancelling the call ends the request
everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from functools import partial

import grpc

from decode_worker.intake import Intake
from decode_worker.loop import DecodeLoop, StepOutput
from decode_worker.request import HomeRequest, open_request
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import DecodeWorkerServicer
from triptych.engine.sequence import Sequence
from triptych.obs.log import bind_request
from triptych.obs.metrics import WorkerMetrics
from triptych.tokenizer import Tokenizer
from triptych.wire import delta_message
from triptych.worker.boot import EngineParts
from triptych.worker.check import check_prompt

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateReply]


class DecodeService(DecodeWorkerServicer):
    def __init__(self, parts: EngineParts, tokenizer: Tokenizer, metrics: WorkerMetrics) -> None:
        self._parts = parts
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._event_loop = asyncio.get_running_loop()
        self._homes: dict[Sequence, HomeRequest] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.room = asyncio.Event()
        self._intake: Intake | None = None

    def connect(self, intake: Intake) -> None:
        """Once, before the server starts."""
        self._intake = intake

    @property
    def num_open(self) -> int:
        """Sequences that are not finished, wherever they are."""
        return len(self._homes)

    def emit(self, outputs: list[StepOutput]) -> None:
        """From the loop's thread: one wake-up of the event loop per step."""
        self._event_loop.call_soon_threadsafe(self._deliver, outputs)

    def _deliver(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            home = self._homes.get(output.sequence)
            if home is None:  # the call ended meanwhile
                continue
            home.outputs.put_nowait(output)
            if output.delta.finish_reason is not None:
                del self._homes[output.sequence]
                self.room.set()

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateReply]:
        parts = self._parts
        check_prompt(request.prompt_ids, parts.model.config.vocab_size, parts.max_model_len)
        assert self._intake is not None, "connect() comes first"
        home = open_request(
            request,
            root=parts.root(request.cache_salt),
            block_tokens=parts.layout.block_tokens,
            tokenizer=self._tokenizer,
            time_left_s=context.time_remaining(),
        )
        self._homes.update(dict.fromkeys(home.sequences, home))
        outcome = "cancelled"
        with bind_request(request.request_id):
            admission = asyncio.create_task(self._intake.admit(home))
            try:
                async for output in _follow(home, admission):
                    yield pb.GenerateReply(delta=delta_message(output.delta))
                yield pb.GenerateReply(stats=home.stats())
                outcome = "finished"
            finally:
                self._metrics.requests.labels(outcome).inc()
                log.info(outcome, extra={"fields": home.summary()})
                # A task of its own: a second cancellation must not cut the clean-up short.
                closing = asyncio.create_task(self._close(home, admission))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
                await asyncio.shield(closing)

    async def _close(self, home: HomeRequest, admission: asyncio.Task[None]) -> None:
        """The one clean-up of a request: fence its fetches, then give back its blocks."""
        admission.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await admission
        assert self._intake is not None
        loop, thread = self._intake.loop, self._intake.thread
        for sequence in home.sequences:
            if self._homes.pop(sequence, None) is not None:
                thread.post(partial(self._drop, loop, sequence))

    def _drop(self, loop: DecodeLoop, sequence: Sequence) -> None:
        loop.cancel(sequence)
        self._event_loop.call_soon_threadsafe(self.room.set)


async def _follow(home: HomeRequest, admission: asyncio.Task[None]) -> AsyncIterator[StepOutput]:
    """Outputs of all choices until the last one finished; an admission's error is raised."""
    open_choices = len(home.sequences)
    while open_choices:
        getting = asyncio.ensure_future(home.outputs.get())
        try:
            if not admission.done():
                await asyncio.wait({getting, admission}, return_when=asyncio.FIRST_COMPLETED)
                if admission.done():
                    admission.result()
            output = await getting
        finally:
            getting.cancel()
        home.note_output(output)
        open_choices -= output.delta.finish_reason is not None
        yield output


def worker_load(parts: EngineParts, service: DecodeService) -> pb.WorkerLoad:
    """What routers place by: sequences at this home, those still without KV among them."""
    running = parts.scheduler.num_running
    return pb.WorkerLoad(
        running=running,
        waiting=max(0, service.num_open - running),
        queued_tokens=parts.scheduler.queued_tokens,
        free_blocks=parts.pool.available,
    )

"""The decode worker's gRPC face: one call per router, one task per request. Whatever ends the call
ends its requests, everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from functools import partial

import grpc

from decode_worker.intake import Intake
from decode_worker.loop import StepOutput
from decode_worker.request import HomeRequest, open_request
from decode_worker.tracing import request_span
from transport.lanes import Lane, LaneServer
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import DecodeWorkerServicer
from triptych.engine.sequence import Sequence
from triptych.errors import WorkerError
from triptych.grammar.cache import GrammarCache
from triptych.obs.log import bind_request
from triptych.obs.metrics import WorkerMetrics
from triptych.tokenizer import Tokenizer
from triptych.wire import grammar_of, to_status
from triptych.worker.boot import EngineParts
from triptych.worker.check import (
    check_prompt,
    check_resumed,
    check_sampling,
    check_sparse,
    check_speculation,
)

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[pb.GenerateCall, pb.GenerateReplies]


class DecodeService(DecodeWorkerServicer):
    def __init__(
        self,
        parts: EngineParts,
        tokenizer: Tokenizer,
        metrics: WorkerMetrics,
        drafters: tuple[str, ...],
        grammars: GrammarCache,
    ) -> None:
        self._parts = parts
        self._drafters = drafters
        self._tokenizer = tokenizer
        self._grammars = grammars
        self._metrics = metrics
        self._event_loop = asyncio.get_running_loop()
        self._lanes = LaneServer(self._answer, to_status)
        self._homes: dict[Sequence, HomeRequest] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._intake: Intake | None = None

    def connect(self, intake: Intake) -> None:
        """Once, before the server starts."""
        self._intake = intake

    def leave(self) -> None:
        """Refuses new requests from now on; the routers' calls end with their last open ones."""
        self._lanes.leave()

    def hand_over(self) -> None:
        """What is still open goes on elsewhere."""
        self._lanes.hand_over()

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
            if home is None:  # nobody listens any more
                continue
            home.tell(output)
            if output.finish_reason is not None:
                del self._homes[output.sequence]

    async def Generate(
        self, calls: AsyncIterator[pb.GenerateCall], context: Context
    ) -> AsyncIterator[pb.GenerateReplies]:
        async with contextlib.aclosing(self._lanes.serve(calls)) as replies:
            async for batch in replies:
                yield batch

    async def _answer(self, request: pb.GenerateRequest, lane: Lane) -> pb.RequestStats:
        """One request, from its arrival until all its choices have ended."""
        outcome = "rejected"
        with (
            bind_request(request.request_id),
            request_span(request, self._parts.experts) as tell,
        ):
            try:
                home = await self._open(request, lane)
                outcome = "cancelled"
                await self._run(home)
                outcome = "finished"
                stats = home.stats()
                tell(home, stats)
                return stats
            except Exception:
                outcome = "rejected" if outcome == "rejected" else "failed"
                raise
            finally:
                self._metrics.requests.labels(outcome).inc()

    async def _open(self, request: pb.GenerateRequest, lane: Lane) -> HomeRequest:
        """Raises RequestError for what this worker can never serve."""
        parts = self._parts
        vocab_size = parts.model.config.vocab_size
        check_prompt(request.prompt_ids, vocab_size, parts.max_model_len)
        check_resumed(request, vocab_size, parts.max_model_len)
        check_sampling(request.sampling, vocab_size)
        check_speculation(request.speculation, self._drafters)
        check_sparse(request, parts.backend.kernels, parts.model.config)
        asked = grammar_of(request.sampling)
        grammar = None if asked is None else await self._grammars.get(asked)
        return open_request(
            request,
            lane,
            root=parts.root(request.cache_salt),
            block_tokens=parts.layout.block_tokens,
            tokenizer=self._tokenizer,
            grammar=grammar,
        )

    async def _run(self, home: HomeRequest) -> None:
        assert self._intake is not None, "connect() comes first"
        self._homes.update(dict.fromkeys(home.sequences, home))
        admission = asyncio.create_task(self._intake.admit(home))
        try:
            await asyncio.wait({admission})
            _check_admitted(admission)
            await home.run_out()
        finally:
            log.info("request ended", extra={"fields": home.summary()})
            for sequence in home.sequences:
                self._metrics.count_tiles(sequence.tiles)
            # A task of its own: a second cancellation must not cut the clean-up short.
            closing = asyncio.create_task(self._close(home, admission))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.shield(closing)

    async def _close(self, home: HomeRequest, admission: asyncio.Task[None]) -> None:
        """The one clean-up of a request: fence its fetches, then give back its blocks."""
        admission.cancel()
        await asyncio.wait({admission})  # whatever became of it, the blocks go back
        assert self._intake is not None
        loop, thread = self._intake.loop, self._intake.thread
        for sequence in home.sequences:
            if self._homes.pop(sequence, None) is not None:
                thread.post(partial(loop.cancel, sequence))


def _check_admitted(admission: asyncio.Task[None]) -> None:
    """Raises what the admission raised. Nobody asked for a cancellation of this request."""
    if admission.cancelled():
        raise WorkerError("the request's admission was cut short")
    admission.result()


def worker_load(parts: EngineParts, service: DecodeService) -> pb.WorkerLoad:
    """What routers place by: sequences at this home, those still without KV among them."""
    running = parts.scheduler.num_running
    return pb.WorkerLoad(
        running=running,
        waiting=max(0, service.num_open - running),
        queued_tokens=parts.scheduler.queued_tokens,
        free_blocks=parts.pool.available,
    )

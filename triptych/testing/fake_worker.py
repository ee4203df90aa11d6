"""A decode worker without an engine: it answers Generate with what a test wrote down.

    worker = FakeWorker("decode-0", model="tiny", script=says([5, 6, 7]))
    async with worker.attached(registry="unix:/run/router.sock", listen="127.0.0.1:0"):
        ...
        call = await worker.next_call()
        await call.cancelled.wait()

It is a real gRPC server on a real socket and a real member of the directory; only the tokens are
made up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import grpc

from transport.channel import RunningServer, start_server
from transport.lanes import Lane, LaneServer
from transport.protos import worker_pb2 as pb
from transport.protos import worker_pb2_grpc
from transport.registry import stay_attached
from triptych.errors import WorkerError
from triptych.request import FinishReason, TokenDelta, TokenLogprobs
from triptych.wire import delta_message, to_status

# A message is sent, an event is waited for, an error is raised, a status ends the call.
Step = (
    TokenDelta | pb.RequestStats | pb.RequestBegan | asyncio.Event | BaseException | grpc.StatusCode
)
Script = Callable[[pb.GenerateRequest], Iterable[Step]]


@dataclass(slots=True)
class HeardCall:
    """One request as the worker saw it."""

    request: pb.GenerateRequest
    sent: int = 0  # steps of the script that gRPC took; flow control may still hold the last
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # however it did

    @property
    def deadline_s(self) -> float:
        """What was left of it when the call came."""
        return self.request.time_left_s


class FakeWorker(worker_pb2_grpc.DecodeWorkerServicer):
    """Plays `script` for every call; both may be exchanged at any time between calls."""

    def __init__(
        self,
        worker_id: str,
        *,
        model: str,
        script: Script,
        role: str = "decode",
        max_model_len: int = 256,
        epoch: int = 1,
        kv_identity: str = "",
    ) -> None:
        self.script = script
        self.calls: list[HeardCall] = []
        self.load = pb.WorkerLoad(free_blocks=16)
        self.hello = pb.WorkerHello(
            worker_id=worker_id,
            epoch=epoch,
            role=role,
            model=model,
            max_model_len=max_model_len,
            block_tokens=16,
            num_blocks=16,
            kv_identity=kv_identity,
        )
        self._lanes = LaneServer(self._play, _to_status)
        self._heard: asyncio.Queue[HeardCall] = asyncio.Queue()
        self._server: RunningServer | None = None
        self._membership: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def attached(self, *, registry: str, listen: str) -> AsyncIterator[None]:
        """Serves at `listen` and stays attached to the directory at `registry`."""

        def register(server: grpc.aio.Server) -> None:
            worker_pb2_grpc.add_DecodeWorkerServicer_to_server(self, server)

        self._server = await start_server(listen, [register], ["triptych.DecodeWorker"], to_status)
        self.hello.address = self._server.address
        self._membership = asyncio.create_task(
            stay_attached(registry, self.hello, lambda: self.load)
        )
        try:
            yield
        finally:
            await self.leave()

    async def leave(self) -> None:
        """Detaches and stops serving; idempotent."""
        await self.fall_silent()
        await self.go_deaf()

    async def fall_silent(self) -> None:
        """Detaches; its calls stay open."""
        assert self._membership is not None, "not attached"
        self._membership.cancel()
        await asyncio.wait({self._membership})

    def hand_over(self) -> None:
        """Ends what is open, for others to go on with."""
        self._lanes.hand_over()

    async def next_call(self) -> HeardCall:
        """The oldest call that was not asked for yet; waits for one."""
        return await self._heard.get()

    async def go_deaf(self) -> None:
        """Stops answering, as a dead process does, before the directory has noticed."""
        assert self._server is not None, "not attached"
        await self._server.stop(0.0)

    async def Generate(
        self,
        calls: AsyncIterator[pb.GenerateCall],
        context: grpc.aio.ServicerContext[pb.GenerateCall, pb.GenerateReplies],
    ) -> AsyncIterator[pb.GenerateReplies]:
        async with contextlib.aclosing(self._lanes.serve(calls)) as replies:
            async for batch in replies:
                yield batch

    async def _play(self, request: pb.GenerateRequest, lane: Lane) -> pb.RequestStats:
        call = HeardCall(request)
        self.calls.append(call)
        self._heard.put_nowait(call)
        told: pb.RequestStats | None = None
        try:
            for step in self.script(request):
                match step:
                    case asyncio.Event():
                        await step.wait()
                        call.sent += 1
                        continue  # nothing was said that could be taken
                    case BaseException():
                        raise step
                    case grpc.StatusCode():
                        raise _ScriptedStatus(step)
                    case pb.RequestBegan():
                        lane.began(step)
                    case TokenDelta():
                        _tell(lane, step)
                        await lane.taken()
                    case pb.RequestStats():
                        told = step
                call.sent += 1
            if told is None:
                raise WorkerError("the script says nothing more, and it gave no stats")
            return told
        except asyncio.CancelledError:
            call.cancelled.set()
            raise
        finally:
            call.ended.set()


class _ScriptedStatus(Exception):
    """A step of the script that ends its call like this."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(code)
        self.code = code


def _to_status(error: BaseException) -> tuple[grpc.StatusCode, str] | None:
    if isinstance(error, _ScriptedStatus):
        return error.code, "as the script says"
    return to_status(error)


def _tell(lane: Lane, delta: TokenDelta) -> None:
    """As a real home does: bare tokens where there is nothing else to tell."""
    if delta.choice or delta.logprobs or delta.finish_reason is not None:
        lane.delta(delta_message(delta))
        return
    for token_id in delta.token_ids:
        lane.token(token_id)


def says(
    token_ids: Sequence[int],
    *,
    finish: FinishReason = FinishReason.STOP,
    stop_reason: str | int | None = None,
    tokens_per_delta: int = 1,
    cached_tokens: int = 0,
) -> Script:
    """Every choice says the same and finishes with its last token; choices take turns."""

    def script(request: pb.GenerateRequest) -> Iterable[Step]:
        parts = [
            tuple(token_ids[start : start + tokens_per_delta])
            for start in range(0, len(token_ids), tokens_per_delta)
        ]
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            for choice in range(request.n):
                yield TokenDelta(
                    request.request_id,
                    choice,
                    part,
                    logprobs=_logprobs(request, part),
                    finish_reason=finish if last else None,
                    stop_reason=stop_reason if last else None,
                )
        yield stats(request, len(token_ids) * request.n, cached_tokens=cached_tokens)

    return script


def echoes(request: pb.GenerateRequest) -> Iterable[Step]:
    """The prompt said back, cut at max_tokens: an answer to whatever a fuzzer thinks of."""
    said = list(request.prompt_ids)[: min(request.sampling.max_tokens, 8)]
    return says(said, finish=FinishReason.LENGTH)(request)


def stats(
    request: pb.GenerateRequest, completion_tokens: int, *, cached_tokens: int = 0
) -> pb.RequestStats:
    return pb.RequestStats(
        prompt_tokens=len(request.prompt_ids),
        cached_tokens=cached_tokens,
        completion_tokens=completion_tokens,
        first_token_ms=1.5,
    )


def _logprobs(request: pb.GenerateRequest, token_ids: Sequence[int]) -> tuple[TokenLogprobs, ...]:
    """As many as were asked for: the token itself at -0.5, ids from 0 on at -1, -2, …"""
    if not request.sampling.HasField("logprobs"):
        return ()
    top = tuple((other, -1.0 - other) for other in range(request.sampling.logprobs))
    return tuple(TokenLogprobs(token_id, -0.5, top) for token_id in token_ids)

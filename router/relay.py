"""One call to a request's home, relayed delta by delta.

What bounds the memory of a stream: a reply is read from gRPC only when the consumer asks for the
next event, so at most one reply per call is in this process; HTTP/2 flow control holds the rest
back at the home.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

import grpc

from router.errors import DeadlineError
from router.homes import Generate, Homes
from router.metrics import RouterMetrics
from router.place import Placement, PlacementPolicy, PlacementRequest
from transport.protos import worker_pb2 as pb
from transport.registry import WorkerView
from triptych.errors import CapacityError, TriptychError, WorkerError
from triptych.request import SamplingParams, TokenDelta
from triptych.wire import from_rpc_error, generate_request, token_delta

Event = Placement | TokenDelta | pb.RequestStats

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt and its choices, as its home gets it."""

    request_id: str  # unique, also among requests that share an X-Request-Id
    prompt_ids: Sequence[int]
    params: SamplingParams
    n: int = 1
    cache_salt: str = ""


class Relay:
    """Places calls and relays their streams. Lives on one event loop; `close` ends what is open."""

    def __init__(
        self,
        workers: Callable[[], list[WorkerView]],
        policy: PlacementPolicy,
        *,
        model: str,
        deadline_s: float,
        metrics: RouterMetrics,
    ) -> None:
        self._workers = workers
        self._policy = policy
        self._model = model
        self._deadline_s = deadline_s
        self._metrics = metrics
        self._homes = Homes()
        self._turns = itertools.count()

    async def generate(self, call: Call) -> AsyncGenerator[Event, None]:
        """The placement that answered (once, first), deltas, the request's stats (once, last).

        A home that was lost, or that had no room, before its first reply is replaced once. Closing
        the generator, or cancelling the task that awaits it, cancels the call at once. Raises
        CapacityError, DeadlineError, WorkerError, or what the home raised.
        """
        ends = time.monotonic() + self._deadline_s
        lost: str | None = None
        while True:
            placement = await self._place(call, lost)
            answered = False
            try:
                async with contextlib.aclosing(self._relay(call, placement, ends)) as events:
                    async for event in events:
                        if not answered:
                            answered = True
                            yield placement
                        yield event
                return
            except (_HomeLost, CapacityError) as error:
                if answered or lost is not None:
                    raise (error.reason if isinstance(error, _HomeLost) else error) from None
                lost = placement.decode.worker_id
                _log.warning(
                    "home gave no answer, trying another",
                    extra={"fields": {"id": call.request_id, "home": lost, "reason": str(error)}},
                )

    async def close(self) -> None:
        await self._homes.close()

    async def _place(self, call: Call, lost: str | None) -> Placement:
        workers = self._workers()
        await self._homes.forget_all_but(workers)
        placement = self._policy(
            PlacementRequest(
                model=self._model,
                turn=next(self._turns),
                choices=self._homes.choices,
                prefilling=self._homes.prefilling,
                excluded=frozenset() if lost is None else frozenset([lost]),
            ),
            workers,
        )
        reason = placement.reason if lost is None else "home-lost"
        self._metrics.placements.labels(reason, "yes" if placement.prefill else "no").inc()
        prefill = placement.prefill.worker_id if placement.prefill else "home"
        fields = {"id": call.request_id, "home": placement.decode.worker_id, "prefill": prefill}
        _log.info("placed", extra={"fields": {**fields, "reason": reason}})
        return placement

    async def _relay(
        self, call: Call, placement: Placement, ends: float
    ) -> AsyncGenerator[TokenDelta | pb.RequestStats, None]:
        message = generate_request(
            call.request_id,
            call.prompt_ids,
            call.params,
            n=call.n,
            prefill=_target(placement.prefill) if placement.prefill else None,
            cache_salt=call.cache_salt,
        )
        message.spare_prefill.extend(_target(view) for view in placement.spares)
        with (
            self._homes.visit(placement, call.n) as generate,
            self._metrics.live_streams.track_inprogress(),
            contextlib.ExitStack() as until_first_reply,
        ):
            until_first_reply.enter_context(self._homes.prefill(placement, len(call.prompt_ids)))
            async with contextlib.aclosing(_replies(generate, message, ends)) as replies:
                async for reply in replies:
                    until_first_reply.close()
                    if reply.HasField("delta"):
                        yield token_delta(call.request_id, reply.delta)
                    else:
                        yield reply.stats


_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # gone, or going


class _HomeLost(Exception):
    """The home went away. Whether it had begun with the request is unknown."""

    def __init__(self, reason: TriptychError) -> None:
        super().__init__(str(reason))
        self.reason = reason


async def _replies(
    generate: Generate, message: pb.GenerateRequest, ends: float
) -> AsyncGenerator[pb.GenerateReply, None]:
    rpc = generate(message, timeout=max(0.0, ends - time.monotonic()))
    try:
        while True:
            reply = await rpc.read()
            if not isinstance(reply, pb.GenerateReply):  # gRPC's end-of-file object
                return
            yield reply
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise DeadlineError("the request did not finish before its deadline") from error
        if error.code() in _LOST:
            raise _HomeLost(from_rpc_error(error)) from error
        raise from_rpc_error(error) from error
    except asyncio.CancelledError:
        # gRPC raises this too when the channel is closed under a call: nobody cancelled our task.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise WorkerError("the router closed its connection to the worker") from None
    finally:
        rpc.cancel()


def _target(view: WorkerView) -> pb.PrefillTarget:
    return pb.PrefillTarget(worker_id=view.worker_id, epoch=view.epoch, address=view.address)

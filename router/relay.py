"""One request at its home, relayed as it goes on.

What bounds the memory of a stream: a request whose consumer asks for nothing is held at its home as
soon as some hundred tokens lie here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from dataclasses import dataclass

from router.continuation import Answer, Patience
from router.errors import DeadlineError
from router.home_watch import HomeWatch, Key, is_stuck, key_of
from router.homes import Homes
from router.inbox import Inbox
from router.metrics import RouterMetrics
from router.place import Placement, PlacementPolicy, PlacementRequest
from router.progress import Progress
from transport.protos import worker_pb2 as pb
from transport.registry import Directory, WorkerView
from triptych.config import RouterConfig
from triptych.request import SamplingParams, Speculation
from triptych.wire import generate_request

_LEAST_S = 0.001  # 0 would say that there is no deadline
_LOOK_S = 0.25  # for homes that hang, when nobody reports

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt and its choices, as its home gets it."""

    request_id: str  # unique, also among requests that share an X-Request-Id
    prompt_ids: Sequence[int]
    params: SamplingParams
    n: int = 1
    cache_salt: str = ""
    speculation: Speculation | None = None


class Relay:
    """Places calls and opens them at their homes. Lives on one event loop; `close` ends all."""

    def __init__(
        self,
        directory: Directory,
        policy: PlacementPolicy,
        *,
        model: str,
        config: RouterConfig,
        metrics: RouterMetrics,
    ) -> None:
        self._directory = directory
        self._policy = policy
        self._model = model
        self._config = config
        self._metrics = metrics
        self._homes = Homes()
        self._turns = itertools.count()
        self._watching = asyncio.create_task(self._watch(), context=Context())

    @contextlib.asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[Answer]:
        """Asks a home and waits for its first word. Whenever a home is lost, another one goes on.

        Leaving the block early cancels the request. This and what is taken from the answer raise
        CapacityError, DeadlineError, WorkerError, or what the home raised.
        """
        ends = time.monotonic() + self._config.request_deadline_s
        answer = Answer(
            call.request_id,
            Progress(len(call.prompt_ids), call.n),
            _Placer(self, call, ends),
            Patience(self._config.max_lost_homes, self._config.home_wait_s, ends),
            self._metrics,
        )
        with contextlib.closing(answer):
            await answer.begin()
            yield answer

    async def close(self) -> None:
        self._watching.cancel()
        await asyncio.wait({self._watching})
        await self._homes.close()

    async def _watch(self) -> None:
        """Gives up homes that hang, for as long as this lives."""
        watch = HomeWatch(self._config.step_limit_s)
        while True:
            await self.news(_LOOK_S)
            workers = self._directory.workers()
            for key, error in watch.lost(self._homes.in_use, workers, time.monotonic()).items():
                self._homes.give_up(key, error)

    async def news(self, timeout_s: float) -> None:
        """Waits until the workers are other ones, or in another state; at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._directory.news()

    async def place(self, call: Call, avoided: Collection[Key], *, again: bool) -> Placement:
        """`again`: in place of a home that was lost. Raises CapacityError."""
        attached = self._directory.workers()
        await self._homes.forget_all_but(attached)
        limit = self._config.step_limit_s
        workers = [view for view in attached if not is_stuck(view, limit)]
        placement = self._policy(
            PlacementRequest(
                model=self._model,
                turn=next(self._turns),
                choices=self._homes.choices,
                prefilling=self._homes.prefilling,
                excluded=frozenset(v.worker_id for v in workers if key_of(v) in avoided),
            ),
            workers,
        )
        reason = "home-lost" if again else placement.reason
        self._metrics.placements.labels(reason, "yes" if placement.prefill else "no").inc()
        prefill = placement.prefill.worker_id if placement.prefill else "home"
        fields = {"id": call.request_id, "home": placement.decode.worker_id, "prefill": prefill}
        _log.info("placed", extra={"fields": {**fields, "reason": reason}})
        return placement

    @contextlib.contextmanager
    def ask(
        self, call: Call, placement: Placement, progress: Progress, ends: float
    ) -> Iterator[Inbox]:
        """The request is open at the placement's home until the block ends."""
        message = generate_request(
            call.request_id,
            call.prompt_ids,
            call.params,
            n=call.n,
            prefill=_target(placement.prefill) if placement.prefill else None,
            spare_prefill=[_target(view) for view in placement.spares],
            cache_salt=call.cache_salt,
            speculation=call.speculation,
            time_left_s=max(_LEAST_S, ends - time.monotonic()),
            resumed=progress.resumed(),
        )
        with (
            self._homes.visit(placement, progress.num_left) as home,
            self._metrics.live_streams.track_inprogress(),
            home.open(message, progress) as inbox,
            _deadline(inbox, ends),
        ):
            yield inbox

    def prefill(self, placement: Placement, num_tokens: int) -> AbstractContextManager[object]:
        return self._homes.prefill(placement, num_tokens)


@dataclass(frozen=True, slots=True)
class _Placer:
    """The relay, for one call."""

    relay: Relay
    call: Call
    ends: float  # time.monotonic()

    async def place(self, avoided: Collection[Key], *, again: bool) -> Placement:
        return await self.relay.place(self.call, avoided, again=again)

    async def news(self, timeout_s: float) -> None:
        await self.relay.news(timeout_s)

    def ask(self, placement: Placement, progress: Progress) -> AbstractContextManager[Inbox]:
        return self.relay.ask(self.call, placement, progress, self.ends)

    def prefill(self, placement: Placement, progress: Progress) -> AbstractContextManager[object]:
        return self.relay.prefill(placement, progress.num_given)


@contextlib.contextmanager
def _deadline(inbox: Inbox, ends: float) -> Iterator[None]:
    """`ends`: time.monotonic()."""
    error = DeadlineError("the request did not finish before its deadline")
    left = max(0.0, ends - time.monotonic())
    timer = asyncio.get_running_loop().call_later(left, inbox.give_up, error)
    try:
        yield
    finally:
        timer.cancel()


def _target(view: WorkerView) -> pb.PrefillTarget:
    return pb.PrefillTarget(worker_id=view.worker_id, epoch=view.epoch, address=view.address)

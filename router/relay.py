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
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from router.errors import DeadlineError
from router.homes import Homes
from router.inbox import Inbox
from router.index.prefixes import HashedPrompt, Prediction, Prefixes
from router.link import HomeLost
from router.metrics import RouterMetrics
from router.place import Placement, PlacementPolicy, PlacementRequest
from transport.protos import worker_pb2 as pb
from transport.registry import WorkerView
from triptych.errors import CapacityError, TriptychError
from triptych.obs.trace import traceparent
from triptych.request import SamplingParams, Speculation
from triptych.wire import generate_request

_LEAST_S = 0.001  # 0 would say that there is no deadline

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


@dataclass(frozen=True, slots=True)
class Answer:
    """A home that has begun to answer a call."""

    placement: Placement
    inbox: Inbox


class Relay:
    """Places calls and opens them at their homes. Lives on one event loop; `close` ends all."""

    def __init__(
        self,
        workers: Callable[[], list[WorkerView]],
        policy: PlacementPolicy,
        *,
        model: str,
        deadline_s: float,
        metrics: RouterMetrics,
        prefixes: Prefixes | None = None,
    ) -> None:
        self._workers = workers
        self._policy = policy
        self._model = model
        self._deadline_s = deadline_s
        self._metrics = metrics
        self._prefixes = prefixes or Prefixes()
        self._homes = Homes()
        self._turns = itertools.count()

    @contextlib.asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[Answer]:
        """Asks a home and waits for its first word. A home that was lost, or that had no room,
        before that is replaced once.

        Leaving the block early cancels the request. This and what is taken from the inbox raise
        CapacityError, DeadlineError, WorkerError, or what the home raised.
        """
        ends = time.monotonic() + self._deadline_s
        lost: str | None = None
        prompt = await self._prefixes.hash(call.prompt_ids, call.cache_salt, self._workers())
        while True:
            placement, prediction = await self._place(call, prompt, lost)
            with self._ask(call, placement, ends) as inbox:
                try:
                    with (
                        self._homes.prefill(placement, len(call.prompt_ids)),
                        self._prefixes.expecting(prediction, placement),
                    ):
                        await inbox.wait()
                except (HomeLost, CapacityError) as error:
                    if lost is not None:
                        raise _reason(error) from None
                    lost = placement.decode.worker_id
                    fields = {"id": call.request_id, "home": lost, "reason": str(error)}
                    _log.warning("home gave no answer, trying another", extra={"fields": fields})
                    continue
                try:
                    yield Answer(placement, inbox)
                except HomeLost as error:
                    raise error.reason from None
                if inbox.stats is not None:
                    self._prefixes.compare(prediction, placement, inbox.stats)
                return

    async def close(self) -> None:
        await self._homes.close()

    async def _place(
        self, call: Call, prompt: HashedPrompt, lost: str | None
    ) -> tuple[Placement, Prediction]:
        workers = self._workers()
        await self._homes.forget_all_but(workers)
        prediction = self._prefixes.predict(prompt)
        placement = self._policy(
            PlacementRequest(
                model=self._model,
                turn=next(self._turns),
                choices=self._homes.choices,
                prefilling=self._homes.prefilling,
                cached=prediction.hits,
                excluded=frozenset() if lost is None else frozenset([lost]),
            ),
            workers,
        )
        reason = placement.reason if lost is None else "home-lost"
        self._metrics.placements.labels(reason, "yes" if placement.prefill else "no").inc()
        prefill = placement.prefill.worker_id if placement.prefill else "home"
        fields = {"id": call.request_id, "home": placement.decode.worker_id, "prefill": prefill}
        _log.info("placed", extra={"fields": {**fields, "reason": reason}})
        return placement, prediction

    @contextlib.contextmanager
    def _ask(self, call: Call, placement: Placement, ends: float) -> Iterator[Inbox]:
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
        )
        message.trace_parent = traceparent()
        with (
            self._homes.visit(placement, call.n) as home,
            self._metrics.live_streams.track_inprogress(),
            home.open(message) as inbox,
            _deadline(inbox, ends),
        ):
            yield inbox


def _reason(error: HomeLost | CapacityError) -> TriptychError:
    return error.reason if isinstance(error, HomeLost) else error


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

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
from dataclasses import asdict, dataclass, replace

from router.continuation import Answer, Patience
from router.errors import DeadlineError
from router.home_watch import HomeWatch, Key, is_stuck, key_of
from router.homes import Homes
from router.inbox import Inbox
from router.index.prefixes import HashedPrompt, Prediction, Prefixes
from router.metrics import RouterMetrics
from router.placement import DEFAULT_SLO, Placement, PlacementPolicy, PlacementRequest, Slo
from router.progress import Progress
from transport.protos import worker_pb2 as pb
from transport.registry import Directory, WorkerView
from triptych.config import RouterConfig
from triptych.obs.trace import traceparent
from triptych.request import SamplingParams, SparseAttention, Speculation
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
    sparse: SparseAttention | None = None  # None: attention is dense; the salt names it too
    session: str = ""  # whose turns should go the same way; "": nobody's
    ends: float | None = None  # time.monotonic(); None: `deadline_s` from now on


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
        prefixes: Prefixes | None = None,
        slo: Slo = DEFAULT_SLO,
    ) -> None:
        self._directory = directory
        self._policy = policy
        self._model = model
        self._config = config
        self._metrics = metrics
        self.prefixes = prefixes or Prefixes()
        self._slo = slo
        self._homes = Homes()
        self._turns = itertools.count()
        self._watching = asyncio.create_task(self._watch(), context=Context())

    @contextlib.asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[Answer]:
        """Asks a home and waits for its first word. Whenever a home is lost, another one goes on.

        Leaving the block early cancels the request. This and what is taken from the answer raise
        CapacityError, DeadlineError, WorkerError, or what the home raised.
        """
        ends = call.ends
        if ends is None:
            ends = time.monotonic() + self._config.request_deadline_s
        progress = Progress(len(call.prompt_ids), call.n)
        answer = Answer(
            call.request_id,
            progress,
            _Placer(self, call, progress, ends),
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

    async def hash(self, call: Call) -> HashedPrompt:
        """The prompt's blocks, as the workers that are here name them."""
        workers = self._directory.workers()
        return await self.prefixes.hash(call.prompt_ids, call.cache_salt, workers)

    async def place(
        self, call: Call, prompt: HashedPrompt, num_given: int, avoided: Collection[Key]
    ) -> Decision:
        """`num_given`: the prompt's tokens, and those behind it. Raises CapacityError."""
        attached = self._directory.workers()
        await self._homes.forget_all_but(attached)
        limit = self._config.step_limit_s
        workers = [view for view in attached if not is_stuck(view, limit)]
        prediction = self.prefixes.predict(prompt)
        under_way = self._homes.under_way
        request = PlacementRequest(
            model=self._model,
            turn=next(self._turns),
            choices=under_way.choices,
            prefilling=under_way.prefilling,
            excluded=frozenset(v.worker_id for v in workers if key_of(v) in avoided),
            cached=prediction.hits,
            told=prediction.told,
            prompt_tokens=num_given,
            max_tokens=call.params.max_tokens,
            now=time.monotonic(),
            sent=under_way.sent,
            session=call.session and f"{call.cache_salt}\0{call.session}",
            slo=self._slo,
        )
        return Decision(request, self._policy(request, workers), prediction)

    def note(self, call: Call, placement: Placement) -> None:
        """For metrics and log."""
        reason = placement.reason
        self._metrics.placements.labels(reason, "yes" if placement.prefill else "no").inc()
        prefill = placement.prefill.worker_id if placement.prefill else "home"
        fields = {"id": call.request_id, "home": placement.decode.worker_id, "prefill": prefill}
        _log.info("placed", extra={"fields": {**fields, "reason": reason}})
        if placement.prediction is not None:
            _log.debug("placed", extra={"fields": {**fields, **asdict(placement.prediction)}})

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
            sparse=call.sparse,
        )
        message.trace_parent = traceparent()
        with (
            self._homes.visit(placement, progress.num_left) as home,
            self._metrics.live_streams.track_inprogress(),
            home.open(message, progress) as inbox,
            _deadline(inbox, ends),
        ):
            yield inbox

    @contextlib.contextmanager
    def prefill(self, made: Decision) -> Iterator[None]:
        """The prompt is being computed until the block ends."""
        with (
            self._homes.under_way.prefill(made.placement, made.request),
            self.prefixes.expecting(made.prediction, made.placement),
        ):
            yield


@dataclass(frozen=True, slots=True)
class Decision:
    """A placement, and what it was made of."""

    request: PlacementRequest
    placement: Placement
    prediction: Prediction


@dataclass(slots=True)
class _Placer:
    """The relay, for one call."""

    relay: Relay
    call: Call
    progress: Progress
    ends: float  # time.monotonic()
    _prompt: HashedPrompt | None = None

    async def place(self, avoided: Collection[Key], *, again: bool) -> _Place:
        if self._prompt is None:
            self._prompt = await self.relay.hash(self.call)
        num_given = self.progress.num_given
        made = await self.relay.place(self.call, self._prompt, num_given, avoided)
        if again:
            made = replace(made, placement=replace(made.placement, reason="home-lost"))
        self.relay.note(self.call, made.placement)
        return _Place(self, made)

    async def news(self, timeout_s: float) -> None:
        await self.relay.news(timeout_s)


@dataclass(frozen=True, slots=True)
class _Place:
    """The relay, for one call at one home."""

    placer: _Placer
    made: Decision

    @property
    def placement(self) -> Placement:
        return self.made.placement

    def ask(self) -> AbstractContextManager[Inbox]:
        placer = self.placer
        return placer.relay.ask(placer.call, self.placement, placer.progress, placer.ends)

    def prefill(self) -> AbstractContextManager[object]:
        return self.placer.relay.prefill(self.made)

    def compare(self, stats: pb.RequestStats) -> None:
        self.placer.relay.prefixes.compare(self.made.prediction, self.placement, stats)


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

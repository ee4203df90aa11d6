"""One call's answer as one stream, whatever becomes of its homes.

A home that dies, hangs or leaves costs time and nothing else: prompt and emitted tokens go to
another one, or to the same worker when it is back, and by the numerics contract the tokens behind
them are those that would have come.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from router.home_watch import Key, key_of
from router.inbox import Inbox, Told
from router.link import HomeLost
from router.metrics import RouterMetrics
from router.placement import Placement
from router.progress import Progress
from transport.protos import worker_pb2 as pb
from triptych.errors import CapacityError

# A lost home may be asked again so much later: by then it has left, or is another process under the
# same name, or it was the connection that broke.
_AVOID_S = 2.0

_log = logging.getLogger(__name__)


class Place(Protocol):
    """The home that was found for a call."""

    @property
    def placement(self) -> Placement: ...

    def ask(self) -> AbstractContextManager[Inbox]:
        """The call is open there, behind what it has got, until the block ends."""

    def prefill(self) -> AbstractContextManager[object]:
        """For as long as the home has not said its first word."""

    def compare(self, stats: pb.RequestStats) -> None:
        """With what was expected when the home was chosen."""


class Placer(Protocol):
    """Finds homes for one call."""

    async def place(self, avoided: Collection[Key], *, again: bool) -> Place:
        """`again`: in place of a lost one. Raises CapacityError: there is no home now."""

    async def news(self, timeout_s: float) -> None:
        """Waits until `place` may find another answer, at most so long."""


@dataclass(frozen=True, slots=True)
class Patience:
    """With the homes of one call."""

    in_a_row: int  # that may be lost without a new token: a request that kills homes kills no more
    wait_s: float  # for a home when there is none; not for the first one
    ends: float  # time.monotonic()


class Answer:
    """What homes answer to one call. `begin` comes first; `close` ends the call, at any time."""

    def __init__(
        self,
        request_id: str,
        progress: Progress,
        placer: Placer,
        patience: Patience,
        metrics: RouterMetrics,
    ) -> None:
        self.placements: list[Placement] = []  # of the homes that answered, in turn
        self._request_id = request_id
        self._placer = placer
        self._patience = patience
        self._metrics = metrics
        self._progress = progress
        self._shortcut: Callable[[int], bool] | None = None
        self._at_home = contextlib.ExitStack()
        self._place: Place | None = None  # asked last
        self._inbox: Inbox | None = None
        self._heard_at = 0.0  # monotonic seconds
        self._lost_at: dict[Key, float] = {}
        self._in_a_row = 0
        self._tokens_then = 0  # when a home was lost last
        self._was_full = False
        self._fallbacks: list[str] = []

    async def begin(self) -> None:
        """Until a home has said something. A home that was lost before that is replaced, one that
        had no room once. Raises what `take` raises.
        """
        await self._reach(None)

    def shorten(self, shortcut: Callable[[int], bool] | None) -> None:
        """A quicker way for bare tokens, see Inbox; at every home."""
        self._shortcut = shortcut
        if self._inbox is not None:
            self._inbox.shortcut = shortcut

    async def take(self) -> list[Told]:
        """All that has come; waits for something. The stats, last, are those of all homes.

        Raises CapacityError, DeadlineError, WorkerError, or what the home raised.
        """
        while True:
            assert self._inbox is not None, "begin() comes first"
            try:
                told = await self._inbox.take()
            except HomeLost as lost:
                if self._progress.num_left:
                    await self._go_on(lost)
                    continue
                told = [pb.RequestStats()]  # all that it still owed
                self._fallbacks.append(str(lost))
            self._heard_at = time.monotonic()
            if self._fallbacks:
                return [self._whole(item) for item in told]
            if isinstance(told[-1], pb.RequestStats) and self._place is not None:
                self._place.compare(told[-1])
            return told

    def close(self) -> None:
        self._at_home.close()

    # ---- from home to home ---------------------------------------------------------------------

    async def _go_on(self, lost: HomeLost) -> None:
        """Elsewhere, and the client sees no more of it than a pause."""
        heard_at = self._heard_at
        self._leave(lost)
        await self._reach(lost)
        gap_s = time.monotonic() - heard_at
        self._metrics.continuations.labels(lost.kind).inc()
        self._metrics.continuation_gap.observe(gap_s)
        fields = {"id": self._request_id, "home": self._home[0], "why": lost.kind.value}
        told = {"tokens": str(self._progress.num_tokens), "gap_s": f"{gap_s:.3f}"}
        _log.warning("stream goes on at another home", extra={"fields": fields | told})

    async def _reach(self, lost: HomeLost | CapacityError | None) -> None:
        """Asks homes in turn until one says something."""
        until = min(self._patience.ends, time.monotonic() + self._patience.wait_s)
        while True:
            place = await self._find(lost, until)
            try:
                await self._ask(place)
                return
            except (HomeLost, CapacityError) as error:
                self._leave(error)
                lost = error

    async def _find(self, lost: HomeLost | CapacityError | None, until: float) -> Place:
        while True:
            now = time.monotonic()
            avoided = frozenset(key for key, at in self._lost_at.items() if now - at < _AVOID_S)
            try:
                return await self._placer.place(avoided, again=lost is not None)
            except CapacityError as error:
                if not isinstance(lost, HomeLost):
                    raise (lost or error) from None
            if now >= until:
                raise lost.reason
            await self._placer.news(min(until - now, _AVOID_S))

    async def _ask(self, place: Place) -> None:
        self._place = place
        inbox = self._at_home.enter_context(place.ask())
        self._inbox, inbox.shortcut = inbox, self._shortcut
        with place.prefill():
            await inbox.wait()
        self.placements.append(place.placement)
        self._heard_at = time.monotonic()

    def _leave(self, error: HomeLost | CapacityError) -> None:
        """Raises what became of the home, if that was the last one to be tried."""
        self._at_home.close()
        reason = error.reason if isinstance(error, HomeLost) else error
        if self._progress.num_tokens > self._tokens_then:
            self._in_a_row, self._tokens_then = 0, self._progress.num_tokens
        self._in_a_row += 1
        if self._in_a_row > self._patience.in_a_row or (reason is error and self._was_full):
            raise reason from None
        self._was_full = self._was_full or reason is error
        self._lost_at[self._home] = time.monotonic()
        self._fallbacks.append(f"{self._home[0]}: {reason}")
        fields = {"id": self._request_id, "home": self._home[0], "reason": str(error)}
        _log.warning("home lost, trying another", extra={"fields": fields})

    @property
    def _home(self) -> Key:
        assert self._place is not None, "it was asked"
        return key_of(self._place.placement.decode)

    def _whole(self, told: Told) -> Told:
        if not isinstance(told, pb.RequestStats):
            return told
        stats = self._progress.whole(told)
        stats.fallbacks[:] = [*self._fallbacks, *stats.fallbacks]
        return stats

"""Moves experts between FFN workers, by the rows that homes send them.

The router holds no truth about who hosts what: FFN workers report it to the router, and tell the
homes themselves. A router that dies takes nothing with it; the next one goes on from the same
reports. Decisions are pure functions in `triptych.experts.balance`; here they are carried out, one
at a time: first a copy is made, then another one is given up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import grpc
import numpy as np
from numpy.typing import NDArray

from transport.channel import connect
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import FfnWorkerStub
from transport.registry import FFN_ROLE, Change, WorkerView
from triptych.experts.balance import plan_moves
from triptych.experts.load_meter import LoadMeter
from triptych.experts.pool_state import Move, Rules, Spot
from triptych.experts.unit_map import Compact, UnitMap
from triptych.experts.units import Unit, Worker

log = logging.getLogger(__name__)

_ARRANGE_S = 60.0  # to read a unit, and to wait until every home knows
_MEMORY = 3.0  # half-life of what is known of loads, in looks
_RETRY_S = 5.0  # after a move that failed
_SETTLING_S = 0.5  # after a worker came or went, until its neighbours have reported too

Counts = NDArray[np.uint64]


class MoveRefused(Exception):
    """An FFN worker does not do what was planned; the next plan will know more."""


@dataclass(frozen=True, slots=True)
class Host:
    """An FFN worker as it last reported."""

    units: frozenset[Unit]
    room: int  # units that can be added
    domain: str


@dataclass(slots=True)
class Loads:
    """Rows that homes send to each unit. Homes report sums since they began."""

    units: Compact
    meter: LoadMeter
    _told: dict[tuple[str, int], Counts] = field(default_factory=dict)  # by home
    _new: Counts = field(init=False)

    def __post_init__(self) -> None:
        self._new = np.zeros(self.units.map.shape, np.uint64)

    def tell(self, home: WorkerView, rows: Sequence[int]) -> None:
        counts = np.array(rows, np.uint64).reshape(self.units.map.shape)
        before = self._told.get((home.worker_id, home.epoch))
        self._told[home.worker_id, home.epoch] = counts
        if before is not None:
            self._new += counts - before

    def forget(self, home: WorkerView) -> None:
        self._told.pop((home.worker_id, home.epoch), None)

    def settled(self, workers: int) -> NDArray[np.float64] | None:
        """Rows per second [layers with units, units], or None while chance may explain them."""
        self.meter.add(self.units.table(self._new), time.monotonic())
        self._new[:] = 0
        return self.meter.loads if self.meter.is_settled(workers) else None


@dataclass(slots=True)
class ExpertBalancer:
    """Lives on one event loop. `every_s` 0: copies are repaired, loads are not levelled."""

    workers: Callable[[], list[WorkerView]]
    every_s: float
    copies: int
    rest_s: float = 60.0  # how long a worker that refused a unit is asked for no other
    num_moves: int = 0  # made so far
    _hosts: dict[str, Host] = field(default_factory=dict)  # by worker id
    _loads: Loads | None = None  # None: no worker with units was ever here
    _pool_changed: asyncio.Event = field(default_factory=asyncio.Event)
    _refusing_until: dict[str, float] = field(default_factory=dict)  # monotonic, by worker id
    _failed: bool = False  # the last look

    def on_change(self, change: Change) -> None:
        """A worker came or went."""
        if change.worker.role == FFN_ROLE:
            if change.kind == "left":
                self._hosts.pop(change.worker.worker_id, None)
                self._refusing_until.pop(change.worker.worker_id, None)
            self._pool_changed.set()
        elif change.kind == "left" and self._loads is not None:
            self._loads.forget(change.worker)

    def on_experts(self, worker: WorkerView, load: pb.ExpertLoad) -> None:
        """What a worker reports of units."""
        if self._loads is None:
            units = Compact(UnitMap(tuple(load.per_layer)))
            memory = max(1.0, _MEMORY * self.every_s)
            self._loads = Loads(units, LoadMeter(units.catalog, time.monotonic(), memory))
        if worker.role != FFN_ROLE:
            self._loads.tell(worker, load.rows)
            return
        units = self._loads.units
        hosted = frozenset(units.inward(units.map.unpack(load.offered)))
        before = self._hosts.get(worker.worker_id)
        self._hosts[worker.worker_id] = Host(hosted, load.room, load.domain)
        if before is None or worker.draining:
            self._pool_changed.set()

    async def run(self) -> None:
        """Until cancelled. Nothing that goes wrong with a move is more than a move not made."""
        while True:
            await self._pause()
            self._failed = False
            try:
                await self._look()
            except Exception:
                self._failed = True
                log.exception("the placement of experts could not be looked at")

    async def _pause(self) -> None:
        until_s = min(self.every_s or _RETRY_S, _RETRY_S) if self._failed else self.every_s
        try:
            async with asyncio.timeout(until_s or None):
                await self._pool_changed.wait()
            await asyncio.sleep(_SETTLING_S)
            self._pool_changed.clear()
        except TimeoutError:
            return

    async def _look(self) -> None:
        """One round of moves."""
        views = {view.worker_id: view for view in self.workers() if view.role == FFN_ROLE}
        hosts = {name: host for name, host in self._hosts.items() if name in views}
        if not hosts or self._loads is None:
            return
        units = self._loads.units
        moves = await asyncio.to_thread(  # seconds, where there are thousands of experts
            plan_moves,
            units.catalog,
            {name: host.units for name, host in hosts.items()},
            self._loads.settled(len(hosts)) if self.every_s else None,
            [
                Worker(name, host.domain, self._capacity(name, host), draining=view.draining)
                for name, host in hosts.items()
                if (view := views[name])
            ],
            Rules(copies=self.copies),
        )
        made = 0
        stuck = set[Spot]()  # of moves that were not made
        for move in moves:
            if any(_may_rely(spot, other) for spot in _spots(move) for other in stuck):
                continue
            try:
                await self._make(move, views, units)
                made += 1
                self.num_moves += 1
            except (grpc.aio.AioRpcError, MoveRefused) as error:
                stuck.update(_spots(move))
                self._failed = True
                reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
                log.warning("an expert was not moved: %s", reason)
        if made:
            log.info("experts moved", extra={"fields": {"moves": made}})
            self._pool_changed.set()  # there may be more to do than one round allows

    def _capacity(self, name: str, host: Host) -> int:
        """In units. Who refused one is asked for no other for a while: its reports may be wrong."""
        refuses = time.monotonic() < self._refusing_until.get(name, 0.0)
        return len(host.units) + (0 if refuses else host.room)

    async def _make(self, move: Move, views: Mapping[str, WorkerView], units: Compact) -> None:
        if (spot := move.prepare) is not None:
            request = pb.ArrangeRequest(add=[units.number(spot.unit)])
            await self._arrange(views[spot.worker], request, units)
        if (spot := move.retire) is not None:
            request = pb.ArrangeRequest(remove=[units.number(spot.unit)])
            await self._arrange(views[spot.worker], request, units)

    async def _arrange(
        self, worker: WorkerView, request: pb.ArrangeRequest, units: Compact
    ) -> None:
        """Raises AioRpcError or MoveRefused."""
        async with connect(worker.address) as channel:
            reply = await FfnWorkerStub(channel).Arrange(request, timeout=_ARRANGE_S)
        before = self._hosts.get(worker.worker_id)
        if before is not None:  # its next report may come behind our next look
            held = frozenset(units.inward(units.map.unpack(reply.units)))
            room = before.room + len(before.units) - len(held)
            self._hosts[worker.worker_id] = replace(before, units=held, room=max(0, room))
        if reply.refused:
            self._refusing_until[worker.worker_id] = time.monotonic() + self.rest_s
            raise MoveRefused(f"{worker.worker_id} refuses: {reply.reason}")


def _spots(move: Move) -> list[Spot]:
    return [spot for spot in (move.prepare, move.retire) if spot is not None]


def _may_rely(spot: Spot, other: Spot) -> bool:
    """On whether the other one was prepared, or retired."""
    return spot.unit == other.unit or spot.worker == other.worker

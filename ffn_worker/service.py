"""The FFN worker's gRPC face: what is here, who is told, and orders to host something else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import grpc

from ffn_worker.hosting import Hosting
from ffn_worker.metrics import FfnMetrics
from ffn_worker.offer import FollowerView, Offer
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import FfnWorkerServicer
from triptych.engine.thread import StepThread
from triptych.errors import ModelError
from triptych.experts.unit_map import UnitMap
from triptych.experts.units import Unit
from triptych.models.layers import DenseFfn

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[pb.FollowCall, pb.UnitsOffered]

_ANSWER_S = 5.0  # how long a change waits for followers that do not answer


@dataclass(slots=True)
class FfnService(FfnWorkerServicer):
    """Lives on one event loop."""

    description: pb.FfnDescription
    units: UnitMap
    hosting: Hosting
    room: int  # bytes for units
    read: Callable[[Unit], DenseFfn]  # from the checkpoint, in any thread; raises ModelError
    wake: Callable[[], None]  # makes the loop's thread look around
    thread: StepThread
    metrics: FfnMetrics
    domain: str  # what fails together with this worker
    offer: Offer = field(default_factory=Offer)
    _arranging: asyncio.Lock = field(default_factory=asyncio.Lock)
    _leaving: bool = False

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.FfnDescription:
        return self.description

    async def Follow(
        self, calls: AsyncIterator[pb.FollowCall], context: Context
    ) -> AsyncIterator[pb.UnitsOffered]:
        hello = await anext(calls, pb.FollowCall())
        follower = self.offer.join(hello.worker_id)
        hearing = asyncio.create_task(self._hear(follower, calls))
        told = -1
        try:
            while not hearing.done():
                told = await self.offer.newer(told)
                yield pb.UnitsOffered(version=told, units=self.units.pack(self.offer.units))
                if self._leaving:
                    await self.offer.known_by(follower, told)
                    return
        finally:
            hearing.cancel()
            self.offer.leave(follower)

    async def Arrange(self, request: pb.ArrangeRequest, context: Context) -> pb.ArrangeReply:
        """Make before break: what is added is known before what is removed is withdrawn."""
        # A caller that gives up must not leave a change half done.
        return await asyncio.shield(asyncio.create_task(self._arrange(request)))

    async def _arrange(self, request: pb.ArrangeRequest) -> pb.ArrangeReply:
        async with self._arranging:
            refused, reason = await self.host(map(self.units.unit, request.add))
            await self.withdraw(map(self.units.unit, request.remove))
        return pb.ArrangeReply(
            units=self.units.pack(self.offer.units),
            refused=[self.units.number(unit) for unit in refused],
            reason=reason,
        )

    def leave(self) -> None:
        """This worker is to stop. It offers nothing any more; followers that know it are let go,
        and until then what they send is answered.
        """
        self._leaving = True
        self.offer.change(remove=self.offer.units)

    def load(self) -> pb.WorkerLoad:
        """For the router, and its balancer."""
        self.metrics.homes.set(self.offer.num_followers)
        self.metrics.units.set(len(self.offer.units))
        self.metrics.unit_bytes.set(self.hosting.nbytes)
        experts = pb.ExpertLoad(
            offered=self.units.pack(self.offer.units),
            room=self.free_units,
            domain=self.domain,
            per_layer=self.units.per_layer,
        )
        return pb.WorkerLoad(running=self.offer.num_followers, experts=experts)

    @property
    def free_units(self) -> int:
        """How many more may be hosted, as large as those that are here."""
        units, nbytes = len(self.offer.units), self.hosting.nbytes
        if self._leaving:
            return 0
        if not units or not nbytes:
            return sum(self.units.per_layer)
        return max(0, (self.room - nbytes) * units // nbytes)

    async def host(self, units: Iterable[Unit]) -> tuple[Sequence[Unit], str]:
        """Reads and offers units; returns those that cannot be hosted, and why the first cannot."""
        added, refused, reason = list[Unit](), list[Unit](), ""
        try:
            for unit in units:
                if unit in self.offer.units or unit in added:
                    continue
                problem = await self._take_in(unit)
                if problem:
                    refused.append(unit)
                    reason = reason or problem
                else:
                    added.append(unit)
        finally:
            if added and not self._leaving:
                await self._until_known(self.offer.change(add=added))
                self._report()
        return refused, reason

    async def withdraw(self, units: Iterable[Unit]) -> None:
        """Offers them no more; lets them go when no follower's rows can be on their way to them."""
        gone = {unit for unit in units if unit in self.offer.units}
        if not gone:
            return
        await self._until_known(self.offer.change(remove=gone))
        await self._on_loop_thread(lambda: self.hosting.drop(gone))
        self._report()

    async def _until_known(self, version: int) -> None:
        """Until all followers go by it. Rows of those that do not answer will be refused if need
        be, and sent elsewhere.
        """
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self.offer.known(version)
        except TimeoutError:
            log.warning("a follower does not answer; it is not waited for")

    async def _take_in(self, unit: Unit) -> str:
        """Why it cannot be hosted; "": it is here."""
        if self._leaving:
            return "this worker is to stop"
        if unit not in self.units:
            return f"the model has no unit {tuple(unit)}"
        try:
            ffn = await asyncio.to_thread(self.read, unit)
        except ModelError as error:
            log.error("a unit cannot be read: %s", error)
            return str(error)
        if self.hosting.nbytes + ffn.nbytes > self.room:
            return f"no room: {self.hosting.nbytes} of {self.room} bytes are taken"
        await self._on_loop_thread(lambda: self.hosting.add([(unit, ffn)]))
        return ""

    async def _hear(self, follower: FollowerView, calls: AsyncIterator[pb.FollowCall]) -> None:
        async for call in calls:
            self.offer.heard(follower, call.known)

    async def _on_loop_thread(self, change: Callable[[], None]) -> None:
        """Returns when it was run there."""
        event_loop, done = asyncio.get_running_loop(), asyncio.Event()

        def run() -> None:
            change()
            event_loop.call_soon_threadsafe(done.set)

        self.thread.post(run)
        self.wake()
        await done.wait()

    def _report(self) -> None:
        log.info("units offered", extra={"fields": {"units": len(self.offer.units)}})

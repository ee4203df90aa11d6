"""The FFN workers that this process is connected with. On the event loop.

The router names them; the connection tells who is there. A worker that was named once is kept for
as long as it answers, so a restarted router, which names nobody at first, changes nothing.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import grpc
import grpc.aio

from transport.channel import connect
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import FfnWorkerStub
from transport.registry import back_off
from transport.rows.base import RowsError
from transport.rows.exchange import MAX_WORKERS
from transport.rows.hello import Offer
from transport.rows.links import connect_first
from transport.rows.segment import Doorbell
from transport.rows.session import RowsLink, RowsSession
from triptych.experts.remote import RemoteExperts

log = logging.getLogger(__name__)

_DESCRIBE_S = 5.0
_REPORT_S = 1.0
_REFUSED_S = 5.0  # until one that computes something else is asked again

_Key = tuple[str, int]  # worker id, epoch
_FollowCall = grpc.aio.StreamStreamCall[pb.FollowCall, pb.UnitsOffered]


class OtherModel(Exception):
    """It computes other weights, or with other kernels: its rows would be wrong."""


class WorkerLeft(Exception):
    """It was connected, and is no more."""


@dataclass(slots=True)
class FfnPool:
    """`close` ends all connections."""

    experts: RemoteExperts
    links: Sequence[RowsLink]
    offer: Offer  # who this process is, and what it wants of a connection
    doorbell: Doorbell
    identity: str  # must equal theirs, see `unit_identity`
    _tasks: dict[_Key, asyncio.Task[None]] = field(default_factory=dict)
    _named: set[_Key] = field(default_factory=set)
    _numbers: set[int] = field(default_factory=set)  # in use
    _reported: float = 0.0

    def on_note(self, note: pb.RouterNote) -> None:
        """What the router tells of the pool."""
        self._named = {(member.worker_id, member.epoch) for member in note.ffn_workers}
        for member in note.ffn_workers:
            key = member.worker_id, member.epoch
            if key not in self._tasks:
                task = asyncio.create_task(self._keep(key, member.address))
                self._tasks[key] = task
                task.add_done_callback(partial(self._forget, key))

    def report(self, load: pb.WorkerLoad) -> None:
        """Adds, once a second, how many rows this process has sent to each unit so far."""
        now = time.monotonic()
        if now - self._reported < _REPORT_S:
            return
        self._reported = now
        load.experts.per_layer.extend(self.experts.units.per_layer)
        load.experts.rows.extend(self.experts.rows_sent.reshape(-1).tolist())

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _forget(self, key: _Key, task: asyncio.Task[None]) -> None:
        del self._tasks[key]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("FFN worker %s is not used until it is named again", key[0], exc_info=error)

    async def _keep(self, key: _Key, address: str) -> None:
        """Connected, again and again, for as long as the router names it."""
        delays, told = back_off(), False
        while True:
            delay = next(delays)
            try:
                async with connect(address) as channel:
                    await self._follow(key, FfnWorkerStub(channel))
            except OtherModel as error:
                level, problem, delay = logging.ERROR, f"is not used: {error}", _REFUSED_S
            except WorkerLeft as error:
                level, problem, told = logging.WARNING, f"is away: {error}", False
                delays = back_off()
            except (grpc.aio.AioRpcError, RowsError, TimeoutError, ConnectionError) as error:
                reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
                level, problem = logging.WARNING, f"cannot be used: {reason}"
            if not told:  # once, however often it is tried
                log.log(level, "FFN worker %s %s", key[0], problem)
                told = True
            if key not in self._named:
                return
            await asyncio.sleep(delay)

    async def _follow(self, key: _Key, stub: FfnWorkerStub) -> None:
        """Until the connection ends; raises why."""
        description = await stub.Describe(pb.DescribeRequest(), timeout=_DESCRIBE_S)
        if (description.worker_id, description.epoch) != key:
            raise ConnectionError("it restarted since it was named")
        if description.identity != self.identity:
            raise OtherModel(f"it computes {description.identity}, not {self.identity}")
        lost = asyncio.Event()
        with self._number() as number:
            session = await self._connect(description, lost)
            log.info("rows go to %s", key[0], extra={"fields": {"link": session.path}})
            try:
                await self._use(number, session, stub, lost)
            except (grpc.aio.AioRpcError, ConnectionError) as error:
                reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
                raise WorkerLeft(str(reason)) from error

    async def _connect(self, description: pb.FfnDescription, lost: asyncio.Event) -> RowsSession:
        endpoints = {item.link: item.endpoint for item in description.links}
        on_lost = partial(_tell, asyncio.get_running_loop(), lost)
        how = (self.links, endpoints, self.offer, self.doorbell, on_lost)
        connecting = asyncio.create_task(asyncio.to_thread(connect_first, *how))
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:  # its thread goes on: what it opens must be closed
            with contextlib.suppress(RowsError):
                await asyncio.to_thread((await connecting).close)
            raise

    async def _use(
        self, number: int, session: RowsSession, stub: FfnWorkerStub, lost: asyncio.Event
    ) -> None:
        hearing = watching = None
        call: _FollowCall = stub.Follow()
        try:
            await self._on_loop_thread(lambda: self.experts.admit(number, session.segment))
            hearing = asyncio.create_task(self._hear(number, call))
            watching = asyncio.create_task(lost.wait())
            await asyncio.wait({hearing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if lost.is_set():
                raise ConnectionError(f"its {session.path} link broke")
            hearing.result()
        finally:
            for task in filter(None, (hearing, watching)):
                task.cancel()
                await asyncio.wait({task})
            call.cancel()
            await self._leave(number, session)

    async def _hear(self, number: int, call: _FollowCall) -> None:
        """Offers, as they come; each is answered once the loop's thread goes by it."""
        await call.write(pb.FollowCall(worker_id=self.offer.hello["worker_id"]))
        while isinstance(offer := await call.read(), pb.UnitsOffered):
            await self._apply(number, offer)
            await call.write(pb.FollowCall(known=offer.version))
        await call.code()
        raise ConnectionError("it ended the call")

    async def _apply(self, number: int, offer: pb.UnitsOffered) -> None:
        units = self.experts.units.unpack(offer.units)
        await self._on_loop_thread(lambda: self.experts.offer(number, units))

    async def _leave(self, number: int, session: RowsSession) -> None:
        """Shielded: a second cancellation must not leave the loop with a dead worker."""

        async def leave() -> None:
            await self._on_loop_thread(lambda: self.experts.dismiss(number))
            await asyncio.to_thread(session.close)

        await asyncio.shield(asyncio.create_task(leave()))

    async def _on_loop_thread(self, change: Callable[[], None]) -> None:
        """Returns when it was run there; raises what it raised."""
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                change()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self.experts.post(run)
        await asyncio.shield(asyncio.wrap_future(done))

    @contextlib.contextmanager
    def _number(self) -> Iterator[int]:
        """A worker's number in the exchange, given back when it has left."""
        free = (number for number in range(MAX_WORKERS) if number not in self._numbers)
        number = next(free, None)
        if number is None:
            raise ConnectionError(f"{MAX_WORKERS} FFN workers are connected already")
        self._numbers.add(number)
        try:
            yield number
        finally:
            self._numbers.discard(number)


def _tell(event_loop: asyncio.AbstractEventLoop, lost: asyncio.Event, _: RowsSession) -> None:
    event_loop.call_soon_threadsafe(lost.set)

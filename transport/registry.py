"""Who is in the cluster: workers attach to every router they know and report their load.

The open call is the membership. Whoever ends it, or falls silent on it, is gone; liveness comes
from the reports, never from the transport. A worker is known by (worker id, boot epoch): a new
epoch replaces the old one at once, and an epoch that was replaced does not come back.

Soft state only. A restarted router starts empty and is filled again by workers that re-attach by
themselves; its `router_epoch` tells them that it is another one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NoReturn, TypeAlias

import grpc
import grpc.aio

from transport.channel import connect
from transport.pace import Pace
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import RegistryServicer, RegistryStub
from transport.replaced import Replaced

SERVICE_NAME = "triptych.Registry"
FFN_ROLE = "ffn"

_AttachCall: TypeAlias = grpc.aio.StreamStreamCall[pb.WorkerReport, pb.RouterNote]

_TICKS = 12  # looks in the time that a worker may be silent
_GREETING_S = 5.0  # what a router may take for its first note, connecting included

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as its last report described it."""

    worker_id: str
    epoch: int  # random per process start
    role: str  # prefill | decode | draft | ffn
    address: str  # gRPC target
    model: str  # served name
    max_model_len: int  # tokens
    block_tokens: int
    num_blocks: int
    metrics_address: str  # host:port
    kv_identity: str = ""  # workers with the same give the same blocks the same hashes
    running: int = 0  # sequences
    waiting: int = 0  # sequences
    queued_tokens: int = 0  # prompt tokens not computed yet
    free_blocks: int = 0  # cached blocks count as free
    draining: bool = False  # finishes what it has; place nothing on it
    queued_pairs: float = 0.0  # of those prompt tokens, with the positions that each attends to
    pace: Pace = Pace()  # as measured there
    reported_at: float = field(default=0.0, compare=False)  # monotonic seconds of this process
    step_s: float = 0.0  # age of its engine's step under way


@dataclass(frozen=True, slots=True)
class Change:
    """A worker came or went. Loads are no changes: read `Directory.workers` when you place."""

    kind: Literal["joined", "left"]
    worker: WorkerView


class Directory(RegistryServicer):
    """The router's list of workers, kept by their Attach calls. Lives on one event loop.

    `on_change` hears every Change, in order, on that loop, and must not raise. A replaced epoch is
    first reported as left, then the new one as joined. `on_experts` hears what workers report of
    units of the FFN pool.
    """

    def __init__(
        self,
        *,
        silence_s: float = 3.0,
        on_change: Callable[[Change], None] = lambda change: None,
        on_experts: Callable[[WorkerView, pb.ExpertLoad], None] = lambda worker, load: None,
    ) -> None:
        self.epoch = secrets.randbits(64)
        self._silence_s = silence_s
        self._on_change = on_change
        self._on_experts = on_experts
        self._members: dict[str, _Member] = {}  # by worker id
        self._replaced = Replaced()
        self._news = asyncio.Event()  # set and exchanged at every report and departure

    def workers(self) -> list[WorkerView]:
        """All attached workers, ordered by id."""
        return [self._members[worker_id].view for worker_id in sorted(self._members)]

    async def wait_for(
        self, predicate: Callable[[list[WorkerView]], bool], timeout_s: float
    ) -> list[WorkerView]:
        """Waits until the list of workers satisfies `predicate` and returns it.

        The predicate is asked at once and after every report, arrival and departure. Raises
        TimeoutError that names the workers attached by then.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate(views := self.workers()):
                    await self._news.wait()
                return views
        except TimeoutError:
            attached = [view.worker_id for view in self.workers()]
            raise TimeoutError(f"not within {timeout_s:g} s; attached: {attached}") from None

    async def news(self) -> None:
        """Waits for the next report, arrival or departure."""
        await self._news.wait()

    def close(self) -> None:
        """Ends every Attach call, so that a stopping router need not wait for its workers."""
        for member in self._members.values():
            member.dismiss("router is stopping")

    async def Attach(
        self,
        reports: AsyncIterator[pb.WorkerReport],
        context: grpc.aio.ServicerContext[pb.WorkerReport, pb.RouterNote],
    ) -> None:
        """Membership for as long as the call is open and reports arrive."""
        first = await self._first_report(reports, context)
        member = self._join(first)
        beside = {
            asyncio.create_task(self._keep_told(member, context)),
            asyncio.create_task(self._mind_silence(member)),
        }
        try:
            await self._listen(member, reports)
        finally:
            self._leave(member)
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
        if member.dismissal:
            await context.abort(grpc.StatusCode.ABORTED, member.dismissal)

    async def _first_report(
        self,
        reports: AsyncIterator[pb.WorkerReport],
        context: grpc.aio.ServicerContext[pb.WorkerReport, pb.RouterNote],
    ) -> pb.WorkerReport:
        try:
            async with asyncio.timeout(self._silence_s):
                report = await anext(reports, pb.WorkerReport())
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, self._silence)
        for name in ("worker_id", "role", "address"):
            if not getattr(report.hello, name):
                problem = f"hello.{name}: missing; the first report must introduce the worker"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        if (report.hello.worker_id, report.hello.epoch) in self._replaced:
            problem = f"{report.hello.worker_id}: a newer process has taken this worker id"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, problem)
        return report

    async def _keep_told(
        self,
        member: _Member,
        context: grpc.aio.ServicerContext[pb.WorkerReport, pb.RouterNote],
    ) -> None:
        """A first note; to those who follow the FFN pool, another one whenever it changes."""
        while True:
            member.ffn_changed.clear()
            note = pb.RouterNote(router_epoch=self.epoch)
            if member.hello.follows_ffn:
                note.ffn_workers.extend(self._ffn_workers())
            await context.write(note)
            await member.ffn_changed.wait()

    def _ffn_workers(self) -> list[pb.FfnMember]:
        return [
            pb.FfnMember(worker_id=view.worker_id, epoch=view.epoch, address=view.address)
            for view in self.workers()
            if view.role == FFN_ROLE
        ]

    async def _listen(self, member: _Member, reports: AsyncIterator[pb.WorkerReport]) -> None:
        """Until the worker hangs up or is dismissed."""
        try:
            async with asyncio.timeout(None) as member.patience:
                while not member.dismissal:
                    report = await anext(reports, None)
                    if report is None:
                        return
                    member.silent_s = 0.0
                    member.view = _seen(member.hello, report.load)
                    self._pass_on(member.view, report.load)
                    self._spread_news()
        except TimeoutError:
            assert member.dismissal, "nothing else lets the patience run out"

    async def _mind_silence(self, member: _Member) -> None:
        """Dismisses a member that falls silent. Only time in which this process was awake counts:
        behind a pause of its own (a machine out of memory, a suspended one) reports lie unread, and
        all workers would seem to be gone at once.
        """
        clock, tick_s = asyncio.get_running_loop().time, self._silence_s / _TICKS
        while not member.dismissal:
            began = clock()
            await asyncio.sleep(tick_s)
            member.silent_s += min(clock() - began, 2 * tick_s)
            if member.silent_s >= self._silence_s:
                member.dismiss(self._silence)

    @property
    def _silence(self) -> str:
        return f"no report for {self._silence_s:g} s"

    def _join(self, first: pb.WorkerReport) -> _Member:
        member = _Member(first.hello, _seen(first.hello, first.load))
        old = self._members.get(member.view.worker_id)
        self._members[member.view.worker_id] = member
        if old is not None:
            old.dismiss("attached again")
        if old is not None and old.view.epoch != member.view.epoch:
            self._replaced.add(old.view.worker_id, old.view.epoch)
            self._tell("left", old.view, "replaced by a newer process")
        if old is None or old.view.epoch != member.view.epoch:
            self._tell("joined", member.view, member.view.address)
        self._pass_on(member.view, first.load)
        self._spread_news()
        return member

    def _pass_on(self, worker: WorkerView, load: pb.WorkerLoad) -> None:
        if load.HasField("experts"):
            self._on_experts(worker, load.experts)

    def _leave(self, member: _Member) -> None:
        if self._members.get(member.view.worker_id) is not member:
            return  # another call speaks for this worker now
        del self._members[member.view.worker_id]
        self._tell("left", member.view, member.dismissal or "call ended")
        self._spread_news()

    def _tell(self, kind: Literal["joined", "left"], view: WorkerView, why: str) -> None:
        fields = {"worker": view.worker_id, "epoch": f"{view.epoch:x}", "role": view.role}
        _log.info("worker %s: %s", kind, why, extra={"fields": fields})
        self._on_change(Change(kind, view))
        if view.role == FFN_ROLE:
            for member in self._members.values():
                if member.hello.follows_ffn:
                    member.ffn_changed.set()

    def _spread_news(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


@dataclass(slots=True, eq=False)
class _Member:
    """One open Attach call."""

    hello: pb.WorkerHello
    view: WorkerView
    dismissal: str | None = None  # why the router ends the call
    patience: asyncio.Timeout | None = None  # runs out when it is dismissed
    silent_s: float = 0.0  # since its last report
    ffn_changed: asyncio.Event = field(default_factory=asyncio.Event)

    def dismiss(self, reason: str) -> None:
        self.dismissal = reason
        if self.patience is not None and not self.patience.expired():
            self.patience.reschedule(asyncio.get_running_loop().time())


def _seen(hello: pb.WorkerHello, load: pb.WorkerLoad) -> WorkerView:
    return WorkerView(
        worker_id=hello.worker_id,
        epoch=hello.epoch,
        role=hello.role,
        address=hello.address,
        model=hello.model,
        max_model_len=hello.max_model_len,
        block_tokens=hello.block_tokens,
        num_blocks=hello.num_blocks,
        metrics_address=hello.metrics_address,
        kv_identity=hello.kv_identity,
        running=load.running,
        waiting=load.waiting,
        queued_tokens=load.queued_tokens,
        free_blocks=load.free_blocks,
        draining=load.draining,
        queued_pairs=load.queued_pairs,
        pace=Pace.of(load.pace),
        reported_at=time.monotonic(),
        step_s=load.step_s,
    )


async def stay_attached(
    target: str,
    hello: pb.WorkerHello,
    load: Callable[[], pb.WorkerLoad],
    *,
    interval_s: float = 0.25,
    on_note: Callable[[pb.RouterNote], None] = lambda note: None,
    on_attached: Callable[[bool], None] = lambda attached: None,
) -> NoReturn:
    """Keeps this worker attached to the router at `target`; cancelled to leave.

    Sends `load()` every `interval_s`; `on_note` hears every note, `on_attached` of each beginning
    and end of the attachment. When the call breaks, attaches
    anew for ever, with jittered back-off of at most a second; each loss is logged once, however
    long it lasts.
    """
    fields = {"router": target, "worker": hello.worker_id}
    complained = False
    delays = back_off()
    while True:
        try:
            # A new channel each time: ours is then the only back-off.
            async with connect(target) as channel:
                call: _AttachCall = RegistryStub(channel).Attach()
                note = await _introduce(call, pb.WorkerReport(hello=hello, load=load()))
                _log.info("attached to router %x", note.router_epoch, extra={"fields": fields})
                complained, delays = False, back_off()
                on_attached(True)
                on_note(note)
                await _report(call, load, interval_s, on_note)
        except (grpc.aio.AioRpcError, TimeoutError, ConnectionError) as error:
            if not complained:
                reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
                _log.warning("not attached to router: %s", reason, extra={"fields": fields})
                complained = True
        on_attached(False)
        await asyncio.sleep(next(delays))


async def _introduce(call: _AttachCall, first: pb.WorkerReport) -> pb.RouterNote:
    try:
        async with asyncio.timeout(_GREETING_S):
            await call.write(first)
            note = await call.read()
    except TimeoutError:
        raise TimeoutError(f"no answer within {_GREETING_S:g} s") from None
    if not isinstance(note, pb.RouterNote):
        raise ConnectionError("router hung up")
    return note


async def _report(
    call: _AttachCall,
    load: Callable[[], pb.WorkerLoad],
    interval_s: float,
    on_note: Callable[[pb.RouterNote], None],
) -> None:
    """Until the call ends; raises its status."""
    reading = asyncio.create_task(_read_notes(call, on_note))
    try:
        while not call.done():
            await call.write(pb.WorkerReport(load=load()))
            await asyncio.wait({reading}, timeout=interval_s)
        await reading
    finally:
        reading.cancel()
        await asyncio.wait({reading})


async def _read_notes(call: _AttachCall, on_note: Callable[[pb.RouterNote], None]) -> None:
    """Until the call ends; raises its status."""
    while isinstance(note := await call.read(), pb.RouterNote):
        on_note(note)


def back_off() -> Iterator[float]:
    """Delays in seconds: doubling up to one, each between half and all of its nominal value."""
    nominal = 0.05
    while True:
        yield nominal * random.uniform(0.5, 1.0)
        nominal = min(1.0, 2 * nominal)

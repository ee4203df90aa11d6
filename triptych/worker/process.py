"""The life of a worker process: serve, attach to the routers, drain on SIGTERM, leave nothing
behind.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NoReturn

import grpc
import uvloop

from transport.channel import RunningServer, start_server
from transport.kv_feed import PrefixCache, publish_cache
from transport.protos import worker_pb2 as pb
from transport.registry import stay_attached
from triptych.config import Role
from triptych.engine.thread import StepThread
from triptych.errors import TriptychError
from triptych.obs.experts import ExpertCollector
from triptych.obs.metrics import MetricsServer, WorkerMetrics, new_registry
from triptych.startup import set_up_process
from triptych.wire import to_status
from triptych.worker.args import WorkerArgs, parse_worker_args
from triptych.worker.boot import EngineParts, build_engine
from triptych.worker.pace import report_pace
from triptych.worker.vitals import Vitals

log = logging.getLogger(__name__)

_REPORT_S = 0.25
_TEND_S = 1.0
_BLOCKING_CALLS = 128  # transfers waited for and digests computed at once
_FAREWELL_S = 3.0  # for the last words to those whose requests go on elsewhere
_NOTICE_S = 2 * _REPORT_S  # routers learn that a worker drains before its server says no


@dataclass(frozen=True, slots=True)
class RoleParts:
    """What a role adds to the common process."""

    thread: StepThread
    register: Callable[[grpc.aio.Server], None]
    service_name: str
    load: Callable[[], pb.WorkerLoad]  # without `draining`
    tend: Callable[[], Awaitable[None]]  # called every second
    close: Callable[[], Awaitable[None]]  # after the last call ended
    serving: Callable[[str], None] = lambda address: None  # called once, with its server's address
    leave: Callable[[], None] = lambda: None  # called when no new request may come any more
    # Called when the drain is over: what is still open goes on elsewhere. None: it is cancelled.
    hand_over: Callable[[], None] | None = None
    size: pb.WorkerHello = field(default_factory=pb.WorkerHello)  # what an engine has to tell
    on_note: Callable[[pb.RouterNote], None] = lambda note: None  # hears what the router tells
    cache: PrefixCache | None = None  # routers are told what it holds
    # Adds the rows that it sent to each unit, for the router that moves experts: the first.
    tell_units: Callable[[pb.WorkerLoad], None] = lambda load: None


Fail = Callable[[BaseException], None]
BuildRole = Callable[[WorkerArgs, EngineParts, WorkerMetrics, Fail], RoleParts]
Build = Callable[[WorkerMetrics, Fail], RoleParts]
Prepare = Callable[[WorkerArgs], Build]


def run_worker(role: Role, build_role: BuildRole, argv: Sequence[str] | None = None) -> None:
    """Runs one worker until SIGTERM or SIGINT; exit code 0 after a drain, 1 after a failure."""
    run_helper(role, partial(_build_with_engine, build_role), argv)


def run_helper(role: Role, prepare: Prepare, argv: Sequence[str] | None = None) -> None:
    """`run_worker` for a role without an engine of its own.

    `prepare` does what takes long and what may be refused, before anything is served; what it
    returns puts the role together, on the event loop.
    """
    try:
        args = parse_worker_args(role, argv)
        flush_traces = set_up_process(args.config, args.worker_id)
        build = prepare(args)
    except TriptychError as error:
        sys.exit(f"{role}_worker: {error}")
    code = uvloop.run(_serve(role, args, build))
    flush_traces()
    sys.exit(code)


def _build_with_engine(build_role: BuildRole, args: WorkerArgs) -> Build:
    parts = build_engine(args)

    def build(metrics: WorkerMetrics, fail: Fail) -> RoleParts:
        role = build_role(args, parts, metrics, fail)
        size = pb.WorkerHello(
            max_model_len=parts.max_model_len,
            block_tokens=parts.layout.block_tokens,
            num_blocks=parts.pool.num_blocks,
            kv_identity=parts.layout_text,
        )

        def load() -> pb.WorkerLoad:
            report_pool(metrics, parts)
            report = role.load()
            report_pace(report, metrics.pace, parts)
            return report

        tend = partial(_tend_engine, parts, role)
        whole = replace(role, size=size, load=load, tend=tend, cache=parts.pool)
        return whole if parts.experts is None else _with_ffn_pool(args, parts, metrics, whole)

    return build


def _with_ffn_pool(
    args: WorkerArgs, parts: EngineParts, metrics: WorkerMetrics, role: RoleParts
) -> RoleParts:
    """The same role, connected with the FFN workers that compute for it."""
    assert parts.experts is not None, "the caller asked"
    experts = parts.experts.experts
    pool = parts.experts.pool(
        args.config.experts,
        worker_id=args.worker_id,
        epoch=args.epoch,
        run_dir=args.run_dir,
        host=args.kv_host,
    )
    experts.run_on(partial(role.thread.post, experts.take_changes))
    ExpertCollector(experts.tally, metrics.registry)
    role.size.follows_ffn = True

    async def close() -> None:
        experts.run_on(experts.take_changes)  # the loop's thread has ended
        await pool.close()
        await role.close()

    return replace(role, tell_units=pool.report, on_note=pool.on_note, close=close)


async def _serve(role: Role, args: WorkerArgs, build: Build) -> int:
    leave = asyncio.Event()
    failures: list[BaseException] = []
    event_loop = asyncio.get_running_loop()
    event_loop.set_default_executor(ThreadPoolExecutor(_BLOCKING_CALLS, "blocking"))
    for number in (signal.SIGTERM, signal.SIGINT):
        event_loop.add_signal_handler(number, leave.set)

    def fail(error: BaseException) -> None:
        failures.append(error)
        event_loop.call_soon_threadsafe(leave.set)

    registry = new_registry()
    metrics = WorkerMetrics(registry)
    role_parts = build(metrics, fail)
    role_parts.thread.start()
    server = await start_server(
        args.listen, [role_parts.register], [role_parts.service_name], to_status
    )

    role_parts.serving(server.address)
    vitals = Vitals(lambda: role_parts.thread.step_s, args.config.router.step_limit_s)
    checks = {"/live": vitals.live, "/ready": vitals.ready}
    metrics_server = MetricsServer(registry, args.metrics_host, args.metrics_port, checks)

    def load() -> pb.WorkerLoad:
        report = role_parts.load()
        report.draining = leave.is_set()
        report.step_s = role_parts.thread.step_s
        return report

    def load_with_units() -> pb.WorkerLoad:
        report = load()
        role_parts.tell_units(report)
        return report

    hello = pb.WorkerHello(
        worker_id=args.worker_id,
        epoch=args.epoch,
        role=role,
        address=server.address,
        model=args.config.served_name,
        metrics_address=metrics_server.address,
    )
    hello.MergeFrom(role_parts.size)
    tasks = [asyncio.create_task(_tend(role_parts)), asyncio.create_task(vitals.beat())]
    for router in args.registries:
        attachment = stay_attached(
            router,
            hello,
            load_with_units if router == args.registries[0] else load,
            interval_s=_REPORT_S,
            on_note=role_parts.on_note,
            on_attached=partial(vitals.attached, router),
        )
        tasks.append(asyncio.create_task(attachment))
        if role_parts.cache is not None:
            publishing = publish_cache(router, args.worker_id, args.epoch, role_parts.cache)
            tasks.append(asyncio.create_task(publishing))
    for task in tasks:
        task.add_done_callback(partial(_report_end, fail))
    gc.freeze()  # what was loaded stays; looking through it again would stop every stream for 0.1 s
    log.info("ready", extra={"fields": {"address": server.address, "epoch": args.epoch}})

    await leave.wait()
    vitals.draining = True
    if not failures:
        log.info("draining", extra={"fields": {"limit_s": args.config.drain_s}})
        await asyncio.sleep(_NOTICE_S)
        role_parts.leave()
    await _stop(server, role_parts, 0 if failures else args.config.drain_s)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    if not failures:
        role_parts.thread.stop()
    await role_parts.close()
    metrics_server.close()
    log.info("stopped")
    return 1 if failures else 0


async def _stop(server: RunningServer, role: RoleParts, drain_s: float) -> None:
    if role.hand_over is None or not drain_s:
        await server.stop(drain_s)
        return
    stopping = asyncio.create_task(server.stop(drain_s + _FAREWELL_S))
    await asyncio.wait({stopping}, timeout=drain_s)
    role.hand_over()
    await stopping


def _report_end(fail: Fail, task: asyncio.Task[NoReturn] | asyncio.Task[None]) -> None:
    """A worker that nobody knows of, or that nobody tends, is of no use: it must not live on."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.critical("a task of the worker ended", exc_info=error)
        fail(error)


async def _tend(role: RoleParts) -> None:
    """What has to be looked at now and then, off the request's path."""
    while True:
        await role.tend()
        await asyncio.sleep(_TEND_S)


async def _tend_engine(parts: EngineParts, role: RoleParts) -> None:
    if parts.pool.counts()["quarantine"]:
        await asyncio.to_thread(parts.ledger.sweep)
        role.thread.post(_wake)
    await role.tend()


def _wake() -> None:
    """For an idle loop whose waiting sequences may find blocks now."""


def report_pool(metrics: WorkerMetrics, parts: EngineParts) -> None:
    """Copies the pool's counts into its gauges."""
    counts = parts.pool.counts()
    for (owner, state), key in _POOL_GAUGES.items():
        metrics.kv_blocks.labels(owner, state).set(counts[key])
    metrics.oldest_transfer_seconds.set(parts.ledger.oldest_age_s())


_POOL_GAUGES = {
    ("pool", "free"): "free",
    ("prefix", "cached"): "cached",
    ("request", "held"): "request",
    ("transfer", "held"): "transfer",
    ("transfer", "quarantined"): "quarantine",
}

"""How workers come and go, as the router sees it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from transport.channel import connect
from transport.pace import Pace, StepCost
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import RegistryStub, add_RegistryServicer_to_server
from transport.registry import SERVICE_NAME, Change, Directory, WorkerView, stay_attached

PATIENCE_S = 10.0


def hello(worker_id: str = "decode-0", epoch: int = 1, **fields: Any) -> pb.WorkerHello:
    fields = {"role": "decode", "address": f"unix:/run/{worker_id}.sock"} | fields
    return pb.WorkerHello(worker_id=worker_id, epoch=epoch, **fields)


def idle() -> pb.WorkerLoad:
    return pb.WorkerLoad()


def counting() -> Callable[[], pb.WorkerLoad]:
    """A load that is told apart in every report: 1, 2, 3 … running."""
    reports = itertools.count(1)
    return lambda: pb.WorkerLoad(running=next(reports))


async def open_registry(serve, address, **options: Any) -> tuple[Directory, str]:
    directory = Directory(**options)
    server = await serve(
        address,
        lambda server: add_RegistryServicer_to_server(directory, server),
        names=(SERVICE_NAME,),
    )
    return directory, server.address


async def second_report(directory: Directory) -> None:
    """Waits for a `counting` worker to report again: by then it knows that it is attached."""
    [worker] = await directory.wait_for(lambda workers: len(workers) == 1, PATIENCE_S)
    await directory.wait_for(lambda workers: workers[0].running > worker.running, PATIENCE_S)


@contextlib.asynccontextmanager
async def attached(target: str, *args: Any, **options: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """A worker that stays attached while the block runs."""
    task = asyncio.create_task(stay_attached(target, *args, interval_s=0.02, **options))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def attach_by_hand(channel: grpc.aio.Channel, greeting: pb.WorkerHello, **load: int) -> Any:
    """An Attach call that sent one report and got its note, but sends no more by itself."""
    call = RegistryStub(channel).Attach()
    await call.write(pb.WorkerReport(hello=greeting, load=pb.WorkerLoad(**load)))
    assert isinstance(await call.read(), pb.RouterNote)
    return call


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    return caught.value.code(), caught.value.details()


def nobody(workers: list[WorkerView]) -> bool:
    return not workers


def ids(workers: list[WorkerView]) -> list[str]:
    return [worker.worker_id for worker in workers]


async def test_a_worker_appears_as_it_introduced_itself(serve, address):
    directory, target = await open_registry(serve, address)
    greeting = hello(
        epoch=2**64 - 1,
        model="smollm2",
        max_model_len=2048,
        block_tokens=16,
        num_blocks=100,
        metrics_address="127.0.0.1:9100",
    )
    pace = Pace(prefill=StepCost(0.01, 1e-4, 1e-8), chunk_tokens=512, tokens_per_step=1.5)
    load = pb.WorkerLoad(running=1, waiting=2, queued_tokens=3, free_blocks=4, draining=True)
    load.queued_pairs = 4.5
    load.pace.CopyFrom(pace.message())
    async with attached(target, greeting, lambda: load):
        [worker] = await directory.wait_for(lambda workers: len(workers) == 1, PATIENCE_S)
    assert worker == WorkerView(
        worker_id="decode-0",
        epoch=2**64 - 1,
        role="decode",
        address="unix:/run/decode-0.sock",
        model="smollm2",
        max_model_len=2048,
        block_tokens=16,
        num_blocks=100,
        metrics_address="127.0.0.1:9100",
        running=1,
        waiting=2,
        queued_tokens=3,
        free_blocks=4,
        draining=True,
        queued_pairs=4.5,
        pace=pace,
    )


async def test_workers_are_listed_by_id(serve, address):
    directory, target = await open_registry(serve, address)
    async with attached(target, hello("b"), idle), attached(target, hello("a"), idle):
        workers = await directory.wait_for(lambda workers: len(workers) == 2, PATIENCE_S)
    assert ids(workers) == ["a", "b"]


async def test_the_load_follows_the_reports(serve, address):
    directory, target = await open_registry(serve, address)
    load = pb.WorkerLoad(running=1)
    async with attached(target, hello(), lambda: load):
        await directory.wait_for(lambda workers: [w.running for w in workers] == [1], PATIENCE_S)
        load.running, load.draining = 7, True
        await directory.wait_for(
            lambda workers: [(w.running, w.draining) for w in workers] == [(7, True)], PATIENCE_S
        )


async def test_a_worker_that_is_cancelled_leaves_at_once(serve, address):
    directory, target = await open_registry(serve, address, silence_s=3600)
    async with attached(target, hello(), idle):
        await directory.wait_for(lambda workers: ids(workers) == ["decode-0"], PATIENCE_S)
    await directory.wait_for(nobody, PATIENCE_S)


async def test_a_worker_vanishes_when_its_connection_breaks(serve, address):
    directory, target = await open_registry(serve, address, silence_s=3600)
    async with connect(target) as channel:
        await attach_by_hand(channel, hello())
        assert ids(directory.workers()) == ["decode-0"]
    await directory.wait_for(nobody, PATIENCE_S)


async def test_a_silent_worker_is_dropped_though_its_connection_stands(serve, address):
    directory, target = await open_registry(serve, address, silence_s=0.2)
    async with connect(target) as channel:
        call = await attach_by_hand(channel, hello())
        await directory.wait_for(nobody, PATIENCE_S)
        assert await status_of(call) == (grpc.StatusCode.ABORTED, "no report for 0.2 s")


async def test_reports_keep_a_worker_beyond_the_silence_limit(serve, address):
    changes: list[Change] = []
    directory, target = await open_registry(serve, address, silence_s=0.5, on_change=changes.append)
    async with attached(target, hello(), counting()):  # one in 20 ms: 40 of them take 0.8 s
        await directory.wait_for(
            lambda workers: any(worker.running >= 40 for worker in workers), PATIENCE_S
        )
        assert [change.kind for change in changes] == ["joined"]


async def test_a_router_that_stood_still_itself_drops_nobody(serve, address):
    changes: list[Change] = []
    directory, target = await open_registry(serve, address, silence_s=0.3, on_change=changes.append)
    async with attached(target, hello(), counting()):
        await second_report(directory)
        time.sleep(1.0)  # noqa: ASYNC251 - as a process that gets no memory or no core
        await second_report(directory)
    assert [change.kind for change in changes] == ["joined"]


async def test_a_call_that_never_reports_is_ended(serve, address):
    _, target = await open_registry(serve, address, silence_s=0.1)
    async with connect(target) as channel:
        call = RegistryStub(channel).Attach()
        assert (await status_of(call))[0] is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("report", "field"),
    [
        (pb.WorkerReport(load=pb.WorkerLoad(running=1)), "worker_id"),
        (pb.WorkerReport(hello=pb.WorkerHello(worker_id="a", address="unix:/a")), "role"),
        (pb.WorkerReport(hello=pb.WorkerHello(worker_id="a", role="decode")), "address"),
    ],
)
async def test_a_report_without_introduction_is_refused_naming_the_field(
    report, field, serve, address
):
    directory, target = await open_registry(serve, address)
    async with connect(target) as channel:
        call = RegistryStub(channel).Attach()
        await call.write(report)
        code, details = await status_of(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(f"hello.{field}: ")
    assert directory.workers() == []


async def test_a_new_epoch_replaces_the_old_one_at_once_and_for_good(serve, address):
    changes: list[Change] = []
    directory, target = await open_registry(
        serve, address, silence_s=3600, on_change=changes.append
    )
    async with connect(target) as old_channel, connect(target) as new_channel:
        old = await attach_by_hand(old_channel, hello(epoch=1))
        new = await attach_by_hand(new_channel, hello(epoch=2))
        assert [worker.epoch for worker in directory.workers()] == [2]
        # The old call ends, and takes nothing but itself along.
        assert await status_of(old) == (grpc.StatusCode.ABORTED, "attached again")
        assert [worker.epoch for worker in directory.workers()] == [2]
        assert [(change.kind, change.worker.epoch) for change in changes] == [
            ("joined", 1),
            ("left", 1),
            ("joined", 2),
        ]
        # A process that was replaced does not take its name back.
        zombie = RegistryStub(old_channel).Attach()
        await zombie.write(pb.WorkerReport(hello=hello(epoch=1)))
        assert (await status_of(zombie))[0] is grpc.StatusCode.FAILED_PRECONDITION
        assert [worker.epoch for worker in directory.workers()] == [2]
        new.cancel()
        await directory.wait_for(nobody, PATIENCE_S)


async def test_the_same_epoch_on_a_new_connection_is_no_change(serve, address):
    changes: list[Change] = []
    directory, target = await open_registry(
        serve, address, silence_s=3600, on_change=changes.append
    )
    async with connect(target) as old_channel, connect(target) as new_channel:
        old = await attach_by_hand(old_channel, hello(), running=1)
        await attach_by_hand(new_channel, hello(), running=2)
        assert (await status_of(old))[0] is grpc.StatusCode.ABORTED
        assert [worker.running for worker in directory.workers()] == [2]
        assert [change.kind for change in changes] == ["joined"]


async def test_workers_re_attach_to_a_restarted_router(serve, address, caplog):
    caplog.set_level(logging.INFO, logger="transport.registry")
    first = Directory()
    server = await serve(address, lambda server: add_RegistryServicer_to_server(first, server))
    async with attached(server.address, hello(), counting()):
        await second_report(first)
        await server.stop(0.0)
        assert first.workers() == []
        second, _ = await open_registry(serve, server.address)
        await second_report(second)
    told = [record.getMessage() for record in caplog.records if "attached" in record.message]
    assert len(told) == 3
    assert told[0] == f"attached to router {first.epoch:x}"
    assert told[1].startswith("not attached to router: ")
    assert told[2] == f"attached to router {second.epoch:x}"


async def test_a_worker_may_start_before_its_router_and_complains_once(serve, address, caplog):
    attempts = 0

    def load() -> pb.WorkerLoad:
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            third_attempt.set()
        return pb.WorkerLoad()

    third_attempt = asyncio.Event()
    server = await serve(address)  # an address, but nobody there
    await server.stop(0.0)
    async with attached(server.address, hello(), load):
        await third_attempt.wait()
        directory, _ = await open_registry(serve, server.address)
        await directory.wait_for(lambda workers: ids(workers) == ["decode-0"], PATIENCE_S)
    complaints = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(complaints) == 1
    assert complaints[0].fields == {"router": server.address, "worker": "decode-0"}


async def test_a_load_that_raises_ends_the_attachment(serve, address):
    _, target = await open_registry(serve, address)

    def broken() -> pb.WorkerLoad:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await stay_attached(target, hello(), broken)


async def test_wait_for_asks_only_when_there_is_news(serve, address):
    directory, target = await open_registry(serve, address, silence_s=3600)
    asked = []

    def two_running(workers: list[WorkerView]) -> bool:
        asked.append([worker.running for worker in workers])
        return asked[-1] == [2]

    waiting = asyncio.create_task(directory.wait_for(two_running, PATIENCE_S))
    async with connect(target) as channel:
        call = await attach_by_hand(channel, hello(), running=1)
        await call.write(pb.WorkerReport(load=pb.WorkerLoad(running=2)))
        [worker] = await waiting
    assert worker.running == 2
    assert asked == [[], [1], [2]]


async def test_a_wait_that_runs_out_names_who_is_attached(serve, address):
    directory, target = await open_registry(serve, address, silence_s=3600)
    async with connect(target) as channel:
        await attach_by_hand(channel, hello())
        with pytest.raises(TimeoutError, match=r"not within 0\.01 s; attached: \['decode-0'\]"):
            await directory.wait_for(nobody, 0.01)


async def test_a_closed_directory_lets_its_server_stop_at_once(serve, address):
    directory = Directory(silence_s=3600)
    server = await serve(address, lambda server: add_RegistryServicer_to_server(directory, server))
    async with connect(server.address) as channel:
        call = await attach_by_hand(channel, hello())
        directory.close()
        async with asyncio.timeout(PATIENCE_S):
            await server.stop(3600)
        assert await status_of(call) == (grpc.StatusCode.ABORTED, "router is stopping")
    assert directory.workers() == []

"""A home's connections with the FFN workers that the router names."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from transport.protos import worker_pb2 as pb
from transport.rows.session import RowsLink, RowsSession
from triptych.config import ExpertsConfig
from triptych.engine.thread import StepThread
from triptych.experts.pool import FfnPool
from triptych.testing.cluster import eventually

TIMEOUT_S = 20.0


@pytest.fixture
def checkpoint(checkpoints):
    return checkpoints["mixture"]


class PooledHome:
    """A home whose loop runs on a thread of its own, and its pool."""

    def __init__(self, home: Any, run_dir: Path) -> None:
        self.home = home
        self.failures: list[BaseException] = []
        settings = ExpertsConfig.model_validate({"links": [home.link_name]})
        self.pool: FfnPool = home.parts.pool(
            settings, worker_id="decode-0", epoch=5, run_dir=run_dir, host="127.0.0.1"
        )
        self.thread = StepThread(lambda: False, self.failures.append, "home")
        self.thread.start()
        home.experts.run_on(lambda: self.thread.post(home.experts.take_changes))

    def name(self, *workers: Any) -> None:
        """The router names these."""
        self.pool.on_note(pb.RouterNote(ffn_workers=[worker.member for worker in workers]))

    async def forward(self, jobs: Any) -> torch.Tensor:
        event_loop = asyncio.get_running_loop()
        found: asyncio.Future[torch.Tensor] = event_loop.create_future()

        def run() -> None:
            result = self.home.forward(jobs)
            event_loop.call_soon_threadsafe(found.set_result, result)

        self.thread.post(run)
        async with asyncio.timeout(TIMEOUT_S):
            return await found

    async def hosts(self, count: int) -> None:
        """Waits until so many units have a worker."""
        tables = self.home.parts.exchange.tables
        await until(lambda: int((tables[..., 0] >= 0).sum()) == count)

    async def close(self) -> None:
        self.thread.stop()
        self.home.experts.run_on(self.home.experts.take_changes)
        await self.pool.close()
        assert not self.failures
        assert (self.home.parts.exchange.tables == -1).all()
        assert self.home.experts.tally.workers == 0


async def until(true: Callable[[], bool]) -> None:
    """For what happens on other threads, which have no event for us."""

    async def probe() -> bool:
        return bool(true())

    await eventually(probe, TIMEOUT_S)


@pytest.fixture
async def pooled(make_home, tmp_path: Path, serve_ffn):
    """The home goes before its workers do."""
    async with contextlib.AsyncExitStack() as stack:

        def make(**settings: Any) -> PooledHome:
            home = PooledHome(make_home(**settings), tmp_path)
            stack.push_async_callback(home.close)
            return home

        yield make


def messages(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [message for message in caplog.messages if part in message]


async def test_workers_that_are_named_get_rows(serve_ffn, pooled, checkpoint, jobs) -> None:
    first, second = await serve_ffn(name="ffn-0"), await serve_ffn(name="ffn-1")
    home = pooled()
    home.name(first, second)
    await home.hosts(16)
    await until(lambda: home.home.experts.tally.workers == 2)
    assert torch.equal(await home.forward(jobs), checkpoint.wanted(jobs))
    assert home.home.experts.tally.rows_at_home == 0
    assert first.service.offer.num_followers == second.service.offer.num_followers == 1
    load = pb.WorkerLoad()
    home.pool.report(load)
    assert sum(load.experts.rows) == 2 * 2 * sum(job.num_rows for job in jobs)
    assert list(load.experts.per_layer) == [8, 0, 8]
    again = pb.WorkerLoad()
    home.pool.report(again)
    assert not again.HasField("experts"), "once a second is enough"


async def test_a_closed_pool_leaves_nothing_behind(serve_ffn, pooled) -> None:
    worker, home = await serve_ffn(), pooled()
    home.name(worker)
    await home.hosts(16)
    await home.pool.close()
    await until(lambda: worker.service.offer.num_followers == 0)
    await until(lambda: int(worker.inbox.stats[0]["peers"]) == 0)
    assert not home.pool._tasks and not home.pool._numbers


class SlowLink:
    """Has connected long before it says so."""

    def __init__(self, link: RowsLink) -> None:
        self.name = link.name
        self.connected, self.may_return = threading.Event(), threading.Event()
        self._link = link

    def connect(self, *how: Any) -> RowsSession:
        session = self._link.connect(*how)
        self.connected.set()
        self.may_return.wait(TIMEOUT_S)
        return session


async def test_a_pool_that_is_closed_while_it_connects_leaves_nothing_behind(
    serve_ffn, pooled
) -> None:
    worker, home = await serve_ffn(), pooled()
    link = SlowLink(home.pool.links[0])
    home.pool.links = [link]
    home.name(worker)
    await until(link.connected.is_set)
    closing = asyncio.create_task(home.pool.close())
    await asyncio.wait({closing}, timeout=0.05)
    link.may_return.set()
    await closing
    assert not home.pool._tasks and not home.pool._numbers
    await until(lambda: int(worker.inbox.stats[0]["peers"]) == 0)


async def test_a_worker_of_another_model_is_refused_and_said_to_be(
    serve_ffn, pooled, caplog
) -> None:
    worker, home = await serve_ffn(), pooled()
    worker.service.description.identity = '{"weights": "of another model"}'
    home.name(worker)
    await until(lambda: bool(messages(caplog, "is not used")))
    [message] = messages(caplog, "ffn-0")
    assert "of another model" in message and home.pool.identity in message
    assert worker.service.offer.num_followers == 0
    assert home.home.experts.tally.workers == 0


async def test_units_that_move_are_followed(serve_ffn, pooled, checkpoint, jobs) -> None:
    worker, home = await serve_ffn(), pooled()
    home.name(worker)
    await home.hosts(16)
    units = list(worker.units)
    await worker.service.withdraw(units[:5])
    assert (home.home.parts.exchange.tables[..., 0] >= 0).sum() == 11, "known before it is over"
    assert torch.equal(await home.forward(jobs), checkpoint.wanted(jobs))
    assert home.home.experts.tally.rows_at_home > 0
    refused, _ = await worker.service.host(units)
    assert not refused and (home.home.parts.exchange.tables[..., 0] >= 0).sum() == 16


async def test_a_worker_that_hangs_up_is_left_and_found_again(
    serve_ffn, pooled, checkpoint, jobs, caplog
) -> None:
    worker, home = await serve_ffn(), pooled()
    address = worker.address
    home.name(worker)
    for _ in range(2):
        await home.hosts(16)
        await worker.stop()
        await home.hosts(0)
        assert torch.equal(await home.forward(jobs), checkpoint.wanted(jobs))
        await worker.serve(address)
    await home.hosts(16)
    before = home.home.experts.tally.rows_at_home
    assert torch.equal(await home.forward(jobs), checkpoint.wanted(jobs))
    assert home.home.experts.tally.rows_at_home == before
    assert len(messages(caplog, "is away")) == 2, "each loss is told once"


async def test_a_link_that_breaks_ends_the_connection(serve_ffn, pooled, caplog) -> None:
    worker, home = await serve_ffn(), pooled()
    home.name(worker)
    await home.hosts(16)
    await asyncio.to_thread(worker.server.close)
    await home.hosts(0)
    await until(lambda: worker.service.offer.num_followers == 0)
    await until(lambda: bool(messages(caplog, f"its {home.home.link_name} link broke")))


async def test_a_worker_that_restarted_is_another_one(
    serve_ffn, pooled, checkpoint, jobs, caplog
) -> None:
    old = await serve_ffn(epoch=1)
    home = pooled()
    home.name(old)
    await home.hosts(16)
    await old.stop()
    await asyncio.to_thread(old.server.close)
    new = await serve_ffn(epoch=2)
    home.name(new)
    await until(lambda: new.service.offer.num_followers == 1)
    await home.hosts(16)
    assert torch.equal(await home.forward(jobs), checkpoint.wanted(jobs))
    await until(lambda: len(home.pool._tasks) == 1)  # the old one is not tried for ever


async def test_one_that_answers_under_the_name_of_another_is_not_used(
    serve_ffn, pooled, caplog
) -> None:
    worker, home = await serve_ffn(epoch=2), pooled()
    stale = pb.FfnMember(worker_id="ffn-0", epoch=1, address=worker.address)
    home.pool.on_note(pb.RouterNote(ffn_workers=[stale]))
    await until(lambda: bool(messages(caplog, "it restarted since it was named")))
    assert worker.service.offer.num_followers == 0


async def test_a_restarted_router_that_names_nobody_yet_changes_nothing(
    serve_ffn, pooled, checkpoint, jobs
) -> None:
    worker, home = await serve_ffn(), pooled()
    home.name(worker)
    await home.hosts(16)
    home.name()
    assert torch.equal(await home.forward(jobs), checkpoint.wanted(jobs))
    assert worker.service.offer.num_followers == 1
    home.name(worker)
    assert len(home.pool._tasks) == 1
    home.name()
    await worker.stop()  # and now it is gone: nobody looks for it any more
    await until(lambda: not home.pool._tasks)
    await home.hosts(0)


async def test_a_worker_that_stops_hands_its_rows_over_before_it_goes(
    serve_ffn, pooled, checkpoint, jobs
) -> None:
    leaving, staying = await serve_ffn(name="ffn-0"), await serve_ffn(name="ffn-1")
    home = pooled()
    home.name(leaving, staying)
    await until(lambda: home.home.experts.tally.workers == 2)
    leaving.service.leave()
    await until(lambda: leaving.service.offer.num_followers == 0)
    assert torch.equal(await home.forward(jobs), checkpoint.wanted(jobs))
    tally = home.home.experts.tally
    assert (tally.lost, tally.late, tally.rows_at_home) == (0, 0, 0)


async def test_a_segment_that_cannot_be_mapped_costs_the_connection_not_the_home(
    serve_ffn, pooled, checkpoint, jobs, caplog, monkeypatch
) -> None:
    caplog.set_level(logging.INFO)
    worker, home = await serve_ffn(), pooled()
    exchange = home.home.parts.exchange
    right = exchange.shape
    monkeypatch.setattr(exchange, "_row_types", (9, 9))
    home.name(worker)
    await until(lambda: bool(messages(caplog, "of other types than the exchange")))
    assert torch.equal(await home.forward(jobs), checkpoint.wanted(jobs))
    assert exchange.shape is right
    monkeypatch.undo()
    await home.hosts(16)

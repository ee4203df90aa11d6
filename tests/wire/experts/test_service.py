"""What an FFN worker tells over gRPC, and what it can be told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

import ffn_worker.service
from transport.channel import connect
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import FfnWorkerStub
from triptych.experts.units import Unit

TIMEOUT_S = 20.0
A, B, C = Unit(0, 0), Unit(0, 5), Unit(2, 7)


@pytest.fixture
def checkpoint(checkpoints):
    return checkpoints["mixture"]


@pytest.fixture
def link_name() -> str:
    return "shm"


class Follower:
    """A home by hand: it says what it knows only when it is told to."""

    def __init__(self, call: Any, worker: Any) -> None:
        self._call = call
        self._worker = worker

    async def hear(self) -> tuple[int, set[Unit]]:
        """The next offer: its version, and the units."""
        async with asyncio.timeout(TIMEOUT_S):
            offer = await self._call.read()
        assert isinstance(offer, pb.UnitsOffered), "the call ended"
        mask = self._worker.units.unpack(offer.units)
        return offer.version, {unit for unit in self._worker.units if mask[unit]}

    async def know(self, version: int) -> None:
        await self._call.write(pb.FollowCall(known=version))

    async def end(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            assert await self._call.read() is grpc.aio.EOF


@contextlib.asynccontextmanager
async def following(worker: Any, name: str = "decode-0") -> AsyncIterator[Follower]:
    async with connect(worker.address) as channel:
        call = FfnWorkerStub(channel).Follow()
        await call.write(pb.FollowCall(worker_id=name))
        yield Follower(call, worker)
        call.cancel()


async def arrange(worker: Any, *, add: tuple[Any, ...] = (), remove: tuple[Any, ...] = ()) -> Any:
    async with connect(worker.address) as channel:
        request = pb.ArrangeRequest(
            add=[worker.units.number(unit) for unit in add],
            remove=[worker.units.number(unit) for unit in remove],
        )
        return await FfnWorkerStub(channel).Arrange(request, timeout=TIMEOUT_S)


def here(worker: Any) -> set[Unit]:
    """What its loop can compute."""
    return {unit for unit in worker.units if worker.mask()[unit]}


def offered(worker: Any, reply: pb.ArrangeReply) -> set[Unit]:
    mask = worker.units.unpack(reply.units)
    return {unit for unit in worker.units if mask[unit]}


async def test_a_worker_says_who_it_is_what_it_computes_and_how_rows_get_there(serve_ffn) -> None:
    worker = await serve_ffn([A], name="ffn-3", epoch=2**63)
    async with connect(worker.address) as channel:
        told = await FfnWorkerStub(channel).Describe(pb.DescribeRequest())
    assert (told.worker_id, told.epoch) == ("ffn-3", 2**63)
    assert '"weights"' in told.identity and '"rows": "exact"' in told.identity
    assert [(link.link, link.endpoint) for link in told.links] == [("shm", worker.server.endpoint)]


async def test_a_follower_hears_of_units_at_once_and_of_every_change(serve_ffn) -> None:
    worker = await serve_ffn([A])
    async with following(worker) as home:
        version, units = await home.hear()
        assert units == {A}
        await home.know(version)
        adding = asyncio.create_task(arrange(worker, add=(B, C)))
        newer, units = await home.hear()
        assert newer == version + 1 and units == {A, B, C} == here(worker)
        await home.know(newer)
        assert offered(worker, await adding) == {A, B, C}


async def test_units_that_were_added_are_known_everywhere_when_the_order_is_done(
    serve_ffn,
) -> None:
    worker = await serve_ffn([A])
    async with following(worker, "decode-0") as quick, following(worker, "decode-1") as slow:
        for home in (quick, slow):
            await home.know((await home.hear())[0])
        adding = asyncio.create_task(arrange(worker, add=(B,)))
        versions = [(await home.hear())[0] for home in (quick, slow)]
        await quick.know(versions[0])
        done, _ = await asyncio.wait({adding}, timeout=0.05)
        assert not done
        await slow.know(versions[1])
        await adding


async def test_a_unit_that_is_withdrawn_is_kept_until_every_follower_goes_by_it(
    serve_ffn,
) -> None:
    worker = await serve_ffn([A, B])
    async with following(worker, "decode-0") as quick, following(worker, "decode-1") as slow:
        for home in (quick, slow):
            await home.know((await home.hear())[0])
        removing = asyncio.create_task(arrange(worker, remove=(A,)))
        for home in (quick, slow):
            version, units = await home.hear()
            assert units == {B}
        await quick.know(version)
        done, _ = await asyncio.wait({removing}, timeout=0.05)
        assert not done and here(worker) == {A, B}
        await slow.know(version)
        assert offered(worker, await removing) == {B} == here(worker)


async def test_a_follower_that_hangs_up_is_not_waited_for(serve_ffn) -> None:
    worker = await serve_ffn([A, B])
    async with following(worker) as home:
        await home.hear()
        assert worker.service.load().running == 1
        removing = asyncio.create_task(arrange(worker, remove=(A,)))
        await home.hear()
    assert offered(worker, await removing) == {B} == here(worker)
    assert worker.service.load().running == 0


async def test_a_follower_that_does_not_answer_is_waited_for_a_while_only(
    serve_ffn, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(ffn_worker.service, "_ANSWER_S", 0.05)
    worker = await serve_ffn([A, B])
    async with following(worker) as home:
        await home.hear()
        assert offered(worker, await arrange(worker, remove=(A,))) == {B} == here(worker)
    assert "a follower does not answer" in caplog.text


async def test_what_cannot_be_hosted_is_refused_with_the_reason(serve_ffn) -> None:
    worker = await serve_ffn([A])
    nowhere, dense = Unit(9, 0), Unit(1, 0)  # the second layer is dense and stays at home
    reply = await arrange(worker, add=(B, nowhere, dense))
    assert list(reply.refused) == [worker.units.number(unit) for unit in (nowhere, dense)]
    assert reply.reason == "the model has no unit (9, 0)"
    assert offered(worker, reply) == {A, B} == here(worker)

    worker.unreadable.add(C)
    reply = await arrange(worker, add=(C,))
    assert list(reply.refused) == [worker.units.number(C)]
    assert reply.reason == "model.safetensors: damaged"

    worker.service.room = worker.hosting.nbytes * 3 // 2
    more = [Unit(2, 0), Unit(2, 1)]
    reply = await arrange(worker, add=tuple(more))
    assert list(reply.refused) == [worker.units.number(more[1])]
    assert reply.reason.startswith("no room: ")
    assert here(worker) == {A, B, more[0]}


async def test_what_is_there_already_or_gone_already_is_no_change(serve_ffn) -> None:
    worker = await serve_ffn([A])
    nbytes = worker.hosting.nbytes
    reply = await arrange(worker, add=(A, A), remove=(B,))
    assert offered(worker, reply) == {A} and not reply.refused
    assert worker.hosting.nbytes == nbytes and worker.service.offer.version == 1
    await arrange(worker, add=(B, B))
    assert worker.hosting.nbytes == 2 * nbytes


async def test_an_order_that_its_caller_gave_up_is_carried_out_all_the_same(serve_ffn) -> None:
    worker = await serve_ffn([A, B])
    async with following(worker) as home:
        await home.know((await home.hear())[0])
        removing = asyncio.create_task(arrange(worker, remove=(A,)))
        version, _ = await home.hear()
        removing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await removing
        assert here(worker) == {A, B}
        await home.know(version)
        reply = await arrange(worker)  # behind the other one
        assert offered(worker, reply) == {B} == here(worker)


async def test_a_worker_that_leaves_withdraws_everything_and_lets_followers_go(serve_ffn) -> None:
    worker = await serve_ffn([A, B])
    async with following(worker) as home:
        await home.know((await home.hear())[0])
        worker.service.leave()
        version, units = await home.hear()
        assert units == set() and here(worker) == {A, B}, "what is under way is answered"
        await home.know(version)
        await home.end()
    reply = await arrange(worker, add=(C,))
    assert reply.reason == "this worker is to stop" and offered(worker, reply) == set()
    assert worker.service.load().experts.room == 0


async def test_a_worker_reports_what_it_offers_and_how_much_more_it_can(serve_ffn) -> None:
    worker = await serve_ffn([])
    load = worker.service.load().experts
    assert load.domain == "here" and list(load.per_layer) == [8, 0, 8]
    assert load.room == 16, "what it takes is not known yet"
    await arrange(worker, add=(A, B))
    worker.service.room = worker.hosting.nbytes * 2
    load = worker.service.load().experts
    assert load.room == 2 and load.offered == worker.units.pack([A, B])
    assert worker.metrics.units._value.get() == 2
    assert worker.metrics.unit_bytes._value.get() == worker.hosting.nbytes

"""What the router tells those who follow the FFN pool."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from transport.channel import connect
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import RegistryStub, add_RegistryServicer_to_server
from transport.registry import Directory, stay_attached

PATIENCE_S = 10.0


def hello(worker_id: str, epoch: int = 1, **fields: Any) -> pb.WorkerHello:
    role = worker_id.partition("-")[0]
    address = f"unix:/run/{worker_id}-{epoch}.sock"
    return pb.WorkerHello(worker_id=worker_id, epoch=epoch, role=role, address=address, **fields)


@dataclass
class Notes:
    """What one attached worker heard."""

    heard: list[pb.RouterNote] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, note: pb.RouterNote) -> None:
        self.heard.append(note)
        self._news.set()

    async def until(self, *members: tuple[str, int]) -> None:
        """Waits for a note that names these."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.heard or self.members != list(members):
                self._news.clear()
                await self._news.wait()

    async def next(self) -> pb.RouterNote:
        async with asyncio.timeout(PATIENCE_S):
            count = len(self.heard)
            while len(self.heard) == count:
                self._news.clear()
                await self._news.wait()
        return self.heard[-1]

    @property
    def members(self) -> list[tuple[str, int]]:
        return [(member.worker_id, member.epoch) for member in self.heard[-1].ffn_workers]


@contextlib.asynccontextmanager
async def attached(target: str, greeting: pb.WorkerHello) -> AsyncIterator[Notes]:
    notes = Notes()
    task = asyncio.create_task(
        stay_attached(target, greeting, pb.WorkerLoad, interval_s=0.02, on_note=notes)
    )
    try:
        yield notes
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def open_registry(serve, address, **options: Any) -> tuple[Directory, str, Any]:
    directory = Directory(**options)
    server = await serve(address, lambda server: add_RegistryServicer_to_server(directory, server))
    return directory, server.address, server


async def test_a_follower_hears_of_the_pool_on_attach_and_whenever_it_changes(serve, address):
    _, target, _ = await open_registry(serve, address)
    async with (
        attached(target, hello("ffn-0")) as ffn,
        attached(target, hello("decode-0", follows_ffn=True)) as home,
    ):
        await ffn.until()
        await home.until(("ffn-0", 1))
        [member] = home.heard[-1].ffn_workers
        assert member.address == "unix:/run/ffn-0-1.sock"
        async with attached(target, hello("ffn-1", 7)):
            await home.until(("ffn-0", 1), ("ffn-1", 7))
        await home.until(("ffn-0", 1))
        async with attached(target, hello("ffn-0", 2)):  # it restarted
            await home.until(("ffn-0", 2))
        assert len(ffn.heard) == 1, "whoever does not follow the pool hears nothing of it"


async def test_other_workers_that_come_and_go_are_no_news(serve, address):
    directory, target, _ = await open_registry(serve, address)
    async with attached(target, hello("prefill-0", follows_ffn=True)) as home:
        await home.until()
        async with attached(target, hello("decode-0", follows_ffn=True)):
            await directory.wait_for(lambda workers: len(workers) == 2, PATIENCE_S)
        await directory.wait_for(lambda workers: len(workers) == 1, PATIENCE_S)
        async with attached(target, hello("ffn-0")):
            await home.until(("ffn-0", 1))
        await home.until()
        assert len(home.heard) == 3


async def test_a_restarted_router_names_workers_as_they_come_back(serve, address):
    first, target, server = await open_registry(serve, address)
    async with attached(target, hello("decode-0", follows_ffn=True)) as home:
        async with attached(target, hello("ffn-0")):
            await home.until(("ffn-0", 1))
            await server.stop(0.0)
        second, _, _ = await open_registry(serve, target)
        await home.until()
        assert home.heard[-1].router_epoch == second.epoch != first.epoch
        async with attached(target, hello("ffn-0")):
            await home.until(("ffn-0", 1))


async def test_what_workers_tell_of_units_is_passed_on(serve, address):
    told: list[tuple[str, pb.ExpertLoad]] = []
    heard = asyncio.Event()

    def on_experts(worker, load: pb.ExpertLoad) -> None:
        told.append((worker.worker_id, load))
        heard.set()

    directory, target, _ = await open_registry(serve, address, on_experts=on_experts)
    async with connect(target) as channel:
        call = RegistryStub(channel).Attach()
        await call.write(pb.WorkerReport(hello=hello("ffn-0"), load=pb.WorkerLoad(running=1)))
        await call.write(pb.WorkerReport(load=pb.WorkerLoad(running=2)))
        await directory.wait_for(lambda workers: [w.running for w in workers] == [2], PATIENCE_S)
        assert not told, "there was nothing new"
        load = pb.ExpertLoad(offered=b"\3", room=4, domain="here", per_layer=[8])
        await call.write(pb.WorkerReport(load=pb.WorkerLoad(experts=load)))
        async with asyncio.timeout(PATIENCE_S):
            await heard.wait()
        again = await attach_with(channel, "ffn-1", load)
        assert told == [("ffn-0", load), ("ffn-1", load)], "with its first report too"
        again.cancel()


async def attach_with(channel: Any, worker_id: str, load: pb.ExpertLoad) -> Any:
    call = RegistryStub(channel).Attach()
    report = pb.WorkerReport(hello=hello(worker_id), load=pb.WorkerLoad(experts=load))
    await call.write(report)
    assert isinstance(await call.read(), pb.RouterNote)
    return call

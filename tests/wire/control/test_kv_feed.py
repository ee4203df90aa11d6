"""Workers publish their caches over real calls, some of which lose what is said on them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from router.index.audit import Audit, relative_error
from router.index.feed import KvFeed
from router.index.hit import PrefixHit
from router.index.kv_index import KvIndex
from router.index.metrics import IndexMetrics
from transport.channel import connect
from transport.kv_feed import SERVICE_NAME, publish_cache
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import KvFeedStub, add_KvFeedServicer_to_server
from triptych.kv.pool import BlockPool
from triptych.testing.kv_workers import compute, hashes_of

PATIENCE_S = 10.0
PROMPTS = [hashes_of([prompt] * 4 * (1 + prompt % 12)) for prompt in range(60)]


class World:
    """A router's index behind a feed; `loss` is the share of messages that never reach it."""

    def __init__(self) -> None:
        self.metrics = IndexMetrics(CollectorRegistry())
        self.index = KvIndex()
        self.feed = LossyFeed(self.index, self.metrics)
        self.target = ""

    def count(self, name: str, **labels: str) -> float:
        full = f"triptych_router_kv_{name}"
        return self.metrics.registry.get_sample_value(full, labels) or 0.0

    def agrees(self, worker_id: str, pool: BlockPool) -> bool:
        return self.error(worker_id, pool) == 0

    def error(self, worker_id: str, pool: BlockPool) -> float:
        """Of the predictions for all prompts, as the audit reckons."""
        return relative_error(
            [
                (
                    self.index.hits(prompt).get(worker_id, PrefixHit(0)).blocks,
                    pool.count_cached(prompt),
                )
                for prompt in PROMPTS
            ]
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        """The feed has nothing to wait for but its next message."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.feed.heard.clear()
                await self.feed.heard.wait()


class LossyFeed(KvFeed):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.loss = 0.0
        self.heard = asyncio.Event()  # a message was taken, or lost
        self.num_lost = 0
        self._draw = random.Random(4)

    async def Publish(self, messages: AsyncIterator[pb.KvEvents], context: Any) -> None:
        try:
            await super().Publish(self._some(messages), context)
        finally:
            self.heard.set()

    async def _some(self, messages: AsyncIterator[pb.KvEvents]) -> AsyncIterator[pb.KvEvents]:
        yield await anext(aiter(messages))
        async for message in messages:
            if self._draw.random() >= self.loss:
                yield message
            else:
                self.num_lost += 1
            self.heard.set()


@pytest.fixture
async def world(serve, address) -> World:
    found = World()
    server = await serve(
        address,
        lambda server: add_KvFeedServicer_to_server(found.feed, server),
        names=(SERVICE_NAME,),
    )
    found.target = server.address
    return found


def fresh(draw: random.Random) -> list[bytes]:
    """One of the prompts, and something behind it that nobody had before."""
    return [*draw.choice(PROMPTS), draw.randbytes(16)]


@contextlib.asynccontextmanager
async def publishing(
    target: str, pool: BlockPool, worker_id: str = "a", epoch: int = 1
) -> AsyncIterator[None]:
    task = asyncio.create_task(publish_cache(target, worker_id, epoch, pool, batch_s=0.002))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_router_learns_what_a_worker_has_and_what_it_gets(world):
    pool = BlockPool(100)
    compute(pool, PROMPTS[11])
    async with publishing(world.target, pool):
        await world.until(lambda: world.index.num_blocks("a") == 12)
        compute(pool, PROMPTS[10])
        await world.until(lambda: world.agrees("a", pool) and world.index.num_blocks("a") == 23)
        pool.clear_cache()
        await world.until(lambda: world.index.num_blocks("a") == 0)
    assert world.count("snapshots_total", worker="a") == 1
    assert world.count("events_total", worker="a", kind="stored") == 11
    assert world.count("events_total", worker="a", kind="removed") == 23


async def test_a_restarted_router_is_rebuilt_by_its_workers(serve, socket_dir):
    pool, address = BlockPool(100), f"unix:{socket_dir}/router.sock"
    compute(pool, PROMPTS[11])
    async with publishing(address, pool):
        for _ in range(2):
            world = World()
            server = await serve(
                address, lambda server, feed=world.feed: add_KvFeedServicer_to_server(feed, server)
            )
            await world.until(lambda world=world: world.agrees("a", pool))
            await server.stop(0.0)


async def test_several_routers_are_told_the_same(serve, socket_dir):
    worlds, pool = [World(), World()], BlockPool(100)
    async with contextlib.AsyncExitStack() as stack:
        for number, world in enumerate(worlds):
            server = await serve(
                f"unix:{socket_dir}/{number}.sock",
                lambda server, feed=world.feed: add_KvFeedServicer_to_server(feed, server),
            )
            await stack.enter_async_context(publishing(server.address, pool))
            compute(pool, PROMPTS[10 + number])
        for world in worlds:
            await world.until(lambda world=world: world.index.num_blocks("a") == 23)


async def test_a_worker_that_left_holds_nothing(world):
    pool = BlockPool(100)
    compute(pool, PROMPTS[11])
    async with publishing(world.target, pool):
        await world.until(lambda: world.index.num_blocks("a") == 12)
    await world.until(lambda: world.index.num_blocks("a") == 0)
    assert world.index.holdings.num_keys == 0


async def test_a_new_process_replaces_the_old_one_which_does_not_come_back(world):
    old, new = BlockPool(100), BlockPool(100)
    compute(old, PROMPTS[11])
    compute(new, PROMPTS[3])
    async with publishing(world.target, old, epoch=1):
        await world.until(lambda: world.agrees("a", old))
        async with publishing(world.target, new, epoch=2):
            await world.until(lambda: world.agrees("a", new))
            async with connect(world.target) as channel:
                call = KvFeedStub(channel).Publish()
                await call.write(pb.KvEvents(worker_id="a", epoch=1))
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call.read()
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert world.agrees("a", new)


async def test_a_call_that_introduces_nobody_is_refused(world):
    async with connect(world.target) as channel:
        call = KvFeedStub(channel).Publish()
        await call.write(pb.KvEvents(epoch=1))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "worker_id" in str(refused.value.details())


async def test_predictions_are_right_again_after_losses_and_a_restart(world):
    """One message in twenty is lost while two caches churn, and one worker starts anew."""
    pools = {"a": BlockPool(200), "b": BlockPool(200)}
    draw = random.Random(5)
    world.feed.loss = 0.05

    async def churn(turns: int) -> None:
        for _ in range(turns):
            for pool in pools.values():
                compute(pool, fresh(draw))
            world.feed.heard.clear()
            await world.feed.heard.wait()

    async with publishing(world.target, pools["a"], "a", epoch=1):
        async with publishing(world.target, pools["b"], "b", epoch=1):
            await churn(300)
        pools["b"] = BlockPool(200)
        async with publishing(world.target, pools["b"], "b", epoch=2):
            await churn(300)
            assert world.feed.num_lost > 10 and world.count("gaps_total", worker="a") > 0
            await world.until(lambda: all(world.error(name, pools[name]) < 0.01 for name in pools))


async def test_an_index_that_is_wrong_is_noticed_by_what_requests_report(world):
    """Nothing was lost on the way: the index itself has gone wrong, as after a bug."""
    pool = BlockPool(100)
    compute(pool, PROMPTS[11])
    audit = Audit(world.feed.ask_snapshot, world.metrics)
    async with publishing(world.target, pool):
        await world.until(lambda: world.agrees("a", pool))
        world.index.replace("a", world.index.holdings.open())
        for _ in range(8):
            audit.compare("a", predicted=world.index.num_blocks("a"), actual=12)
        await world.until(lambda: world.agrees("a", pool))
    assert world.count("drifts_total", worker="a") == 1
    assert world.count("snapshots_total", worker="a") == 2


async def test_a_router_that_stops_need_not_wait_for_its_workers(world):
    pool = BlockPool(100)
    async with publishing(world.target, pool):
        await world.until(lambda: world.count("snapshots_total", worker="a") == 1)
        world.feed.close()
        await world.until(lambda: world.count("snapshots_total", worker="a") == 2)

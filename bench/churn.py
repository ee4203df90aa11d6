"""Experts on the move, whether or not any load asks for it: for runs in which nothing may depend on
where they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from transport.channel import connect
from transport.protos import worker_pb2 as pb
from transport.protos.worker_pb2_grpc import FfnWorkerStub


@dataclass(slots=True)
class Churn:
    moves: int = 0  # made so far


@contextlib.asynccontextmanager
async def churning(run_dir: Path, workers: int, every_s: float = 1.0) -> AsyncIterator[Churn]:
    """Every `every_s` some experts get a copy on one worker and lose another one elsewhere."""
    churn = Churn()
    task = asyncio.create_task(_move_on(run_dir, workers, every_s, churn))
    try:
        yield churn
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _move_on(run_dir: Path, workers: int, every_s: float, churn: Churn) -> None:
    draw = random.Random(1)
    async with contextlib.AsyncExitStack() as owned:
        stubs = [
            FfnWorkerStub(
                await owned.enter_async_context(connect(f"unix:{run_dir}/ffn-{number}.sock"))
            )
            for number in range(workers)
        ]
        hosted = [_units(await stub.Arrange(pb.ArrangeRequest())) for stub in stubs]
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                churn.moves += await _swap(stubs, hosted, draw)
            await asyncio.sleep(every_s)


async def _swap(
    stubs: list[FfnWorkerStub], hosted: list[set[int]], draw: random.Random, count: int = 8
) -> int:
    """Some of one worker's units go to another one, which gives as many of its others up."""
    giver, taker = draw.sample(range(len(stubs)), 2)
    units = _some(hosted[giver] - hosted[taker], count, draw)
    hosted[taker] = _units(await stubs[taker].Arrange(pb.ArrangeRequest(add=units)))
    hosted[giver] = _units(await stubs[giver].Arrange(pb.ArrangeRequest(remove=units)))
    elsewhere = set[int]().union(*(held for n, held in enumerate(hosted) if n != taker))
    back = _some((hosted[taker] & elsewhere) - set(units), len(units), draw)
    hosted[giver] = _units(await stubs[giver].Arrange(pb.ArrangeRequest(add=back)))
    hosted[taker] = _units(await stubs[taker].Arrange(pb.ArrangeRequest(remove=back)))
    return len(units) + len(back)


def _some(units: set[int], count: int, draw: random.Random) -> list[int]:
    return draw.sample(sorted(units), min(count, len(units)))


def _units(reply: pb.ArrangeReply) -> set[int]:
    return {
        8 * place + bit
        for place, byte in enumerate(reply.units)
        for bit in range(8)
        if byte >> bit & 1
    }

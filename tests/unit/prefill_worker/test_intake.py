"""A prompt whose home lends it blocks: fetched, or computed when that fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from prefill_worker.fetch_or_compute import FetchOrCompute
from prefill_worker.intake import Intake
from transport.kv.base import KvLinkError, WriterNotQuiet
from transport.protos import worker_pb2 as pb
from triptych.engine.sequence import Sequence
from triptych.kv.pool import BlockPool
from triptych.models.taps import StatesWanted
from triptych.obs.pace import PaceMeter
from triptych.worker.fetch import Fetched

SIZE = 4  # tokens of a block


@dataclass
class Loop:
    """Gives room at once; remembers what it was told."""

    pool: BlockPool
    told: list[tuple[str, int]] = field(default_factory=list)

    def submit(self, sequence: Sequence, wanted: StatesWanted) -> None:
        self.told.append(("submit", 0))
        if sequence.on_room is not None:
            sequence.blocks = self.pool.allocate(-(-len(sequence.tokens) // SIZE)) or []
            sequence.on_room()

    def arrive(self, sequence: Sequence, num_tokens: int) -> None:
        self.told.append(("arrive", num_tokens))

    def restart(self, sequence: Sequence) -> None:
        self.told.append(("restart", 0))


class Homes:
    @contextlib.asynccontextmanager
    async def use(self, history: pb.KvHistory) -> AsyncIterator[str]:
        yield history.worker_id


@dataclass
class Fetcher:
    fails: Exception | None = None
    asked: list[tuple[list[int], list[int]]] = field(default_factory=list)
    layout: Any = field(default_factory=lambda: SimpleNamespace(block_bytes=1024, num_layers=2))

    @property
    def metrics(self) -> Any:
        return SimpleNamespace(
            kv_fallbacks=SimpleNamespace(labels=lambda step: SimpleNamespace(inc=lambda: None))
        )

    async def fetch(
        self, peer: str, ready: pb.BlocksReady, targets: list[int], timeout_s: float, note: object
    ) -> Fetched:
        self.asked.append((list(ready.blocks), targets))
        if self.fails is not None:
            raise self.fails
        return Fetched("shm", 1024, 0.0, 0.1)


async def admitted(fetcher: Fetcher, lent: list[int]) -> tuple[list[tuple[str, int]], Sequence]:
    """What the loop is told of a prompt of 18 tokens."""
    loop = Loop(BlockPool(16))
    sequence = Sequence("r", list(range(18)), b"root", SIZE)
    thread = SimpleNamespace(post=lambda command: cast(Callable[[], None], command)())
    homes: Any = Homes()
    intake = Intake(
        loop.pool,
        homes,
        cast(Any, fetcher),
        cast(Any, loop),
        cast(Any, thread),
        FetchOrCompute(PaceMeter(), 512),
    )
    history = pb.KvHistory(
        worker_id="decode-0", blocks=lent, generations=[1] * len(lent), digests=[0] * len(lent)
    )
    async with asyncio.timeout(10):
        await intake.admit(sequence, StatesWanted((), 0), history)
    return loop.told, sequence


async def test_lent_blocks_are_fetched_into_the_prompts_first_ones() -> None:
    fetcher = Fetcher()
    told, sequence = await admitted(fetcher, [7, 9, 8])
    assert told == [("submit", 0), ("arrive", 12)]
    assert fetcher.asked == [([7, 9, 8], sequence.blocks[:3])]


async def test_a_prompt_without_anything_lent_is_computed_at_once() -> None:
    fetcher = Fetcher()
    assert (await admitted(fetcher, []))[0] == [("submit", 0)]
    assert not fetcher.asked


async def test_what_cannot_be_fetched_is_computed() -> None:
    told, _ = await admitted(Fetcher(KvLinkError("the home is gone")), [7, 9, 8])
    assert told == [("submit", 0), ("arrive", 0)]


@pytest.mark.parametrize("lent", [[1], [1, 2, 3, 4]])
async def test_blocks_that_may_still_be_written_are_exchanged(lent: list[int]) -> None:
    told, _ = await admitted(Fetcher(WriterNotQuiet("shm")), lent)
    assert told == [("submit", 0), ("restart", 0)]

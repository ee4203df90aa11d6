"""What a worker leaves in memory, and who may read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from transport.kv.neighbours import Neighbours
from transport.kv.region import Region, RegionShape
from transport.kv.shm import ShmLink, ShmSource
from triptych.engine.rows import RowJob
from triptych.engine.scheduler import Scheduler
from triptych.engine.sequence import Sequence
from triptych.engine.tails import Tails, tail_name
from triptych.kv.hashing import root_hash
from triptych.kv.pool import BlockPool
from triptych.obs.metrics import WorkerMetrics, new_registry
from triptych.request import SamplingParams
from triptych.worker.salvage import Salvager

SHAPE = RegionShape(block_bytes=4096, num_blocks=16)
BLOCK_TOKENS = 4
ROOT = root_hash(model="", weights="", layout="tiny")
KEEP_S = 10.0
PARAMS = SamplingParams(seed=1, max_tokens=100)
TOKENS = list(range(100, 118))  # four full blocks and a half


@dataclass(slots=True)
class Worker:
    region: Region
    pool: BlockPool
    source: ShmSource

    def compute(self, tokens: list[int]) -> list[int]:
        """Fills blocks with what their tokens make of them, commits them, and keeps them cached."""
        hashes = sequence_of(tokens).hashes()
        blocks = self.pool.allocate(len(hashes))
        assert blocks is not None
        for block, block_hash in zip(blocks, hashes, strict=True):
            self.region.blocks[block] = block_hash[0]
            self.pool.commit(block, block_hash)
        self.pool.release(blocks)
        return blocks

    def begin(self, sequence: Sequence, rows: int) -> Scheduler:
        """Computes so many rows of it, in one step: block n is filled with n + 1."""
        scheduler = scheduler_of(self)
        scheduler.add(sequence)
        [job] = scheduler.next_batch()
        for index, block in enumerate(sequence.blocks):
            self.region.blocks[block] = index + 1
        scheduler.advance(RowJob(sequence, job.start, rows))
        return scheduler

    def die(self) -> None:
        """As far as others can see: its socket closes, whoever has its memory mapped keeps it."""
        self.source.close()
        self.region.close()


Start = Callable[..., Worker]


def scheduler_of(worker: Worker) -> Scheduler:
    scheduler = Scheduler(worker.pool, block_tokens=BLOCK_TOKENS, chunk_tokens=64, max_running=4)
    scheduler.tails = Tails(worker.region.hashes)
    return scheduler


def sequence_of(tokens: list[int], resumed: int = 0) -> Sequence:
    head, tail = tokens[: len(tokens) - resumed], tokens[len(tokens) - resumed :]
    return Sequence("r", head, ROOT, BLOCK_TOKENS, PARAMS, resumed=tuple(tail))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as owned:

        def make(shape: RegionShape = SHAPE) -> Worker:
            region = owned.enter_context(closing(Region.create(shape)))
            pool = BlockPool(shape.num_blocks, generations=region.generations, hashes=region.hashes)
            source = owned.enter_context(closing(ShmLink(tmp_path).serve(region)))
            return Worker(region, pool, source)

        yield make


@pytest.fixture
def old(start: Start) -> Worker:
    return start()


@pytest.fixture
def heir(start: Start) -> Worker:
    return start()


@pytest.fixture
def neighbours(heir: Worker, tmp_path: Path) -> Iterator[Neighbours]:
    with closing(Neighbours(tmp_path, heir.region, KEEP_S)) as found:
        yield found


def salvager_of(heir: Worker, neighbours: Neighbours) -> Salvager:
    return Salvager(heir.pool, heir.region, neighbours, WorkerMetrics(new_registry()))


async def test_a_stream_goes_on_with_the_blocks_of_its_dead_home(
    old: Worker, heir: Worker, neighbours: Neighbours
) -> None:
    old.compute(TOKENS)
    neighbours.look()
    old.die()
    going_on = sequence_of(TOKENS, resumed=6)
    assert await salvager_of(heir, neighbours).salvage([going_on]) == 4
    found = heir.pool.reserve(going_on.hashes(), 5)
    assert found is not None and found.num_cached == 4
    for block, block_hash in zip(found.blocks, going_on.hashes(), strict=False):
        assert (heir.region.blocks[block] == block_hash[0]).all()
    heir.pool.release(found.blocks)
    assert heir.pool.counts()["transfer"] == 0


async def test_only_blocks_that_are_missing_are_fetched(
    old: Worker, heir: Worker, neighbours: Neighbours
) -> None:
    old.compute(TOKENS)
    heir.compute(TOKENS[:8])
    neighbours.look()
    salvager = salvager_of(heir, neighbours)
    assert await salvager.salvage([sequence_of(TOKENS, resumed=6)]) == 2
    assert await salvager.salvage([sequence_of(TOKENS, resumed=6)]) == 0


async def test_fresh_requests_fetch_nothing(
    old: Worker, heir: Worker, neighbours: Neighbours
) -> None:
    old.compute(TOKENS)
    neighbours.look()
    assert await salvager_of(heir, neighbours).salvage([sequence_of(TOKENS)]) == 0


async def test_without_room_nothing_is_fetched(
    old: Worker, heir: Worker, neighbours: Neighbours
) -> None:
    old.compute(TOKENS)
    neighbours.look()
    assert heir.pool.allocate(SHAPE.num_blocks - 3) is not None
    assert await salvager_of(heir, neighbours).salvage([sequence_of(TOKENS, resumed=6)]) == 0
    assert heir.pool.available == 3


def test_a_block_that_was_handed_out_again_is_not_taken_for_the_old_one(
    old: Worker, neighbours: Neighbours
) -> None:
    old.compute(TOKENS)
    neighbours.look()
    first, *_ = neighbours.find(sequence_of(TOKENS).hashes())
    target = np.zeros(SHAPE.block_bytes, np.uint8)
    assert first.copy_to(target)
    assert old.pool.allocate(SHAPE.num_blocks) is not None  # evicts everything
    assert not first.copy_to(target)
    assert neighbours.find(sequence_of(TOKENS).hashes()) == []


def test_the_memory_of_the_dead_is_given_back_in_time(old: Worker, neighbours: Neighbours) -> None:
    old.compute(TOKENS)
    hashes = sequence_of(TOKENS).hashes()
    neighbours.look(now=100.0)
    old.die()
    neighbours.look(now=101.0)
    neighbours.look(now=101.0 + KEEP_S - 0.1)
    kept = neighbours.find(hashes)
    assert len(kept) == 4
    neighbours.look(now=101.0 + KEEP_S)
    assert neighbours.find(hashes) == []
    assert kept[0].copy_to(np.zeros(SHAPE.block_bytes, np.uint8)), "a copy under way goes on"


async def test_an_unfinished_block_is_taken_over_too(
    old: Worker, heir: Worker, neighbours: Neighbours
) -> None:
    old.begin(sequence_of(TOKENS), rows=17)  # four full blocks and one token
    neighbours.look()
    old.die()
    going_on = sequence_of(TOKENS, resumed=6)
    assert await salvager_of(heir, neighbours).salvage([going_on]) == 5
    scheduler = scheduler_of(heir)
    scheduler.add(going_on)
    [job] = scheduler.next_batch()
    assert (job.start, job.end) == (17, 18), "only the last token, which predicts the next one"
    assert (heir.region.blocks[going_on.blocks[4]] == 5).all()


@pytest.mark.parametrize("rows", [14, 16])
async def test_of_an_unfinished_block_that_lags_behind_nothing_is_believed(
    old: Worker, heir: Worker, neighbours: Neighbours, rows: int
) -> None:
    """A home that hangs may have fewer tokens than another one drew after it."""
    old.begin(sequence_of(TOKENS), rows)
    neighbours.look()
    going_on = sequence_of([*TOKENS, 118], resumed=7)
    assert await salvager_of(heir, neighbours).salvage([going_on]) == rows // BLOCK_TOKENS
    assert going_on.on_place is None


async def test_an_unfinished_block_behind_a_gap_is_not_used(
    old: Worker, heir: Worker, neighbours: Neighbours
) -> None:
    old.begin(sequence_of(TOKENS), rows=17)
    neighbours.look()
    going_on = sequence_of(TOKENS, resumed=6)
    assert await salvager_of(heir, neighbours).salvage([going_on]) == 5
    heir.pool.clear_cache()
    scheduler = scheduler_of(heir)
    scheduler.add(going_on)
    [job] = scheduler.next_batch()
    assert job.start == 0


@pytest.mark.parametrize("end", ["remove", "restart"])
def test_a_block_is_not_called_unfinished_when_its_sequence_has_left_it(
    old: Worker, neighbours: Neighbours, end: str
) -> None:
    sequence = sequence_of(TOKENS)
    name = tail_name(sequence, 4)
    scheduler = old.begin(sequence, rows=17)
    neighbours.look()
    found = neighbours.find_unfinished(name, rows=1)
    assert found is not None and found.rows == 1
    getattr(scheduler, end)(sequence)
    assert neighbours.find_unfinished(name, rows=1) is None
    assert not found.copy_to(np.zeros(SHAPE.block_bytes, np.uint8))
    assert len(neighbours.find(sequence.hashes())) == 4, "full blocks stay what they are"


def test_a_full_block_has_its_hash_and_the_next_one_a_name(
    old: Worker, neighbours: Neighbours
) -> None:
    sequence = sequence_of(TOKENS)
    scheduler = old.begin(sequence, rows=15)
    neighbours.look()
    assert neighbours.find_unfinished(tail_name(sequence, 3), rows=3) is not None
    scheduler.advance(RowJob(sequence, 15, 18))
    assert neighbours.find_unfinished(tail_name(sequence, 3), rows=3) is None
    assert neighbours.find_unfinished(tail_name(sequence, 4), rows=2) is not None
    assert neighbours.find_unfinished(tail_name(sequence, 4), rows=3) is None
    assert len(neighbours.find(sequence.hashes())) == 4


def test_nobody_is_its_own_neighbour(heir: Worker, neighbours: Neighbours) -> None:
    heir.compute(TOKENS)
    neighbours.look()
    assert neighbours.find(sequence_of(TOKENS).hashes()) == []


def test_pools_with_blocks_of_another_size_are_left_alone(
    start: Start, neighbours: Neighbours
) -> None:
    other = start(RegionShape(block_bytes=8192, num_blocks=16))
    other.compute(TOKENS)
    neighbours.look()
    assert neighbours.find(sequence_of(TOKENS).hashes()) == []

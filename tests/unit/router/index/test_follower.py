"""One worker's cache, followed: real pools tell, messages get lost."""

from __future__ import annotations

import random

import pytest
from prometheus_client import CollectorRegistry

from router.index.follower import Follower
from router.index.hit import PrefixHit
from router.index.kv_index import KvIndex
from router.index.metrics import IndexMetrics
from transport.kv_feed import snapshot_parts
from transport.protos import worker_pb2 as pb
from triptych.errors import RequestError
from triptych.kv.pool import BlockPool
from triptych.testing.kv_workers import Clock, compute, hashes_of

PROMPTS = [hashes_of([prompt] * 4 * (1 + prompt % 7)) for prompt in range(40)]
PART = 8 * 3  # bytes: snapshots of many parts


class World:
    """A pool and who follows it, with a wire in between that a test can cut."""

    def __init__(self, num_blocks: int = 24) -> None:
        self.pool = BlockPool(num_blocks)
        self.clock = Clock()
        self.metrics = IndexMetrics(CollectorRegistry())
        self.index = KvIndex(clock=self.clock)
        self.follower = Follower(self.index, "a", self.metrics, self.clock)
        self.position = 0

    def snapshot(self) -> list[pb.KvEvents]:
        self.position, keys = self.pool.snapshot()
        return [*snapshot_parts(self.position, keys, PART)]

    def events(self) -> pb.KvEvents:
        changes = self.pool.changes(self.position, 1000)
        assert changes is not None
        first, self.position = self.position, changes.end
        return pb.KvEvents(
            first=first, end=changes.end, stored=changes.stored, removed=changes.removed
        )

    def take(self, *messages: pb.KvEvents) -> bool:
        asked = [self.follower.take(message) for message in messages]
        return any(asked)

    def agrees(self) -> bool:
        """Whether the index says of every prompt what the pool says."""
        told = [self.index.hits(prompt).get("a", PrefixHit(0)).blocks for prompt in PROMPTS]
        return told == [self.pool.count_cached(prompt) for prompt in PROMPTS]


@pytest.fixture
def world() -> World:
    return World()


def test_changes_keep_the_index_equal_to_the_cache(world: World) -> None:
    assert not world.take(*world.snapshot())
    draw = random.Random(1)
    for _ in range(200):
        compute(world.pool, draw.choice(PROMPTS))
        assert not world.take(world.events())
        assert world.agrees()
    assert world.index.num_blocks("a") == world.pool.counts()["cached"]


def test_a_snapshot_counts_when_it_is_whole(world: World) -> None:
    compute(world.pool, PROMPTS[6])
    first, *rest = world.snapshot()
    world.take(first)
    assert world.index.hits(PROMPTS[6]) == {}
    world.take(*rest)
    assert world.agrees()


def test_what_changes_while_a_snapshot_is_on_its_way_is_not_lost(world: World) -> None:
    compute(world.pool, PROMPTS[6])
    compute(world.pool, PROMPTS[13])
    first, *rest = world.snapshot()
    world.take(first)
    for prompt in (20, 27, 34):
        compute(world.pool, PROMPTS[prompt])  # evicts what the parts tell of
    assert not world.take(*rest, world.events())
    assert world.agrees()


def test_a_gap_is_told_once_and_what_is_known_stays_in_use(world: World) -> None:
    compute(world.pool, PROMPTS[6])
    world.take(*world.snapshot())
    compute(world.pool, PROMPTS[5])
    world.events()  # lost
    compute(world.pool, PROMPTS[4])
    assert world.take(world.events())
    assert world.index.hits(PROMPTS[6])["a"].blocks == 7
    compute(world.pool, PROMPTS[3])
    assert not world.take(world.events()), "the snapshot is on its way"
    world.take(*world.snapshot())
    assert world.agrees()


def test_a_loss_at_the_end_shows_when_the_worker_tells_where_it_stands(world: World) -> None:
    world.take(*world.snapshot())
    compute(world.pool, PROMPTS[5])
    lost = world.events()
    assert world.take(pb.KvEvents(first=lost.end, end=lost.end))


def test_a_repeated_message_changes_nothing(world: World) -> None:
    world.take(*world.snapshot())
    compute(world.pool, PROMPTS[5])
    message = world.events()
    assert not world.take(message, message)
    assert world.agrees()


@pytest.mark.parametrize("lost", [0, 1, -1])
def test_a_snapshot_with_a_hole_is_asked_for_again(world: World, lost: int) -> None:
    compute(world.pool, PROMPTS[6])
    parts = world.snapshot()
    del parts[lost]
    compute(world.pool, PROMPTS[5])
    world.clock.now += 0.5
    asked = world.take(*parts, world.events())
    if not asked:  # its beginning was lost: only time tells that nothing comes
        world.clock.now += 1.0
        asked = world.take(world.events())
    assert asked and world.index.hits(PROMPTS[6]) == {}
    world.take(*world.snapshot())
    assert world.agrees()


def test_a_question_that_was_lost_is_asked_again(world: World) -> None:
    world.clock.now += 1.0
    assert world.take(world.events()), "the worker should have begun with a snapshot"
    assert not world.take(world.events())
    world.clock.now += 1.0
    assert world.take(world.events())


def test_a_doubt_asks_unless_a_snapshot_is_on_its_way(world: World) -> None:
    assert not world.follower.doubt()
    world.take(*world.snapshot())
    assert world.follower.doubt() and not world.follower.doubt()


def test_an_empty_cache_is_a_snapshot_too(world: World) -> None:
    compute(world.pool, PROMPTS[6])
    world.take(*world.snapshot())
    world.pool.clear_cache()
    world.take(*world.snapshot())
    assert world.index.num_blocks("a") == 0 and world.agrees()


def test_nothing_is_left_of_a_worker_whose_call_ended(world: World) -> None:
    compute(world.pool, PROMPTS[6])
    world.take(*world.snapshot())
    world.take(world.snapshot()[0])  # and in the middle of another one
    world.follower.close()
    assert world.index.hits(PROMPTS[6]) == {} and world.index.holdings.num_keys == 0


def test_a_worker_that_fell_behind_its_journal_needs_a_snapshot() -> None:
    world = World(num_blocks=8)
    world.take(*world.snapshot())
    for turn in range(400):
        compute(world.pool, PROMPTS[turn % 40])
    assert world.pool.changes(world.position, 1000) is None
    world.take(*world.snapshot())
    assert world.agrees()


def test_bytes_that_are_no_keys_are_refused_by_name(world: World) -> None:
    world.take(*world.snapshot())
    with pytest.raises(RequestError, match="stored, removed: 7 bytes"):
        world.take(pb.KvEvents(first=0, end=1, stored=bytes(7)))


def test_messages_lost_at_random_are_always_made_good(world: World) -> None:
    draw = random.Random(3)
    wanted = True
    for _ in range(600):
        compute(world.pool, draw.choice(PROMPTS))
        messages = world.snapshot() if wanted else [world.events()]
        wanted = world.take(*(m for m in messages if draw.random() > 0.05))
        world.clock.now += 0.05
    world.clock.now += 2.0
    if world.take(world.events()):
        world.take(*world.snapshot())
    assert world.agrees()

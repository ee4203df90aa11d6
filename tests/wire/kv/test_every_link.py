"""What every link promises while its peer is well."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import pytest

from transport.kv.base import (
    BlockRead,
    KvLink,
    KvLinkError,
    KvSession,
    KvSource,
    LinkUnusable,
    StaleBlock,
)
from transport.kv.region import Region, RegionShape
from triptych.testing.kv_pools import (
    CANARY,
    GENERATION,
    fill_pool,
    untouched,
    wait_until,
    whole_blocks,
)

SHAPE = RegionShape(block_bytes=6144, num_blocks=64)
LARGE = RegionShape(block_bytes=1 << 20, num_blocks=96)
WAIT_S = 20.0

MakePool = Callable[[RegionShape], Region]


@dataclass(frozen=True)
class Pair:
    """A source and a home that reads from it."""

    source: Region
    home: Region
    served: KvSource
    session: KvSession


@pytest.fixture(scope="module")
def pair(link: KvLink) -> Iterator[Pair]:
    with (
        closing(Region.create(SHAPE)) as source,
        closing(Region.create(SHAPE)) as home,
        closing(link.serve(source)) as served,
        closing(link.connect(served.endpoint, home)) as session,
    ):
        yield Pair(source, home, served, session)


@pytest.fixture
def source(pair: Pair) -> Region:
    fill_pool(pair.source, seed=1)
    return pair.source


@pytest.fixture
def home(pair: Pair) -> Region:
    pair.home.blocks[:] = CANARY
    return pair.home


@pytest.fixture
def session(pair: Pair, source: Region, home: Region) -> KvSession:
    return pair.session


def test_the_proven_path_is_named(session: KvSession, link_kind: str) -> None:
    expected = {"nixl": "nixl:cma", "nixl-over-tcp": "nixl:tcp"}
    assert session.path == expected.get(link_kind, link_kind)
    assert session.alive


def test_any_blocks_arrive_in_any_order(session: KvSession, source: Region, home: Region) -> None:
    for seed in range(8):
        random = np.random.default_rng(seed)
        count = int(random.integers(1, SHAPE.num_blocks + 1))
        sources = random.permutation(SHAPE.num_blocks)[:count]
        targets = random.permutation(SHAPE.num_blocks)[:count]
        fill_pool(source, seed)
        home.blocks[:] = CANARY

        session.start(whole_blocks(sources, targets, SHAPE.block_bytes)).wait(WAIT_S)

        assert np.array_equal(home.blocks[targets], source.blocks[sources])
        others = np.setdiff1d(np.arange(SHAPE.num_blocks), targets)
        assert untouched(home.blocks[others])


def test_layer_slices_land_in_their_place_and_nowhere_else(
    session: KvSession, source: Region, home: Region
) -> None:
    random = np.random.default_rng(3)
    sources, targets = (random.permutation(SHAPE.num_blocks) for _ in range(2))
    cuts = np.sort(random.integers(0, SHAPE.block_bytes, size=(SHAPE.num_blocks, 2)), axis=1)
    reads = [
        BlockRead(int(at), GENERATION, int(to), int(first), int(last - first) + 1)
        for at, to, (first, last) in zip(sources, targets, cuts, strict=True)
    ]
    expected = np.full_like(home.blocks, CANARY)
    for read in reads:
        span = slice(read.offset, read.offset + read.length)
        expected[read.target, span] = source.blocks[read.source, span]

    session.start(reads).wait(WAIT_S)

    assert np.array_equal(home.blocks, expected)


def test_runs_of_neighbours_arrive_as_well(
    session: KvSession, source: Region, home: Region
) -> None:
    sources, targets = [*range(8, 40), 2, 3], [*range(32), 40, 41]

    session.start(whole_blocks(sources, targets, SHAPE.block_bytes)).wait(WAIT_S)

    assert np.array_equal(home.blocks[targets], source.blocks[sources])


def test_nothing_to_fetch_is_done_at_once(session: KvSession) -> None:
    session.start([]).wait(WAIT_S)


def test_fetches_started_together_do_not_mix(
    session: KvSession, source: Region, home: Region
) -> None:
    random = np.random.default_rng(5)
    sources, targets = (random.permutation(SHAPE.num_blocks) for _ in range(2))
    transfers = [
        session.start(whole_blocks(sources[part::8], targets[part::8], SHAPE.block_bytes))
        for part in range(8)
    ]

    for transfer in transfers:
        transfer.wait(WAIT_S)

    assert np.array_equal(home.blocks[targets], source.blocks[sources])


def test_a_block_handed_out_before_the_fetch_is_refused(
    session: KvSession, source: Region, home: Region
) -> None:
    source.generations[7] += 1
    transfer = session.start(whole_blocks([5, 6, 7], [0, 1, 2], SHAPE.block_bytes))

    with pytest.raises(StaleBlock, match="block 7"):
        transfer.wait(WAIT_S)

    assert transfer.fence()
    session.start(whole_blocks([5, 6], [0, 1], SHAPE.block_bytes)).wait(WAIT_S)
    assert np.array_equal(home.blocks[:2], source.blocks[5:7])


def test_a_block_handed_out_during_the_fetch_is_refused(
    link: KvLink, make_pool: MakePool, owned: ExitStack
) -> None:
    source, home = make_pool(LARGE), make_pool(LARGE)
    source.generations[:] = GENERATION
    source.blocks[:] = 0
    served = owned.enter_context(closing(link.serve(source)))
    session = owned.enter_context(closing(link.connect(served.endpoint, home)))
    everything = range(LARGE.num_blocks)

    transfer = session.start(whole_blocks(everything, everything, LARGE.block_bytes))
    wait_until(lambda: home.blocks[0, 0] == 0)
    source.generations[0] += 1

    with pytest.raises(StaleBlock, match="block 0"):
        transfer.wait(WAIT_S)


def test_a_block_that_the_peer_cannot_have_is_refused(session: KvSession, home: Region) -> None:
    transfer = session.start([BlockRead(SHAPE.num_blocks, GENERATION, 0, 0, 16)])

    with pytest.raises(KvLinkError, match="outside the peer's pool"):
        transfer.wait(WAIT_S)

    assert untouched(home.blocks)


def test_a_fence_after_the_end_changes_nothing(
    session: KvSession, source: Region, home: Region
) -> None:
    transfer = session.start(whole_blocks([1], [2], SHAPE.block_bytes))
    transfer.wait(WAIT_S)

    assert transfer.fence()
    assert transfer.fence()
    transfer.wait(0)
    assert session.alive
    assert np.array_equal(home.blocks[2], source.blocks[1])


def test_a_closed_session_fails_what_is_asked_of_it(link: KvLink, pair: Pair, home: Region) -> None:
    session = link.connect(pair.served.endpoint, home)
    session.close()
    session.close()

    with pytest.raises(KvLinkError):
        session.start(whole_blocks([1], [2], SHAPE.block_bytes)).wait(WAIT_S)

    assert not session.alive
    assert untouched(home.blocks)


def test_pools_with_other_blocks_do_not_connect(
    link: KvLink, pair: Pair, make_pool: MakePool
) -> None:
    other = make_pool(RegionShape(block_bytes=4096, num_blocks=8))

    with pytest.raises(LinkUnusable, match="6144 bytes, ours 4096"):
        link.connect(pair.served.endpoint, other)


def test_pools_of_another_length_do_connect(
    link: KvLink, pair: Pair, source: Region, make_pool: MakePool, owned: ExitStack
) -> None:
    home = make_pool(RegionShape(SHAPE.block_bytes, 5))
    session = owned.enter_context(closing(link.connect(pair.served.endpoint, home)))

    session.start(whole_blocks([60, 61], [3, 4], SHAPE.block_bytes)).wait(WAIT_S)

    assert np.array_equal(home.blocks[3:], source.blocks[60:62])


def test_a_wrong_probe_page_makes_the_link_unusable(
    link: KvLink, pair: Pair, source: Region, home: Region
) -> None:
    source.probe[100] ^= 1
    try:
        with pytest.raises(LinkUnusable, match="probe page"):
            link.connect(pair.served.endpoint, home)
    finally:
        source.probe[100] ^= 1


@pytest.mark.parametrize("endpoint", ["", "[]", "{}", '{"socket": 1, "host": 2, "metadata": 3}'])
def test_an_endpoint_of_something_else_is_refused(
    link: KvLink, home: Region, endpoint: str
) -> None:
    with pytest.raises(LinkUnusable, match="endpoint"):
        link.connect(endpoint, home)


def test_two_homes_read_from_one_source(
    link: KvLink,
    pair: Pair,
    session: KvSession,
    source: Region,
    home: Region,
    make_pool: MakePool,
    owned: ExitStack,
) -> None:
    another = make_pool(SHAPE)
    beside = owned.enter_context(closing(link.connect(pair.served.endpoint, another)))
    everything = whole_blocks(range(SHAPE.num_blocks), range(SHAPE.num_blocks), SHAPE.block_bytes)

    transfers = [session.start(everything), beside.start(everything)]
    for transfer in transfers:
        transfer.wait(WAIT_S)

    assert np.array_equal(home.blocks, source.blocks)
    assert np.array_equal(another.blocks, source.blocks)


def test_threads_share_a_session(session: KvSession, source: Region, home: Region) -> None:
    failures: list[BaseException] = []

    def fetch(part: int) -> None:
        try:
            for _ in range(5):
                blocks = range(part, SHAPE.num_blocks, 4)
                session.start(whole_blocks(blocks, blocks, SHAPE.block_bytes)).wait(WAIT_S)
        except KvLinkError as error:
            failures.append(error)

    threads = [threading.Thread(target=fetch, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    assert np.array_equal(home.blocks, source.blocks)

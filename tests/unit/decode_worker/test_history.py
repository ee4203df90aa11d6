"""What a home lends: where its blocks are, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast

import pytest

from decode_worker.history import Lender
from transport.kv.digest import digests
from transport.kv.region import Region, RegionShape
from triptych.kv.layout import KvLayout
from triptych.kv.pool import BlockPool
from triptych.testing.kv_pools import fill_pool

LAYOUT = KvLayout(num_layers=2, num_kv_heads=1, head_dim=8, block_tokens=4, dtype="float32")


@pytest.fixture
def region() -> Iterator[Region]:
    shape = RegionShape(block_bytes=LAYOUT.block_bytes, num_blocks=8)
    with closing(Region.create(shape)) as region:
        fill_pool(region, seed=4)
        yield region


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(8)


@pytest.fixture
def lender(region: Region, pool: BlockPool) -> Lender:
    config = SimpleNamespace(transport=SimpleNamespace(digest="full"))
    args: Any = SimpleNamespace(config=config, worker_id="decode-0", epoch=5)
    parts: Any = SimpleNamespace(layout=LAYOUT, region=region, pool=pool)
    lender = Lender(args, parts, cast(Any, SimpleNamespace(is_readable=True)))
    lender.serving("unix:/run/decode-0.sock")
    return lender


def read(region: Region, blocks: list[int]) -> list[int]:
    return digests(region, blocks, 0, LAYOUT.block_bytes, "full")


async def test_lent_blocks_are_named_with_generations_and_digests(
    lender: Lender, region: Region, pool: BlockPool
) -> None:
    blocks = pool.allocate(3) or []
    lent = await lender.offer(blocks)
    assert lent is not None and (lent.worker_id, lent.epoch) == ("decode-0", 5)
    assert list(lent.blocks) == blocks
    assert list(lent.generations) == [pool.generation(block) for block in blocks]
    assert list(lent.digests) == read(region, blocks)


async def test_a_later_turn_reads_only_the_blocks_that_are_new_in_it(
    lender: Lender, region: Region, pool: BlockPool
) -> None:
    first, second = pool.allocate(2) or [], pool.allocate(1) or []
    before = read(region, first)
    await lender.offer(first)
    region.blocks[first] = 0  # nobody does that; it shows that nobody reads them either
    lent = await lender.offer([*first, *second])
    assert lent is not None
    assert list(lent.digests) == [*before, *read(region, second)]


async def test_a_block_that_was_handed_out_again_is_read_again(
    lender: Lender, region: Region, pool: BlockPool
) -> None:
    blocks = pool.allocate(8) or []
    await lender.offer(blocks)
    pool.release(blocks)
    again = pool.allocate(8) or []
    fill_pool(region, seed=5)
    lent = await lender.offer(again)
    assert lent is not None and list(lent.digests) == read(region, again)


async def test_nothing_is_lent_before_the_worker_serves(lender: Lender) -> None:
    lender.serving("")
    assert await lender.offer([1, 2]) is None

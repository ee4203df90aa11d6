"""Digests of block slices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import xxhash

from transport.kv.base import DigestMismatch, KvLinkError
from transport.kv.digest import NOT_SAMPLED, check_digests, digests
from transport.kv.region import Region, RegionShape
from triptych.testing.kv_pools import fill_pool

BLOCKS = [7, 3, 30, 12]


@pytest.fixture
def pool() -> Iterator[Region]:
    with closing(Region.create(RegionShape(block_bytes=512, num_blocks=40))) as region:
        fill_pool(region, seed=4)
        yield region


def test_a_digest_is_the_xxh3_of_the_slice(pool: Region) -> None:
    expected = [xxhash.xxh3_64_intdigest(pool.blocks[at, 64:192].tobytes()) for at in BLOCKS]

    assert digests(pool, BLOCKS, 64, 128, "full") == expected


def test_sampling_takes_the_first_the_last_and_every_sixteenth(pool: Region) -> None:
    sampled = digests(pool, range(36), 0, 512, "sampled")

    assert [at for at, digest in enumerate(sampled) if digest != NOT_SAMPLED] == [0, 16, 32, 35]


def test_no_digest_is_asked_for_when_they_are_off(pool: Region) -> None:
    assert digests(pool, BLOCKS, 0, 512, "off") == [NOT_SAMPLED] * len(BLOCKS)
    assert digests(pool, [], 0, 512, "sampled") == []


def test_one_wrong_byte_is_found_and_named(pool: Region) -> None:
    announced = digests(pool, BLOCKS, 64, 128, "full")
    pool.blocks[30, 191] ^= 1

    with pytest.raises(DigestMismatch, match="block 30"):
        check_digests(pool, BLOCKS, 64, 128, announced)


def test_bytes_outside_the_slice_do_not_matter(pool: Region) -> None:
    announced = digests(pool, BLOCKS, 64, 128, "full")
    pool.blocks[30, 192] ^= 1
    pool.blocks[30, 63] ^= 1

    check_digests(pool, BLOCKS, 64, 128, announced)


def test_blocks_that_were_not_sampled_pass(pool: Region) -> None:
    announced = digests(pool, range(36), 0, 512, "sampled")
    pool.blocks[5] ^= 1

    check_digests(pool, range(36), 0, 512, announced)


def test_a_digest_for_each_block_is_required(pool: Region) -> None:
    with pytest.raises(KvLinkError, match="1 digests announced for 4 blocks"):
        check_digests(pool, BLOCKS, 0, 512, [NOT_SAMPLED])

"""Block reads as numbers: checks, runs and batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.kv.base import BlockRead, KvLinkError
from transport.kv.reads import (
    READ,
    cut_batches,
    cut_runs,
    first_outside,
    first_stale,
    merge_runs,
    positions,
    read_table,
)
from transport.kv.region import RegionShape

SHAPE = RegionShape(block_bytes=100, num_blocks=10)
TOP = 2**64 - 1


def test_runs_that_continue_on_both_sides_become_one() -> None:
    lengths = np.array([100, 100, 100, 100])
    sources = np.array([0, 100, 200, 900])
    targets = np.array([500, 600, 800, 900])

    merged = merge_runs(lengths, sources, targets)

    assert [column.tolist() for column in merged] == [
        [200, 100, 100],
        [0, 200, 900],
        [500, 800, 900],
    ]


def test_slices_with_gaps_between_them_stay_apart() -> None:
    lengths, starts = merge_runs(np.array([50, 50]), np.array([0, 100]))

    assert lengths.tolist() == [50, 50]
    assert starts.tolist() == [0, 100]


def test_no_runs_merge_to_no_runs() -> None:
    empty = np.array([], dtype=np.int64)

    assert all(len(column) == 0 for column in merge_runs(empty, empty, empty))


@given(
    st.lists(st.integers(0, 9), max_size=40),
    st.lists(st.integers(0, 9), min_size=40, max_size=40),
    st.integers(0, 60),
    st.integers(1, 40),
)
def test_merged_runs_copy_the_same_bytes(
    sources: list[int], targets: list[int], offset: int, length: int
) -> None:
    reads = [BlockRead(a, 1, b, offset, length) for a, b in zip(sources, targets, strict=False)]
    table = read_table(reads, SHAPE, SHAPE)
    wanted = [
        (read.source * 100 + offset + byte, read.target * 100 + offset + byte)
        for read in reads
        for byte in range(length)
    ]

    lengths, starts, into = merge_runs(
        table["length"].astype(np.int64),
        positions(table, "source", SHAPE),
        positions(table, "target", SHAPE),
    )

    moved = [
        (start + byte, to + byte)
        for run, start, to in zip(lengths.tolist(), starts.tolist(), into.tolist(), strict=True)
        for byte in range(run)
    ]
    assert moved == wanted


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 20))
def test_cut_runs_cover_the_same_bytes_in_small_pieces(sizes: list[int], limit: int) -> None:
    lengths = np.array(sizes, dtype=np.int64)
    starts = np.cumsum(lengths) * 3

    cut, pieces, others = cut_runs(limit, lengths, starts, starts + 7)

    assert all(0 < size <= limit for size in cut.tolist())
    assert (others - pieces == 7).all()
    covered = [
        at + byte
        for size, at in zip(cut.tolist(), pieces.tolist(), strict=True)
        for byte in range(size)
    ]
    assert covered == [
        at + byte for size, at in zip(sizes, starts.tolist(), strict=True) for byte in range(size)
    ]


@given(st.lists(st.integers(1, 1000), max_size=60), st.integers(1, 3000))
def test_batches_cover_all_reads_in_order_and_stay_small(sizes: list[int], limit: int) -> None:
    batches = list(cut_batches(np.array(sizes, dtype=np.int64), limit))

    assert [size for batch in batches for size in sizes[batch]] == sizes
    for batch in batches:
        assert len(sizes[batch]) == 1 or sum(sizes[batch]) <= limit


@pytest.mark.parametrize(
    "row",
    [
        (10, 1, 0, 0, 10),
        (TOP, 1, 0, 0, 10),
        (0, 1, 0, 91, 10),
        (0, 1, 0, 0, 101),
        (0, 1, 0, 101, 1),
        (0, 1, 0, TOP, 2),
        (0, 1, 0, 2, TOP),
        (0, 1, 0, 0, 0),
    ],
)
def test_a_read_outside_the_pool_is_found(row: tuple[int, ...]) -> None:
    table = np.array([(9, 1, 0, 0, 100), row], dtype=READ)

    assert first_outside(table, "source", SHAPE) == 1
    assert first_outside(table[:1], "source", SHAPE) is None


def test_a_peer_that_announces_what_it_cannot_have_is_refused() -> None:
    with pytest.raises(KvLinkError, match="source=12.*outside the peer's pool"):
        read_table([BlockRead(12, 1, 0, 0, 10)], SHAPE, SHAPE)


def test_reading_into_blocks_that_we_do_not_have_is_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="outside our pool"):
        read_table([BlockRead(0, 1, 12, 0, 10)], SHAPE, SHAPE)


def test_the_first_block_of_another_generation_is_found() -> None:
    generations = np.array([5, 5, 6, 5], dtype=np.uint64)
    reads = [(block, 5, 0, 0, 1) for block in (0, 3, 2, 1)]

    assert first_stale(np.array(reads, dtype=READ), generations) == 2
    assert first_stale(np.array(reads[:2], dtype=READ), generations) is None

"""Block reads as one table of numbers: checked, merged into runs, cut into batches. All pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from transport.kv.base import BlockRead, KvLinkError
from transport.kv.region import RegionShape

MAX_READS = 65536  # reads of one fetch: bounds what a source holds for one request
READ = np.dtype([(name, "<u8") for name in ("source", "generation", "target", "offset", "length")])
ReadTable = NDArray[np.void]  # [reads] of READ; also the wire format
Positions = NDArray[np.int64]  # bytes from the start of block 0


def read_table(reads: Sequence[BlockRead], peer: RegionShape, ours: RegionShape) -> ReadTable:
    """The table of a fetch. Raises KvLinkError when the peer announced blocks that it has not."""
    assert len(reads) <= MAX_READS, f"{len(reads)} reads in one fetch, at most {MAX_READS}"
    rows = [(r.source, r.generation, r.target, r.offset, r.length) for r in reads]
    table = np.array(rows, dtype=READ)
    ours_wrong = first_outside(table, "target", ours)
    assert ours_wrong is None, f"{reads[ours_wrong]} lies outside our pool of {ours}"
    peers_wrong = first_outside(table, "source", peer)
    if peers_wrong is not None:
        raise KvLinkError(f"{reads[peers_wrong]} lies outside the peer's pool of {peer}")
    return table


def first_outside(table: ReadTable, side: str, shape: RegionShape) -> int | None:
    """Index of the first read outside a pool; `side` names the column of block ids."""
    offset, length = table["offset"], table["length"]
    outside = (
        (table[side] >= shape.num_blocks)
        | (length == 0)
        | (offset > shape.block_bytes)
        | (length > shape.block_bytes - np.minimum(offset, np.uint64(shape.block_bytes)))
    )
    return int(outside.argmax()) if outside.any() else None


def first_stale(table: ReadTable, generations: NDArray[np.uint64]) -> int | None:
    """Index of the first read whose block is of another generation by now."""
    stale = generations[table["source"]] != table["generation"]
    return int(stale.argmax()) if bool(stale.any()) else None


def positions(table: ReadTable, side: str, shape: RegionShape) -> Positions:
    """Where the reads begin in one of the two pools."""
    ids: Positions = table[side].astype(np.int64)
    return ids * shape.block_bytes + table["offset"].astype(np.int64)


def lengths_of(table: ReadTable) -> Positions:
    return table["length"].astype(np.int64)


def merge_runs(lengths: Positions, *starts: Positions) -> tuple[Positions, ...]:
    """Joins neighbours that continue each other in every column of `starts`: (lengths, *starts)."""
    if not len(lengths):
        return (lengths, *starts)
    head = np.ones(len(lengths), dtype=bool)
    head[1:] = False
    for start in starts:
        head[1:] |= start[1:] != start[:-1] + lengths[:-1]
    heads = np.flatnonzero(head)
    return (np.add.reduceat(lengths, heads), *(start[heads] for start in starts))


def cut_runs(limit_bytes: int, lengths: Positions, *starts: Positions) -> tuple[Positions, ...]:
    """Cuts runs longer than the limit into pieces: (lengths, *starts)."""
    pieces = -(-lengths // limit_bytes)
    first = np.cumsum(pieces) - pieces  # index of each run's first piece
    done = limit_bytes * (np.arange(int(pieces.sum())) - np.repeat(first, pieces))
    cut = np.minimum(np.repeat(lengths, pieces) - done, limit_bytes)
    return (cut, *(np.repeat(start, pieces) + done for start in starts))


def cut_batches(lengths: Positions, limit_bytes: int) -> Iterator[slice]:
    """Slices of at most `limit_bytes` (but at least one read) that cover the table in order."""
    ends = np.cumsum(lengths)
    first, done = 0, 0
    while first < len(lengths):
        last = max(first + 1, int(np.searchsorted(ends, done + limit_bytes, side="right")))
        yield slice(first, last)
        first, done = last, int(ends[last - 1])

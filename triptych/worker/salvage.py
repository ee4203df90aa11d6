"""KV that another home computed for a stream that goes on here, read from its memory.

A stream whose home died, hangs or leaves brings its tokens, not their KV. Where the old home was on
this host, its blocks are still in memory, and to copy one takes a thousandth of computing it. Full
ones enter the prefix cache, where the scheduler finds them like any others. The last, unfinished
one waits beside the sequence until that has its own blocks. What is not found is computed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from transport.kv.neighbours import Neighbours
from transport.kv.region import Region
from triptych.engine.sequence import Sequence
from triptych.engine.tails import tail_name
from triptych.kv.pool import BlockPool, Holder
from triptych.obs.metrics import WorkerMetrics


@dataclass(slots=True)
class Salvager:
    """`neighbours` None: nothing is salvaged."""

    pool: BlockPool
    region: Region
    neighbours: Neighbours | None
    metrics: WorkerMetrics

    async def salvage(self, sequences: Seq[Sequence]) -> int:
        """Brings what can be found of them into the prefix cache, before they are admitted; how
        many blocks.
        """
        if self.neighbours is None:
            return 0
        resumed = [sequence for sequence in sequences if sequence.resumed]
        return sum([await asyncio.to_thread(self._bring, sequence) for sequence in resumed])

    async def tend(self) -> None:
        """Now and then."""
        if self.neighbours is not None:
            await asyncio.to_thread(self.neighbours.look)

    def close(self) -> None:
        if self.neighbours is not None:
            self.neighbours.close()

    def _bring(self, sequence: Sequence) -> int:
        found = self._fetch(sequence.reusable_hashes()) + self._fetch_tail(sequence)
        self.metrics.kv_salvaged_blocks.inc(found)
        return found

    def _fetch_tail(self, sequence: Sequence) -> int:
        """All of its rows but the last, which is computed in any case: it predicts a token."""
        assert self.neighbours is not None, "the caller asked"
        index, rows = divmod(len(sequence.tokens) - 1, sequence.block_tokens)
        if not rows:
            return 0
        found = self.neighbours.find_unfinished(tail_name(sequence, index), rows)
        if found is None:
            return 0
        content = np.empty(self.region.shape.block_bytes, np.uint8)
        if not found.copy_to(content):
            return 0

        def place(blocks: list[int], num_cached: int) -> int:
            """On the engine's thread. Rows behind a gap are worth nothing."""
            if num_cached != index:
                return 0
            self.region.blocks[blocks[index]] = content
            return rows

        sequence.on_place = place
        return 1

    def _fetch(self, hashes: list[bytes]) -> int:
        assert self.neighbours is not None, "the caller asked"
        known = self.pool.count_cached(hashes)
        found = self.neighbours.find(hashes[known:])
        blocks = self.pool.allocate(len(found), Holder.TRANSFER)
        if blocks is None:  # no room: then it is computed, when there is
            return 0
        fetched = 0
        with contextlib.ExitStack() as done:
            done.callback(self.pool.release, blocks, Holder.TRANSFER)
            for block, source in zip(blocks, found, strict=True):
                if not source.copy_to(self.region.blocks[block]):
                    break
                self.pool.commit(block, source.name)
                fetched += 1
        return fetched

"""KV that another home computed for a stream that goes on here, read from its memory.

A stream whose home died, hangs or leaves brings its tokens, not their KV. Where the old home was on
this host, its full blocks are still in memory, and to copy one takes a thousandth of computing it.
They enter the prefix cache, where the scheduler finds them like any others; what is not found, the
last, unfinished block above all, is computed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from transport.kv.neighbours import Neighbours
from transport.kv.region import Region
from triptych.engine.sequence import Sequence
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
        wanted = [sequence.reusable_hashes() for sequence in sequences if sequence.resumed]
        return sum([await asyncio.to_thread(self._fetch, hashes) for hashes in wanted])

    async def tend(self) -> None:
        """Now and then."""
        if self.neighbours is not None:
            await asyncio.to_thread(self.neighbours.look)

    def close(self) -> None:
        if self.neighbours is not None:
            self.neighbours.close()

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
                self.pool.commit(block, source.hash)
                fetched += 1
        self.metrics.kv_salvaged_blocks.inc(fetched)
        return fetched

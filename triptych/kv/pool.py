"""Who holds which block, and which blocks hold which prefix.

A block is *free*, *held* (by one or more holders) or *cached* (held by nobody, findable by its
hash, evicted least recently used first). Holders are counted by kind, so a block that a request has
left but a transfer may still write into stays away from everybody else: it is free only when every
lifetime has ended.

Thread-safe: every method is atomic. Knows hashes and block ids; knows nothing of tokens or memory.
"""

from __future__ import annotations

import enum
import heapq
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.kv.journal import CacheChanges, CacheJournal, cut_keys


class Holder(enum.StrEnum):
    """Why a block is held."""

    REQUEST = "request"
    TRANSFER = "transfer"  # a fetch may write into it (home) or read from it (source)
    QUARANTINE = "quarantine"  # a transfer ended, but its writer is not proven quiet


@dataclass(slots=True)
class _Block:
    holders: int = 0
    hash: bytes | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """Blocks for a whole prompt: the first `num_cached` hold its prefix already."""

    blocks: list[int]
    num_cached: int


class BlockPool:
    """All blocks of one worker. `generations` u64 [num_blocks] rises with every hand-out of a
    block; `hashes` u8 [num_blocks, 16] tells others what the cached blocks are, zeros: not cached.
    """

    def __init__(
        self,
        num_blocks: int,
        *,
        generations: NDArray[np.uint64] | None = None,
        hashes: NDArray[np.uint8] | None = None,
        cache: bool = True,
    ) -> None:
        self.num_blocks = num_blocks
        self._hashes = hashes
        self.generations = (
            np.zeros(num_blocks, dtype=np.uint64) if generations is None else generations
        )
        self._cache_enabled = cache
        self._lock = threading.Lock()
        self._blocks = [_Block() for _ in range(num_blocks)]
        self._free = list(range(num_blocks))  # a heap: low ids first keeps runs contiguous
        self._by_hash: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._held = dict.fromkeys(Holder, 0)
        self._journal = CacheJournal(num_blocks)

    # ---- hand out ------------------------------------------------------------------------------

    def allocate(self, count: int, holder: Holder = Holder.REQUEST) -> list[int] | None:
        """`count` fresh blocks, or None (and no change) when fewer are free or evictable."""
        with self._lock:
            return self._allocate(count, holder)

    def reserve(self, hashes: Sequence[bytes], count: int) -> Reservation | None:
        """`count` blocks for a request whose first blocks have these hashes; cached ones are
        shared.

        None, and no change, when the pool cannot hold it now.
        """
        with self._lock:
            found = self._match(hashes[:count])
            self._hold(found, Holder.REQUEST)
            fresh = self._allocate(count - len(found), Holder.REQUEST)
            if fresh is None:
                self._drop(found, Holder.REQUEST)
                return None
            return Reservation(found + fresh, len(found))

    def count_cached(self, hashes: Sequence[bytes]) -> int:
        """How many leading blocks a reservation would find now. A hint: it holds nothing."""
        with self._lock:
            return len(self._match(hashes))

    def touch(self, hashes: Sequence[bytes]) -> int:
        """The same; and what a reservation would find is the last to be evicted, so that it is
        still there when the one who asks leaves the queue.
        """
        with self._lock:
            found = self._match(hashes)
            for block in reversed(found):
                if block in self._cached:
                    self._cached.move_to_end(block)
            return len(found)

    def hold(self, blocks: Sequence[int], holder: Holder) -> None:
        """Adds a holder to blocks that are held already."""
        with self._lock:
            assert all(self._blocks[block].holders for block in blocks), "hold of a free block"
            self._hold(blocks, holder)

    def move(self, blocks: Sequence[int], source: Holder, target: Holder) -> None:
        """Changes the kind under which blocks are held, e.g. transfer → quarantine."""
        with self._lock:
            self._held[source] -= len(blocks)
            self._held[target] += len(blocks)

    def release(self, blocks: Sequence[int], holder: Holder = Holder.REQUEST) -> None:
        """Ends a holder's claim. Blocks that nobody holds become cached (if committed) or free."""
        with self._lock:
            self._drop(blocks, holder)

    # ---- prefix cache --------------------------------------------------------------------------

    def commit(self, block: int, block_hash: bytes) -> None:
        """The block's content is final and is what `block_hash` says: others may share it from now
        on.

        If another block has that content already, it stays the one that is found.
        """
        if not self._cache_enabled:
            return
        with self._lock:
            assert self._blocks[block].holders, "commit of a block that nobody holds"
            if block_hash not in self._by_hash and self._blocks[block].hash is None:
                self._by_hash[block_hash] = block
                self._blocks[block].hash = block_hash
                self._journal.stored(block_hash)
                if self._hashes is not None:
                    self._hashes[block] = np.frombuffer(block_hash, np.uint8)

    def clear_cache(self) -> int:
        """Forgets every cached block that nobody holds; returns how many."""
        with self._lock:
            cached = list(self._cached)
            for block in cached:
                self._evict(block)
                heapq.heappush(self._free, block)
            return len(cached)

    def changes(self, position: int, limit: int) -> CacheChanges | None:
        """What the next `limit` changes of the cache, from number `position` on, came to; None:
        only a snapshot helps, it is too long ago.
        """
        with self._lock:
            return self._journal.since(position, limit)

    def snapshot(self) -> tuple[int, bytes]:
        """How many changes there were so far, and the keys of all blocks that can be found."""
        with self._lock:
            end, hashes = self._journal.end, list(self._by_hash)
        return end, cut_keys(hashes)

    # ---- numbers -------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """Blocks that could be handed out now: free and cached ones."""
        with self._lock:
            return len(self._free) + len(self._cached)

    def counts(self) -> dict[str, int]:
        """Holds by kind, and free and cached blocks. A block with two holders counts under both."""
        with self._lock:
            counts = {holder.value: count for holder, count in self._held.items()}
            return {**counts, "free": len(self._free), "cached": len(self._cached)}

    def generation(self, block: int) -> int:
        return int(self.generations[block])

    # ---- under the lock ------------------------------------------------------------------------

    def _match(self, hashes: Sequence[bytes]) -> list[int]:
        found: list[int] = []
        for block_hash in hashes:
            block = self._by_hash.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def _allocate(self, count: int, holder: Holder) -> list[int] | None:
        if count > len(self._free) + len(self._cached):
            return None
        while len(self._free) < count:
            oldest = next(iter(self._cached))
            self._evict(oldest)
            heapq.heappush(self._free, oldest)
        fresh = [heapq.heappop(self._free) for _ in range(count)]
        self.generations[fresh] += np.uint64(1)
        self._hold(fresh, holder)
        return fresh

    def _evict(self, block: int) -> None:
        del self._cached[block]
        block_hash = self._blocks[block].hash
        assert block_hash is not None, "a cached block has a hash"
        del self._by_hash[block_hash]
        self._blocks[block].hash = None
        self._journal.removed(block_hash)
        if self._hashes is not None:  # before the generation rises, and long before it is written
            self._hashes[block] = 0

    def _hold(self, blocks: Sequence[int], holder: Holder) -> None:
        for block in blocks:
            self._cached.pop(block, None)
            self._blocks[block].holders += 1
        self._held[holder] += len(blocks)

    def _drop(self, blocks: Sequence[int], holder: Holder) -> None:
        # Last block first: of one prefix the tail is then evicted before the head that others
        # share.
        for block in reversed(blocks):
            state = self._blocks[block]
            assert state.holders > 0, "release of a block that nobody holds"
            state.holders -= 1
            if state.holders == 0:
                if state.hash is None:
                    heapq.heappush(self._free, block)
                else:
                    self._cached[block] = None
        self._held[holder] -= len(blocks)
        assert self._held[holder] >= 0, f"more {holder} releases than holds"

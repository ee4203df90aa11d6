"""A simulated worker's KV blocks, and what routers believe of all of them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from router.index.hit import PrefixHit

Told = Callable[[Sequence[int], Sequence[int]], None]  # (stored, evicted)


class BlockCache:
    """Blocks that requests hold, and least recently used ones that somebody may need again."""

    def __init__(self, capacity: int, told: Told) -> None:
        self.capacity = capacity
        self._told = told
        self._held: Counter[int] = Counter()  # prompts' blocks → requests that hold them
        self._idle: OrderedDict[int, None] = OrderedDict()  # computed, held by nobody
        self._ready: set[int] = set()  # computed
        self._private = 0  # blocks of answers

    @property
    def used(self) -> int:
        """By requests; what is idle counts as free."""
        return len(self._held) + self._private

    @property
    def filled(self) -> int:
        return self.used + len(self._idle)

    def count_cached(self, blocks: Sequence[int]) -> int:
        """Leading ones that are computed."""
        for place, block in enumerate(blocks):
            if block not in self._ready:
                return place
        return len(blocks)

    def touch(self, blocks: Sequence[int]) -> None:
        """Somebody who is queued will need them: they go last, as far as they are idle."""
        for block in reversed(blocks[: self.count_cached(blocks)]):
            if block in self._idle:
                self._idle.move_to_end(block)

    def take(self, blocks: Sequence[int], private: int = 0) -> bool:
        """Holds a prompt's blocks and so many for its answer; False, and nothing, if they do not
        fit now.
        """
        fresh = sum(block not in self._held for block in blocks)
        if self.used + fresh + private > self.capacity:
            return False
        for block in blocks:
            self._held[block] += 1
            self._idle.pop(block, None)
        self._private += private
        evicted = []
        while self.filled > self.capacity:
            block, _ = self._idle.popitem(last=False)
            self._ready.discard(block)
            evicted.append(block)
        if evicted:
            self._told((), evicted)
        return True

    def commit(self, blocks: Sequence[int]) -> None:
        """They are computed, or fetched."""
        stored = [block for block in blocks if block not in self._ready]
        self._ready.update(stored)
        if stored:
            self._told(stored, ())

    def give(self, blocks: Sequence[int], private: int = 0) -> None:
        """The request has ended. A prompt's tail is forgotten before its head."""
        for block in reversed(blocks):
            self._held[block] -= 1
            if not self._held[block]:
                del self._held[block]
                if block in self._ready:
                    self._idle[block] = None
        self._private -= private


@dataclass(slots=True)
class Beliefs:
    """Which worker holds which block, as far as events have come: one bit a worker.

    A prompt that was just placed counts as held (what SGLang's tree does, Dynamo and llm-d call
    speculative or predicted entries), until it is computed and events tell of it.
    """

    worker_ids: Sequence[str]
    _stored: dict[int, int] = field(default_factory=dict)
    _expected: dict[int, int] = field(default_factory=dict)
    _prompts: Counter[tuple[int, int]] = field(default_factory=Counter)  # by (worker, block)

    def hits(self, blocks: Sequence[int]) -> Mapping[str, PrefixHit]:
        """What is on its way counts."""
        stored, expected = self._stored, self._expected
        found = self._leading(stored.get(block, 0) | expected.get(block, 0) for block in blocks)
        return {worker_id: PrefixHit(count) for worker_id, count in found.items()}

    def told(self, blocks: Sequence[int]) -> Mapping[str, int]:
        """What is on its way does not."""
        return self._leading(self._stored.get(block, 0) for block in blocks)

    def _leading(self, holders: Iterable[int]) -> dict[str, int]:
        """Blocks from the first one on, by worker id. `holders`: masks, block by block."""
        found: dict[str, int] = {}
        holding, place = (1 << len(self.worker_ids)) - 1, 0
        for mask in holders:
            still = holding & mask
            self._note(holding & ~still, place, found)
            holding = still
            if not holding:
                return found
            place += 1
        self._note(holding, place, found)
        return found

    def expect(self, worker: int, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._prompts[worker, block] += 1
            self._expected[block] = self._expected.get(block, 0) | 1 << worker

    def expect_no_more(self, worker: int, blocks: Sequence[int]) -> None:
        """The prompt is computed; others may still be expected to have the same blocks."""
        for block in blocks:
            self._prompts[worker, block] -= 1
            if not self._prompts[worker, block]:
                del self._prompts[worker, block]
                _clear(self._expected, block, worker)

    def hear(self, worker: int, stored: Sequence[int], evicted: Sequence[int]) -> None:
        for block in stored:
            self._stored[block] = self._stored.get(block, 0) | 1 << worker
        for block in evicted:
            _clear(self._stored, block, worker)

    def _note(self, workers: int, place: int, found: dict[str, int]) -> None:
        while place and workers:
            lowest = workers & -workers
            found[self.worker_ids[lowest.bit_length() - 1]] = place
            workers ^= lowest


def _clear(masks: dict[int, int], block: int, worker: int) -> None:
    left = masks.get(block, 0) & ~(1 << worker)
    if left:
        masks[block] = left
    else:
        masks.pop(block, None)

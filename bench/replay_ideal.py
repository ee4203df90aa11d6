"""How much of a trace's prompts the best placement could have found in caches.

Nobody knows the best one; `placed_hit_ratio` is what a placement reaches that knows the whole
trace, so the best reaches that much at least. No placement reaches more than one cache that is as
large as all workers' together (`bench.replay_trace.pooled_hit_ratio`) with Belady's replacement.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from bench.replay_trace import Recorded, hit_tokens, next_uses

# What a block counts that is thrown out though somebody will want it: of its own worth. None of
# them is best on every trace.
_REGRETS = (0.25, 0.5, 1.0)


def placed_hit_ratio(trace: Sequence[Recorded], workers: int, capacity: int) -> float:
    """Share of prompt tokens found, each request at one of `workers` caches of `capacity` blocks
    with the replacement that workers have (LRU). 0 without workers.

    Loads do not matter and requests are instantaneous. Greedy in the order of the trace: where most
    of the prompt is, less what its other blocks throw out there that somebody will want (times a
    regret, of which the best is taken). What nobody ever wants again goes to one worker as long as
    that is no loss, so it throws out what is alike.
    """
    if not workers:
        return 0.0
    uses = next_uses(trace)
    return max(_greedy(trace, uses, workers, capacity, regret) for regret in _REGRETS)


@dataclass(slots=True)
class _Cache:
    number: int
    capacity: int
    wanted: int = 0  # blocks that somebody will want
    _next: OrderedDict[int, int] = field(default_factory=OrderedDict)  # by block, oldest first

    def leading(self, blocks: Sequence[int]) -> int:
        return next((n for n, block in enumerate(blocks) if block not in self._next), len(blocks))

    def loss(self, blocks: Sequence[int], never: int) -> int:
        """Wanted blocks that would give way to these."""
        fresh = sum(block not in self._next for block in blocks)
        over = max(0, len(self._next) + fresh - self.capacity)
        if not over or not self.wanted:
            return 0
        return sum(use < never for use in islice(self._next.values(), over))

    def insert(self, blocks: Sequence[int], uses: Sequence[int], never: int) -> None:
        """A prompt's tail is forgotten before its head."""
        for block, use in zip(reversed(blocks), reversed(uses), strict=True):
            self.wanted += (use < never) - (self._next.get(block, never) < never)
            self._next[block] = use
            self._next.move_to_end(block)
        while len(self._next) > self.capacity:
            self.wanted -= self._next.popitem(last=False)[1] < never


def _greedy(
    trace: Sequence[Recorded],
    uses: Sequence[Sequence[int]],
    workers: int,
    capacity: int,
    regret: float,
) -> float:
    caches = [_Cache(number, capacity) for number in range(workers)]
    never, hits, total = len(trace), 0, 0
    for request, following in zip(trace, uses, strict=True):
        is_wanted = any(use < never for use in following)
        found = [cache.leading(request.blocks) for cache in caches]
        gains = [
            count - regret * cache.loss(request.blocks, never)
            for count, cache in zip(found, caches, strict=True)
        ]
        most = max(gains)
        alike = [cache for cache, gain in zip(caches, gains, strict=True) if gain == most]
        # What is wanted goes where least is wanted yet, what is not to the first one.
        best = min(alike, key=lambda cache: cache.wanted) if is_wanted else alike[0]
        hits += hit_tokens(request, found[best.number])
        total += request.prompt
        best.insert(request.blocks, following, never)
    return hits / max(1, total)

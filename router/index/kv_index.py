"""The index: what workers told of their prefix caches, and what they are about to hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from router.index.expected import Expected
from router.index.hit import PrefixHit
from router.index.holdings import Holding, Holdings
from router.index.keys import keys_of
from router.index.table import Keys
from transport.registry import WorkerView

# A first token tells that a prompt's blocks are in both caches. Their events are then on the way,
# for some hundredths of a second; two seconds also bridge a loop that collects garbage, or a gap
# and its snapshot. Longer, and blocks whose events never come would be believed in for too long.
_CONFIRMED_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Lookup:
    """Leading blocks of one prompt, by worker id; who holds none is not in it."""

    told: Mapping[str, int]  # what caches have, as far as is known
    hits: Mapping[str, PrefixHit]  # with what is on its way into them


class BlockIndex(Protocol):
    """Answers and learns from placements. Lives on one event loop."""

    def look_up(self, keys: Keys) -> Lookup: ...

    def expect(self, worker: WorkerView, keys: Keys) -> Callable[[bool], None]:
        """`worker` is computing (or fetching) these blocks. To be told, once, if it worked out."""

    def join(self, worker: WorkerView) -> None:
        """It has come."""

    def forget(self, worker: WorkerView) -> None:
        """It has left."""


class KvIndex:
    """A BlockIndex of what workers publish."""

    def __init__(
        self,
        *,
        confirmed_within_s: float = _CONFIRMED_WITHIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._confirmed_within_s = confirmed_within_s
        self._clock = clock
        self._expected = Expected()
        self._shown: dict[str, Holding] = {}  # by worker id
        self._capacity: dict[str, int] = {}  # blocks of each worker's pool, by worker id
        self.holdings = Holdings()

    def hits(self, hashes: Sequence[bytes]) -> Mapping[str, PrefixHit]:
        """How many of the blocks with these hashes each worker holds, or will in a moment."""
        return self.look_up(keys_of(hashes)).hits

    def look_up(self, keys: Keys) -> Lookup:
        told = self.holdings.leading(keys)
        lengths = dict(told)
        expected = [*self._expected.at(self._clock())]
        numbers = keys.tolist() if expected else []
        for worker_id, counts in expected:
            start = told.get(worker_id, 0)
            length = _extended(numbers, start, counts, self._shown.get(worker_id))
            if length:
                lengths[worker_id] = length
        return Lookup(told, {name: PrefixHit(length) for name, length in lengths.items()})

    def expect(self, worker: WorkerView, keys: Keys) -> Callable[[bool], None]:
        worker_id, numbers = worker.worker_id, keys.tolist()
        self._expected.begin(worker_id, numbers)

        def done(worked_out: bool) -> None:
            if worked_out:
                until = self._clock() + self._confirmed_within_s
                self._expected.end_at(until, worker_id, numbers)
            else:
                self._expected.end(worker_id, numbers)

        return done

    def join(self, worker: WorkerView) -> None:
        self._capacity[worker.worker_id] = worker.num_blocks
        self.holdings.reserve(sum(self._capacity.values()))

    def forget(self, worker: WorkerView) -> None:
        """What it told is forgotten with the call on which it did."""
        self._expected.forget(worker.worker_id)
        self._capacity.pop(worker.worker_id, None)

    # ---- what workers publish ------------------------------------------------------------------

    def num_blocks(self, worker_id: str) -> int:
        shown = self._shown.get(worker_id)
        return 0 if shown is None else shown.num_blocks

    def store(self, worker_id: str, keys: Keys) -> None:
        """Of a worker whose cache is known; keys are distinct."""
        self._shown[worker_id].add(keys)

    def remove(self, worker_id: str, keys: Keys) -> None:
        self._shown[worker_id].discard(keys)
        self._expected.refute(worker_id, keys.tolist())

    def replace(self, worker_id: str, holding: Holding) -> None:
        """This is the worker's whole cache; the index owns it now."""
        self.withdraw(worker_id)
        self._shown[worker_id] = holding
        holding.show(worker_id)

    def withdraw(self, worker_id: str) -> None:
        """Nothing is known of its cache any more."""
        shown = self._shown.pop(worker_id, None)
        if shown is not None:
            shown.close()


def _extended(
    keys: Sequence[int], start: int, expected: Collection[int], held: Holding | None
) -> int:
    """How far it goes on from `start`, the first block not held, with those expected or held."""
    length = start
    while length < len(keys) and (
        keys[length] in expected or (length > start and held is not None and held.has(keys[length]))
    ):
        length += 1
    return length

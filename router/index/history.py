"""The index of a router that nobody tells anything: its own placements, and what pools make of
them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from router.index.hit import PrefixHit
from router.index.holdings import Holding, Holdings
from router.index.kv_index import Lookup
from router.index.table import Keys
from transport.registry import WorkerView


@dataclass(slots=True)
class _Past:
    """What a worker with so many blocks would still hold, had it nothing else to do."""

    num_blocks: int
    holding: Holding
    order: OrderedDict[int, None] = field(default_factory=OrderedDict)  # keys, oldest first


class HistoryIndex:
    """A BlockIndex of what was placed: approximate, for workers that publish nothing.

    As in a pool, the least recently used block is dropped first, and of one prompt the last.
    """

    def __init__(self) -> None:
        self._holdings = Holdings()
        self._pasts: dict[tuple[str, int], _Past] = {}  # by worker id and epoch

    def look_up(self, keys: Keys) -> Lookup:
        told = self._holdings.leading(keys)
        return Lookup(told, {name: PrefixHit(length) for name, length in told.items()})

    def expect(self, worker: WorkerView, keys: Keys) -> Callable[[bool], None]:
        past = self._past(worker)
        kept = keys[: past.num_blocks]
        past.holding.add(np.unique(kept))
        for key in reversed(kept.tolist()):
            past.order.pop(key, None)
            past.order[key] = None
        surplus = len(past.order) - past.num_blocks
        if surplus > 0:
            dropped = [past.order.popitem(last=False)[0] for _ in range(surplus)]
            past.holding.discard(np.array(dropped, dtype=np.uint64))
        return lambda worked_out: None  # what failed half way left blocks behind, too

    def join(self, worker: WorkerView) -> None:
        """Nothing is known of it yet."""

    def forget(self, worker: WorkerView) -> None:
        past = self._pasts.pop((worker.worker_id, worker.epoch), None)
        if past is not None:
            past.holding.close()

    def _past(self, worker: WorkerView) -> _Past:
        key = (worker.worker_id, worker.epoch)
        if key not in self._pasts:
            for old in [each for each in self._pasts if each[0] == worker.worker_id]:
                self._pasts.pop(old).holding.close()  # noted after it had left
            holding = self._holdings.open()
            holding.show(worker.worker_id)
            self._pasts[key] = _Past(worker.num_blocks, holding)
        return self._pasts[key]

"""The transfer ledger: every block that a transfer may touch, until that transfer is proven quiet.

A block has two lifetimes, its request's and its transfer's. The ledger holds the second: it begins
before the first byte moves and ends exactly once, by commit (all bytes landed and verified) or by
abort. An abort whose fence cannot prove quiet puts the blocks into quarantine, where they stay
until a later fence can.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from triptych.kv.pool import BlockPool, Holder

Fence = Callable[[], bool]  # True: no byte of the transfer can move any more


class Lease:
    """The hold of one transfer on its blocks. End it once; ending it again does nothing."""

    def __init__(self, ledger: TransferLedger, blocks: Sequence[int]) -> None:
        self.blocks = list(blocks)
        self.began_at = time.monotonic()
        self._ledger = ledger

    def commit(self) -> None:
        """The bytes are there and verified, or were only read: the transfer is over."""
        self._ledger._end(self, None)

    def abort(self, fence: Fence) -> bool:
        """Stops the transfer with `fence`. False: its writer is not proven quiet, the blocks are in
        quarantine, and their request must not use them again.
        """
        return self._ledger._end(self, fence)


class TransferLedger:
    """All leases of one pool. Thread-safe."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._open: dict[Lease, None] = {}  # in order of begin
        self._quarantined: list[tuple[Lease, Fence]] = []

    def begin(self, blocks: Sequence[int]) -> Lease:
        """Starts a transfer's hold on blocks that a request holds already."""
        lease = Lease(self, blocks)
        self._pool.hold(lease.blocks, Holder.TRANSFER)
        with self._lock:
            self._open[lease] = None
        return lease

    def sweep(self) -> int:
        """Tries the fences of quarantined blocks again; returns how many blocks are still held."""
        with self._lock:
            waiting, self._quarantined = self._quarantined, []
        still = [(lease, fence) for lease, fence in waiting if not fence()]
        for lease, _ in {*waiting} - {*still}:
            self._pool.release(lease.blocks, Holder.QUARANTINE)
        with self._lock:
            self._quarantined.extend(still)
        return sum(len(lease.blocks) for lease, _ in still)

    def oldest_age_s(self) -> float:
        """Age of the oldest transfer under way; 0.0 when there is none."""
        with self._lock:
            first = next(iter(self._open), None)
        return 0.0 if first is None else time.monotonic() - first.began_at

    def _end(self, lease: Lease, fence: Fence | None) -> bool:
        with self._lock:
            if lease not in self._open:
                return True
            del self._open[lease]
        if fence is None or fence():
            self._pool.release(lease.blocks, Holder.TRANSFER)
            return True
        self._pool.move(lease.blocks, Holder.TRANSFER, Holder.QUARANTINE)
        with self._lock:
            self._quarantined.append((lease, fence))
        return False

"""Other workers' KV pools on this host, mapped before anybody needs them.

Memory lives while it is mapped: whatever the prefix cache of a worker that was killed held can
still be read by its neighbours. So can that of one that hangs, without asking it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transport.kv.base import LinkUnusable, PeerGone
from transport.kv.region import Region
from transport.kv.shm import is_open, open_pool, pools_in


@dataclass(frozen=True, slots=True)
class Found:
    """A block of a neighbour's, as it was when it was found. Keeps that pool mapped."""

    views: _Views
    block: int
    generation: int
    name: bytes  # its hash, or what names an unfinished one

    @property
    def rows(self) -> int:
        """Of an unfinished one: how many tokens' KV is in it, at least."""
        return int(self.views.hashes[self.block].view(np.uint16)[-1])

    def copy_to(self, target: NDArray[np.uint8]) -> bool:
        """u8 [block bytes]. False: it became another block meanwhile; the copy is worth nothing."""
        target[:] = self.views.blocks[self.block]
        # A source forgets the name and raises the generation before it writes; see ShmSession.
        same = int(self.views.generations[self.block]) == self.generation
        return same and self.views.name(self.block, len(self.name)) == self.name


@dataclass(frozen=True, slots=True, eq=False)
class _Views:
    """Of a region that may be closed meanwhile."""

    generations: NDArray[np.uint64]
    hashes: NDArray[np.uint8]
    blocks: NDArray[np.uint8]

    def name(self, block: int, length: int) -> bytes:
        return self.hashes[block, :length].tobytes()

    def find(self, name: bytes) -> Found | None:
        head = np.frombuffer(name, np.uint64, 1)[0]
        for block in np.flatnonzero(self.hashes.view(np.uint64)[:, 0] == head).tolist():
            generation = int(self.generations[block])
            if self.name(block, len(name)) == name:
                return Found(self, block, generation, name)
        return None


def _hits(pools: Iterable[_Views], name: bytes) -> Iterator[Found]:
    return (hit for views in pools if (hit := views.find(name)) is not None)


@dataclass(slots=True)
class _Neighbour:
    connection: socket.socket
    region: Region
    lost_at: float | None = None  # monotonic seconds

    def close(self) -> None:
        self.connection.close()
        self.region.close()


class Neighbours:
    """Those whose sockets are in the run directory. `find` from any thread, `look` from one at a
    time; both may take a while.
    """

    def __init__(self, run_dir: Path, own: Region, keep_s: float) -> None:
        """`own`: what could be read into, not looked into. `keep_s`: how long the pool of a
        neighbour that died is kept.
        """
        self._run_dir = run_dir
        self._own = own
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._by_pool: dict[str, _Neighbour] = {}
        self._useless: set[str] = set()  # our own one, and those of other models

    def look(self, now: float | None = None) -> None:
        """Maps the pools that are new, and lets go of those whose owners died long ago.

        `now`: monotonic seconds.
        """
        now = time.monotonic() if now is None else now
        paths = pools_in(self._run_dir)
        self._useless &= paths.keys()
        for pool in paths.keys() - self._by_pool.keys() - self._useless:
            with suppress(PeerGone):  # it starts, or it left: another look will tell
                self._add(pool, paths[pool])
        for pool, neighbour in list(self._by_pool.items()):
            if neighbour.lost_at is None and not is_open(neighbour.connection):
                neighbour.lost_at = now
            if neighbour.lost_at is not None and now - neighbour.lost_at >= self._keep_s:
                self._drop(pool)

    def find(self, hashes: Sequence[bytes]) -> list[Found]:
        """Where the first of these blocks are, up to one that nobody has."""
        pools, found = self._views(), list[Found]()
        for block_hash in hashes:
            hit = next(_hits(pools, block_hash), None)
            if hit is None:
                break
            found.append(hit)
        return found

    def find_unfinished(self, name: bytes, rows: int) -> Found | None:
        """A block of this name (triptych/engine/tails.py) with so many rows at least. Homes that
        gave the request up earlier may have fewer.
        """
        hits = _hits(self._views(), name)
        return next((hit for hit in hits if hit.rows >= rows), None)

    def close(self) -> None:
        for pool in list(self._by_pool):
            self._drop(pool)

    def _views(self) -> list[_Views]:
        with self._lock:
            regions = [neighbour.region for neighbour in self._by_pool.values()]
            return [_Views(each.generations, each.hashes, each.blocks) for each in regions]

    def _add(self, pool: str, path: Path) -> None:
        try:
            connection, region = open_pool(path, pool, populate=False)
        except LinkUnusable:
            self._useless.add(pool)
            return
        neighbour = _Neighbour(connection, region)
        ours = os.fstat(region.fd).st_ino == os.fstat(self._own.fd).st_ino
        if ours or region.shape.block_bytes != self._own.shape.block_bytes:
            neighbour.close()
            self._useless.add(pool)
            return
        with self._lock:
            self._by_pool[pool] = neighbour

    def _drop(self, pool: str) -> None:
        with self._lock:
            self._by_pool.pop(pool).close()

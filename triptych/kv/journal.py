"""The last changes of a prefix cache, by number, for those who keep an index of it elsewhere."""

from __future__ import annotations

from typing import NamedTuple

KEY_BYTES = 8  # of a block's hash: enough for an index, which may be wrong and does no harm then

# A snapshot of a small pool costs less than this many changes, one of a large pool more.
_LEAST, _MOST = 1 << 10, 1 << 16


class CacheChanges(NamedTuple):
    """What changes up to number `end` came to: a block that came and went is only removed."""

    end: int
    stored: bytes  # keys, KEY_BYTES each
    removed: bytes


class CacheJournal:
    """A ring of about as many changes as its pool has blocks. Not thread-safe: the pool's lock
    guards it.

    Who fell behind by more than `capacity` changes needs a snapshot instead.
    """

    def __init__(self, num_blocks: int) -> None:
        self.capacity = min(max(num_blocks, _LEAST), _MOST)
        self.end = 0  # changes so far
        self._hashes: list[bytes] = []
        self._removed = bytearray(self.capacity)

    def stored(self, block_hash: bytes) -> None:
        self._note(block_hash, 0)

    def removed(self, block_hash: bytes) -> None:
        self._note(block_hash, 1)

    def since(self, position: int, limit: int) -> CacheChanges | None:
        """At most `limit` changes from number `position` on; None: they are not known any more."""
        if not self.end - self.capacity <= position <= self.end:
            return None
        end = min(self.end, position + limit)
        last: dict[bytes, int] = {}
        for number in range(position, end):
            at = number % self.capacity
            last[self._hashes[at][:KEY_BYTES]] = self._removed[at]
        stored = b"".join(key for key, gone in last.items() if not gone)
        removed = b"".join(key for key, gone in last.items() if gone)
        return CacheChanges(end, stored, removed)

    def _note(self, block_hash: bytes, gone: int) -> None:
        at = self.end % self.capacity
        if self.end < self.capacity:
            self._hashes.append(block_hash)
        else:
            self._hashes[at] = block_hash
        self._removed[at] = gone
        self.end += 1


def cut_keys(hashes: list[bytes]) -> bytes:
    """Their keys, one after the other."""
    return b"".join([block_hash[:KEY_BYTES] for block_hash in hashes])

"""Blocks and their holders, as arrays: 64-bit key → a bit for each of 64 holders.

A hash table of rows of eight places. A key lives in one of two rows, both told by its own bits
(keys are hashes already): two-choice hashing, Azar, Broder, Karlin and Upfal, "Balanced
Allocations" (1999). Nothing is ever moved to make room, so there are no tombstones and no clean-up:
a place without holders is free. All verbs take arrays, and cost a few array operations each.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Keys: TypeAlias = NDArray[np.uint64]

NUM_BITS = 64

_WAYS = 8  # a row of keys is a cache line
_WAY_BITS = 3
_HALF_FULL = 5  # below, the first row is good enough: then most lookups need no second one
_MAX_LOAD = 0.65  # far above, two full rows are met
# Below, rows do not fill up by chance: somebody searched for prompts whose hashes do that. A block
# that is left out costs a computation; growing until the hashes part would cost all memory.
_LEAST_LOAD = 0.25
_LEAST_ROWS = 256
_SHIFT = np.uint64(32)
_NONE = np.uint64(0)


class BlockTable:
    """16 bytes a place. Not thread-safe."""

    def __init__(self) -> None:
        self._resize(_LEAST_ROWS)
        self.num_keys = 0  # with a holder

    @property
    def num_bytes(self) -> int:
        return self._keys.nbytes + self._masks.nbytes

    def reserve(self, num_keys: int) -> None:
        """Makes room at once, so that it need not be made while they come."""
        while num_keys > self._keys.size * _MAX_LOAD:
            self._grow()

    def masks(self, keys: Keys) -> Keys:
        """The holders of each key, a bit for each; 0: nobody's."""
        at = self._find(keys)
        return np.where(at < 0, _NONE, self._masks.ravel().take(at, mode="wrap"))

    def add(self, keys: Keys, bit: int) -> int:
        """Makes `bit` a holder of distinct `keys`; for how many that is news.

        A key whose rows are full of others may be left out.
        """
        mask, masks = _mask(bit), self._masks.ravel()
        at = self._find(keys)
        known = at[at >= 0]
        before = masks[known]
        masks[known] = before | mask
        self.num_keys += int(np.count_nonzero(before == 0))
        placed = self._insert(keys[at < 0], mask)
        return int(np.count_nonzero(before & mask == 0)) + placed

    def discard(self, keys: Keys, bit: int) -> int:
        """The opposite."""
        mask, masks = _mask(bit), self._masks.ravel()
        at = self._find(keys)
        known = at[at >= 0]
        before = masks[known]
        after = before & ~mask
        masks[known] = after
        self.num_keys -= int(np.count_nonzero((before != 0) & (after == 0)))
        return int(np.count_nonzero(before != after))

    def clear(self, bit: int) -> None:
        """`bit` holds nothing any more."""
        self._masks &= ~_mask(bit)
        self.num_keys = int(np.count_nonzero(self._masks))

    def _find(self, keys: Keys) -> NDArray[np.int64]:
        """Where each key is (a place that nobody holds may still bear it), or -1."""
        at = np.full(len(keys), -1)
        self._find_in(self._first_row(keys), keys, at)
        missing = np.flatnonzero(at < 0)
        if missing.size:
            found = np.full(len(missing), -1)
            self._find_in(self._second_row(keys[missing]), keys[missing], found)
            at[missing] = found
        return at

    def _find_in(self, rows: NDArray[np.int64], keys: Keys, at: NDArray[np.int64]) -> None:
        # `take`, not an index: five times as fast for rows.
        same = self._keys.take(rows, axis=0) == keys[:, None]  # [n, ways]
        hits = np.flatnonzero(same)
        number = hits >> _WAY_BITS
        at[number] = (rows.take(number) << _WAY_BITS) + (hits & _WAYS - 1)

    def _insert(self, keys: Keys, mask: np.uint64) -> int:
        """Keys that are nowhere; how many have a place now."""
        before = self.num_keys
        self.reserve(before + len(keys))
        while keys.size:
            rows = self._roomier_row(keys)
            free = self._masks.take(rows, axis=0) == 0
            way = free.argmax(axis=1)
            has_room = np.take_along_axis(free, way[:, None], axis=1)[:, 0]
            at = rows * _WAYS + way
            # Several may want one place: the one that was written last has it, the others go on.
            self._keys.ravel()[at[has_room]] = keys[has_room]
            placed = has_room & (self._keys.ravel()[at] == keys)
            self._masks.ravel()[at[placed]] = mask
            self.num_keys += int(np.count_nonzero(placed))
            keys = keys[~placed]
            if not placed.any():
                if self.num_keys < self._keys.size * _LEAST_LOAD:
                    break
                self._grow()
        return self.num_keys - before

    def _roomier_row(self, keys: Keys) -> NDArray[np.int64]:
        first, second = self._first_row(keys), self._second_row(keys)
        used = np.count_nonzero(self._masks.take(first, axis=0), axis=1)
        crowded = np.flatnonzero(used >= _HALF_FULL)
        other = np.count_nonzero(self._masks.take(second[crowded], axis=0), axis=1)
        better = crowded[other < used[crowded]]
        first[better] = second[better]
        return first

    def _grow(self) -> None:
        """Twice the rows: what is in row r goes to r or r + rows, by one more bit of its key."""
        keys, masks, rows = self._keys, self._masks, len(self._keys)
        here = np.arange(rows)[:, None]
        by_first = self._first_row(keys) == here
        self._resize(2 * rows)
        row = np.where(by_first, self._first_row(keys), self._second_row(keys))
        for half in (0, 1):
            mine = (masks != 0) & (row == here + half * rows)
            self._keys[half * rows : (half + 1) * rows][mine] = keys[mine]
            self._masks[half * rows : (half + 1) * rows][mine] = masks[mine]

    def _resize(self, rows: int) -> None:
        self._last_row = np.uint64(rows - 1)  # rows: a power of two
        self._keys = np.zeros((rows, _WAYS), dtype=np.uint64)
        self._masks = np.zeros((rows, _WAYS), dtype=np.uint64)

    def _first_row(self, keys: Keys) -> NDArray[np.int64]:
        return (keys & self._last_row).view(np.int64)

    def _second_row(self, keys: Keys) -> NDArray[np.int64]:
        return ((keys >> _SHIFT) & self._last_row).view(np.int64)


def _mask(bit: int) -> np.uint64:
    return np.uint64(1 << bit)

"""Blocks and their holders, as arrays: 64-bit key → a bit for each of 64 holders.

A hash table of rows of eight places. A key lives in one of two rows, both told by its own bits
(keys are hashes already): two-choice hashing, Azar, Broder, Karlin and Upfal, "Balanced
Allocations" (1999). Nothing is ever moved to make room, so there are no tombstones and no clean-up:
a place without holders is free. All verbs take arrays, and cost a few array operations each.

It doubles while keys come, some rows with each of them, so that nobody waits for it: linear
hashing, Litwin, "Linear Hashing: A New Tool for File and Table Addressing" (1980).
"""

from __future__ import annotations

import math
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
_ROWS_PER_KEY = 1  # split with each new key while the table doubles: done before it is full
_MOST_RESERVED = 1 << 24  # keys, 0.5 GiB of address space; beyond, growing copies
_SHIFT = np.uint64(32)
_NONE = np.uint64(0)


class BlockTable:
    """16 bytes a place. Not thread-safe."""

    def __init__(self) -> None:
        self._rows = _LEAST_ROWS  # a power of two
        self._split = 0  # the first so many rows are split in two: r and r + rows
        self._keys = self._masks = np.zeros((0, _WAYS), dtype=np.uint64)
        self._make_room(_LEAST_ROWS)
        self.num_keys = 0  # with a holder

    @property
    def num_bytes(self) -> int:
        """In use."""
        return self._in_use(self._keys).nbytes + self._in_use(self._masks).nbytes

    def reserve(self, num_keys: int) -> None:
        """Address space for so many, which costs nothing before they come; growing then need not
        copy anything.
        """
        rows = _LEAST_ROWS
        while min(num_keys, _MOST_RESERVED) > rows * _WAYS * _MAX_LOAD:
            rows *= 2
        self._make_room(rows)

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
        masks = self._in_use(self._masks)
        masks &= ~_mask(bit)
        self.num_keys = int(np.count_nonzero(masks))

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
        self._grow_for(len(keys))
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
                if self.num_keys < self._num_places * _LEAST_LOAD:
                    break
                self._split_rows(self._rows)
        return self.num_keys - before

    def _roomier_row(self, keys: Keys) -> NDArray[np.int64]:
        first, second = self._first_row(keys), self._second_row(keys)
        used = np.count_nonzero(self._masks.take(first, axis=0), axis=1)
        crowded = np.flatnonzero(used >= _HALF_FULL)
        other = np.count_nonzero(self._masks.take(second[crowded], axis=0), axis=1)
        better = crowded[other < used[crowded]]
        first[better] = second[better]
        return first

    @property
    def _num_places(self) -> int:
        return (self._rows + self._split) * _WAYS

    def _in_use(self, all_rows: Keys) -> Keys:
        return all_rows[: self._rows + self._split]

    def _grow_for(self, num_new: int) -> None:
        """Splits as many rows as is these keys' share, or as they need."""
        wanted = math.ceil((self.num_keys + num_new) / (_WAYS * _MAX_LOAD))
        share = _ROWS_PER_KEY * num_new
        while (missing := wanted - self._rows - self._split) > 0 or (self._split and share > 0):
            share -= self._split_rows(max(missing, share))

    def _split_rows(self, count: int) -> int:
        """As many, or those that are left of this doubling; how many. What is in row r goes to r or
        r + rows, by one more bit of its key.
        """
        start = self._split
        end = min(self._rows, start + count)
        self._make_room(2 * self._rows)
        old, new = slice(start, end), slice(start + self._rows, end + self._rows)
        keys, masks = self._keys[old], self._masks[old]
        here = np.arange(start, end)[:, None]
        first, second = keys, keys >> _SHIFT
        by_first = (first & np.uint64(self._rows - 1)).view(np.int64) == here
        next_bit = np.where(by_first, first, second) & np.uint64(self._rows)
        moves = (masks != 0) & (next_bit != 0)
        self._keys[new][moves] = keys[moves]
        self._masks[new][moves] = masks[moves]
        masks[moves] = 0
        self._split = end
        if end == self._rows:
            self._rows, self._split = 2 * self._rows, 0
        return end - start

    def _make_room(self, rows: int) -> None:
        """Arrays of so many rows at least. What nobody has written takes no memory."""
        if rows > len(self._keys):
            self._keys, self._masks = _larger(self._keys, rows), _larger(self._masks, rows)

    def _first_row(self, keys: Keys) -> NDArray[np.int64]:
        return self._row(keys)

    def _second_row(self, keys: Keys) -> NDArray[np.int64]:
        return self._row(keys >> _SHIFT)

    def _row(self, bits: Keys) -> NDArray[np.int64]:
        if not self._split:
            return (bits & np.uint64(self._rows - 1)).view(np.int64)
        row = (bits & np.uint64(2 * self._rows - 1)).view(np.int64)
        row[row >= self._rows + self._split] -= self._rows
        return row


def _larger(rows: Keys, count: int) -> Keys:
    found = np.zeros((count, _WAYS), dtype=np.uint64)
    found[: len(rows)] = rows
    return found


def _mask(bit: int) -> np.uint64:
    return np.uint64(1 << bit)

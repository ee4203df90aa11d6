"""Who holds what, for any number of workers: tables of 64 holders each."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from router.index.table import NUM_BITS, BlockTable, Keys

_FIRST_PART = 64  # blocks; most prompts differ from all others within them
_NEXT_PART = 16  # times as long


@dataclass(slots=True, eq=False)
class _Shelf:
    table: BlockTable = field(default_factory=BlockTable)
    free: list[int] = field(default_factory=lambda: [*reversed(range(NUM_BITS))])  # bits
    shown: dict[int, str] = field(default_factory=dict)  # bit → worker id


@dataclass(slots=True, eq=False)
class Holding:
    """What a worker holds: a bit of a table. Its owner closes it, once."""

    _shelf: _Shelf
    _bit: int
    num_blocks: int = 0

    def add(self, keys: Keys) -> None:
        """`keys` are distinct here and below."""
        self.num_blocks += self._shelf.table.add(keys, self._bit)

    def discard(self, keys: Keys) -> None:
        self.num_blocks -= self._shelf.table.discard(keys, self._bit)

    def has(self, key: int) -> bool:
        (mask,) = self._shelf.table.masks(np.array([key], dtype=np.uint64))
        return bool(int(mask) >> self._bit & 1)

    def show(self, worker_id: str) -> None:
        """From now on it is found, as this worker's."""
        self._shelf.shown[self._bit] = worker_id

    def close(self) -> None:
        """Its bit may be somebody else's from here on, so nothing of it stays in the table."""
        self._shelf.table.clear(self._bit)
        self._shelf.shown.pop(self._bit, None)
        self._shelf.free.append(self._bit)


class Holdings:
    def __init__(self) -> None:
        self._shelves: list[_Shelf] = []
        self._expected_keys = 0

    @property
    def num_bytes(self) -> int:
        return sum(shelf.table.num_bytes for shelf in self._shelves)

    @property
    def num_keys(self) -> int:
        """Distinct blocks (of each 64 holders) that somebody holds."""
        return sum(shelf.table.num_keys for shelf in self._shelves)

    def reserve(self, num_keys: int) -> None:
        """So many may come, to all holders together."""
        self._expected_keys = num_keys
        for shelf in self._shelves:
            shelf.table.reserve(num_keys)

    def open(self) -> Holding:
        """An empty one that is not found yet."""
        for shelf in self._shelves:
            if shelf.free:
                break
        else:
            shelf = _Shelf()
            shelf.table.reserve(self._expected_keys)
            self._shelves.append(shelf)
        return Holding(shelf, shelf.free.pop())

    def leading(self, keys: Keys) -> dict[str, int]:
        """How many of the first keys of a prompt each worker holds, without a hole; none: not told.

        Every block is looked at, up to the first that nobody has: a cache may have lost a block and
        kept those behind it, so no search may jump.
        """
        found: dict[str, int] = {}
        for shelf in self._shelves:
            for bit, length in _leading_by_bit(shelf, keys).items():
                found[shelf.shown[bit]] = length
        return found


def _leading_by_bit(shelf: _Shelf, keys: Keys) -> dict[int, int]:
    lengths: dict[int, int] = {}
    alive = sum(1 << bit for bit in shelf.shown)  # hold all blocks so far
    start, size = 0, _FIRST_PART
    while alive and start < len(keys):
        masks = shelf.table.masks(keys[start : start + size])
        run = np.bitwise_and.accumulate(masks) & np.uint64(alive)
        before = np.concatenate([np.array([alive], dtype=np.uint64), run[:-1]])
        for at in np.flatnonzero(before != run):
            for bit in _bits(int(before[at] & ~run[at])):
                lengths[bit] = start + int(at)
        alive = int(run[-1])
        start += size
        size *= _NEXT_PART
    lengths.update(dict.fromkeys(_bits(alive), len(keys)))
    return {bit: length for bit, length in lengths.items() if length}


def _bits(mask: int) -> list[int]:
    return [bit for bit in range(mask.bit_length()) if mask >> bit & 1]

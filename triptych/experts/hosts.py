"""Which FFN worker hosts which units, as one home knows it, and the table that dispatch reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]  # [layers, units]


class Hosts:
    """Keeps `table` int16 [layers, units, copies]: numbers of workers, −1 where there is none.

    A worker that rests is left out where another one hosts the unit; one that was given up,
    everywhere.
    """

    def __init__(self, table: NDArray[np.int16]) -> None:
        self.table = table
        self.resting: frozenset[int] = frozenset()
        self.given_up: frozenset[int] = frozenset()
        self._offers: dict[int, Mask] = {}  # by worker's number

    @property
    def numbers(self) -> list[int]:
        return sorted(self._offers)

    @property
    def num_hosted(self) -> int:
        """Units that somebody hosts."""
        return int(np.count_nonzero(self.table[..., 0] >= 0))

    def offer(self, number: int, units: Mask) -> None:
        """Worker `number` hosts these units, from now on no others."""
        self._offers[number] = units
        self._rebuild()

    def forget(self, number: int) -> None:
        if self._offers.pop(number, None) is not None:
            self.wake(number)

    def rest(self, number: int) -> None:
        if number in self._offers and number not in self.resting:
            self.resting |= {number}
            self._rebuild()

    def give_up(self, number: int) -> None:
        if number in self._offers and number not in self.given_up:
            self.given_up |= {number}
            self._rebuild()

    def wake(self, number: int) -> None:
        """Ends its rest, or takes it back."""
        self.resting -= {number}
        self.given_up -= {number}
        self._rebuild()

    def is_replaceable(self, number: int, layer: int) -> bool:
        """Whether others, who are asked, host all that it hosts of this layer."""
        own = self._offers.get(number)
        if own is None:
            return True
        others = [
            mask[layer]
            for other, mask in self._offers.items()
            if other != number and other not in self.resting | self.given_up
        ]
        return not (own[layer] & ~np.logical_or.reduce([np.zeros_like(own[layer]), *others])).any()

    def _rebuild(self) -> None:
        self.table.fill(-1)
        asked = [number for number in self.numbers if number not in self.given_up]
        self._append([number for number in asked if number not in self.resting])
        alone = self.table[..., 0] < 0
        self._append([number for number in asked if number in self.resting], among=alone)

    def _append(self, numbers: list[int], among: Mask | None = None) -> None:
        """Enters these workers as hosts of what they offer. Each unit's list begins with another
        one, so that where there are more hosts than columns none is always left out.
        """
        if not numbers:
            return
        hosted = np.stack([self._offers[number] for number in numbers])
        if among is not None:
            hosted &= among
        names = np.array(numbers, np.int16)
        first = np.arange(hosted[0].size).reshape(hosted.shape[1:])
        for turn in range(len(numbers)):
            which = (first + turn) % len(numbers)
            self._enter(names[which], np.take_along_axis(hosted, which[None], axis=0)[0])

    def _enter(self, numbers: NDArray[np.int16], here: Mask) -> None:
        taken = (self.table >= 0).sum(axis=-1)
        layers, units = np.nonzero(here & (taken < self.table.shape[-1]))
        self.table[layers, units, taken[layers, units]] = numbers[layers, units]

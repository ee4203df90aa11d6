"""Copies of units into workers, group after group: the heaviest first, each to the lightest worker.

EPLB's balanced packing, with rooms, speeds and domains. A copy that finds no good place makes
room by moving one that does not mind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.experts.quotas import share_out
from triptych.experts.units import Bools, Floats, numbers

_NEAR = 0.05  # of a fair share: as good as the lightest, if nothing has to move


@dataclass
class Packing:
    """`pack` fills `hosts` and takes from `room`."""

    loads: Floats  # [units] > 0
    sizes: NDArray[np.int64]  # [units]
    counts: NDArray[np.int64]  # [units] copies wanted
    copies: int  # of each unit at least; further ones may be dropped
    room: NDArray[np.int64]  # [workers], still free
    speeds: Floats  # [workers]
    domains: Bools  # [workers, domains]
    current: Bools  # [units, workers] held now
    hosts: Bools  # [units, workers], the result
    total: Floats  # [workers] load per speed, of all groups so far

    def pack(self, groups: Sequence[NDArray[np.intp]]) -> None:
        """groups: numbers of their units. Large units come first: small ones fill what is left."""
        order = sorted(groups, key=lambda group: -int(self.sizes[group[0]]))
        for number, group in enumerate(order):
            self._pack_group(group, order[number + 1 :])

    def _pack_group(self, group: NDArray[np.intp], coming: Sequence[NDArray[np.intp]]) -> None:
        fair = self.loads[group].sum() / self.speeds.sum()
        lightness = np.zeros(len(self.room))  # load per speed, of this group
        quotas = self._quotas(group, np.concatenate([group[:0], *coming]))
        pieces = sorted(
            (-self.loads[unit] / self.counts[unit], copy, unit)
            for unit in group.tolist()
            for copy in range(self.counts[unit])
        )
        for weight, copy, unit in pieces:
            worker = self._choose(unit, quotas, lightness - weight / self.speeds, _NEAR * fair)
            if worker is None:
                worker = self._make_room(group, unit, quotas, lightness)
            if worker is None and copy < self.copies:  # rather a crooked quota than no copy
                worker = self._any_room(unit)
            if worker is not None:
                self._put(unit, worker, quotas, lightness)

    def _quotas(self, group: NDArray[np.intp], coming: NDArray[np.intp]) -> NDArray[np.int64]:
        """coming: the units behind this group."""
        size = float(self.sizes[group].max())
        mine = float((self.sizes * self.counts)[group].sum())
        theirs = float((self.sizes * self.counts)[coming].sum())
        # A fair part of the room, or what nobody behind could ever use.
        unneeded = self.room - float(self.sizes[coming].sum())
        room = np.maximum(self.room * mine / (mine + theirs), unneeded) / size
        return share_out(
            least=len(group) * self.copies,
            copies=int(self.counts[group].sum()),
            num_units=len(group),
            speeds=self.speeds,
            room=room,
            hard=np.floor(self.room / size),
            domains=self.domains,
        )

    def _put(
        self, unit: int, worker: int, quotas: NDArray[np.int64], lightness: Floats, sign: int = 1
    ) -> None:
        """sign −1: takes it away."""
        load = sign * self.loads[unit] / self.counts[unit] / self.speeds[worker]
        self.hosts[unit, worker] = sign > 0
        self.room[worker] -= sign * self.sizes[unit]
        quotas[worker] -= sign
        lightness[worker] += load
        self.total[worker] += load

    def _fresh(self, unit: int) -> Bools:
        """[workers] that do not hold the unit and stand where no copy is, if there is such a
        domain at all.
        """
        held = self.hosts[unit]
        covered: Bools = held @ self.domains
        near: Bools = held if covered.all() else self.domains @ covered
        return ~near

    def _choose(
        self, unit: int, quotas: NDArray[np.int64], after: Floats, near: float
    ) -> int | None:
        """The lightest worker with room; one that holds the unit now, if that is nearly as light.

        after [workers]: how loaded each would be with it.
        """
        open_ = self._fresh(unit) & (quotas > 0) & (self.room >= self.sizes[unit])
        if not open_.any():
            return None
        stays = open_ & self.current[unit] & (after <= after[open_].min() + near)
        choices = np.flatnonzero(stays if stays.any() else open_)
        return int(choices[np.lexsort((self.total[choices], after[choices]))[0]])

    def _make_room(
        self,
        group: NDArray[np.intp],
        unit: int,
        quotas: NDArray[np.int64],
        lightness: Floats,
    ) -> int | None:
        """A worker that gave another unit away for this one; or one where only the domain is not
        as wished. Among the units that could go, the one whose load is nearest.
        """
        takers = numbers((quotas > 0) & (self.room >= self.sizes[unit]))
        swaps = [
            (abs(self.loads[other] - self.loads[unit]), other, giver, taker)
            for giver in numbers(self._fresh(unit))
            for taker in takers
            for other in group[self.hosts[group, giver] & ~self.hosts[group, taker]].tolist()
            if self._may_move(other, giver, taker)
        ]
        if swaps:
            _, other, giver, taker = min(swaps)
            self._put(other, giver, quotas, lightness, sign=-1)
            self._put(other, taker, quotas, lightness)
            return giver
        anywhere = [worker for worker in takers if not self.hosts[unit, worker]]
        return min(anywhere, key=lambda worker: lightness[worker], default=None)

    def _may_move(self, unit: int, giver: int, taker: int) -> bool:
        """Whether the unit's copies would stand in as many domains as before."""
        held = self.hosts[unit].copy()
        before = np.count_nonzero(held @ self.domains)
        held[giver], held[taker] = False, True
        return bool(np.count_nonzero(held @ self.domains) >= before)

    def _any_room(self, unit: int) -> int | None:
        open_ = np.flatnonzero(~self.hosts[unit] & (self.room >= self.sizes[unit]))
        return int(open_[np.argmax(self.room[open_])]) if len(open_) else None

"""The best that replicas allow: rows flow to the copies of their expert so that the busiest worker
is as idle as can be. Exact, without a linear program.

The least possible maximum is, by Hall's theorem, that of the heaviest set of workers: over all sets
S, the load of the experts that live in S alone, divided by the speed of S. Sets are found by
maximum flows (Ford and Fulkerson's augmenting paths): pour the loads into workers that take no more
than an assumed level; what does not fit leaves the set that exceeds it most (minimum cut). The
levels of all workers follow by dividing there and going on in both parts (Fujishige, 1980).

Sets of workers are bits of an int. Units with the same hosts are one class: there are few.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from triptych.experts.units import Bools, Floats

_ROUNDING = 1e-9  # of the whole load: less than that is nothing


@dataclass(frozen=True)
class Bottleneck:
    """The busiest workers of the best split."""

    load: float  # per speed, of each of them
    workers: Bools  # [workers]


def find_bottleneck(loads: Floats, hosts: Bools, speeds: Floats) -> Bottleneck:
    """loads [units], hosts [units, workers], speeds [workers]. Units without hosts do not count."""
    classes, paces = _classes(loads, hosts), speeds.tolist()
    among = (1 << len(paces)) - 1
    level = sum(classes.values()) / _speed(among, paces)
    while True:  # Dinkelbach's method: every set found is heavier than the one before
        heavy = _worst_set(classes, paces, among, level)
        inside = sum(load for mask, load in classes.items() if not mask & ~heavy)
        if not heavy or inside <= level * _speed(heavy, paces) * (1 + _ROUNDING):
            break
        among, level = heavy, inside / _speed(heavy, paces)
        classes = {mask: load for mask, load in classes.items() if not mask & ~heavy}
    members = np.zeros(len(paces), bool)
    members[list(_bits(among))] = True
    return Bottleneck(level, members)


def fluid_loads(loads: Floats, hosts: Bools, speeds: Floats, floor: float = 0.0) -> Floats:
    """[workers]: load per speed of each in the best split: the busiest as idle as can be, then the
    next busiest, and so on. Arguments as above. Workers at or below `floor` are not told apart:
    they get their mean, which saves most of the time.
    """
    paces = speeds.tolist()
    result = np.zeros(len(paces))
    parts = [(_classes(loads, hosts), (1 << len(paces)) - 1)]
    while parts:
        classes, among = parts.pop()
        level = sum(classes.values()) / _speed(among, paces)
        # The set that exceeds a level most is that of all workers whose own level is above it.
        heavy = _worst_set(classes, paces, among, max(level, floor))
        if heavy in (0, among):
            result[list(_bits(among))] = level
            continue
        parts.append(({mask: load for mask, load in classes.items() if not mask & ~heavy}, heavy))
        # Whoever can live outside does.
        rest: dict[int, float] = {}
        for mask, load in classes.items():
            if mask & ~heavy:
                rest[mask & ~heavy] = rest.get(mask & ~heavy, 0.0) + load
        parts.append((rest, among & ~heavy))
    return result


def _classes(loads: Floats, hosts: Bools) -> dict[int, float]:
    """Load by set of hosts."""
    classes: dict[int, float] = {}
    rows = np.packbits(hosts, axis=1, bitorder="little")
    for row, load in zip(rows, loads.tolist(), strict=True):
        mask = int.from_bytes(row.tobytes(), "little")
        if mask and load > 0:
            classes[mask] = classes.get(mask, 0.0) + load
    return classes


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _speed(mask: int, paces: list[float]) -> float:
    return sum(paces[worker] for worker in _bits(mask))


def _worst_set(classes: dict[int, float], paces: list[float], among: int, level: float) -> int:
    """Of the workers `among`, those whose load beyond `level` is the most together; 0: none."""
    total = sum(classes.values())
    flow = _Flow({worker: level * paces[worker] for worker in _bits(among)}, _ROUNDING * total)
    left = [(mask, flow.pour(mask, load)) for mask, load in sorted(classes.items(), key=_choices)]
    stuck = 0
    for mask, amount in left:
        while amount > flow.crumb and mask & ~stuck:
            reached, poured = flow.push(mask, amount)
            amount -= poured
            if not poured:
                stuck |= reached
        if amount > flow.crumb:
            stuck |= mask
    return stuck


def _choices(item: tuple[int, float]) -> int:
    return item[0].bit_count()


class _Flow:
    """What flows from classes into workers, so far."""

    def __init__(self, room: dict[int, float], crumb: float) -> None:
        self.crumb = crumb
        self._room = room
        self._carried: dict[int, dict[int, float]] = {worker: {} for worker in room}  # by class

    def pour(self, mask: int, amount: float) -> float:
        """Into the hosts, as far as they have room, evenly; returns what does not fit."""
        room = {worker: self._room[worker] for worker in _bits(mask)}
        whole = sum(room.values())
        part = min(1.0, amount / whole) if whole > 0 else 0.0
        for worker, space in room.items():
            if space * part > 0:
                self._add(mask, worker, space * part)
                self._room[worker] -= space * part
        return amount - whole * part

    def push(self, mask: int, amount: float) -> tuple[int, float]:
        """Along one shortest path over classes that can move on to a worker with room.

        Returns the workers that were reached, and how much found its way: 0.0 if there is none.
        """
        came_from: dict[int, tuple[int, int] | None] = dict.fromkeys(_bits(mask))
        reached = mask
        queue = list(came_from)
        for worker in queue:
            if self._room[worker] > self.crumb:
                return reached, self._shift(mask, amount, worker, came_from)
            for carrier, carried in self._carried[worker].items():
                if carrier & ~reached and carried > self.crumb:
                    for other in _bits(carrier & ~reached):
                        came_from[other] = worker, carrier
                        queue.append(other)
                    reached |= carrier
        return reached, 0.0

    def _shift(
        self, mask: int, amount: float, end: int, came_from: dict[int, tuple[int, int] | None]
    ) -> float:
        steps = []  # (class, from, to), the last first
        worker = end
        while (step := came_from[worker]) is not None:
            before, carrier = step
            steps.append((carrier, before, worker))
            worker = before
        carried = (self._carried[before][carrier] for carrier, before, _ in steps)
        amount = min(amount, self._room[end], *carried)
        for carrier, before, after in steps:
            self._add(carrier, before, -amount)
            self._add(carrier, after, amount)
        self._add(mask, worker, amount)
        self._room[end] -= amount
        return amount

    def _add(self, mask: int, worker: int, amount: float) -> None:
        carried = self._carried[worker]
        carried[mask] = carried.get(mask, 0.0) + amount

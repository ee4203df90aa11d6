"""The pool while moves are planned: every planned move is done here at once, in its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triptych.experts.units import (
    Bools,
    Catalog,
    Floats,
    Hosted,
    Unit,
    Worker,
    domain_table,
)


class Spot(NamedTuple):
    unit: Unit
    worker: str  # id


@dataclass(frozen=True, slots=True)
class Move:
    """First the unit gets ready there and every home knows it; only then the other spot retires."""

    prepare: Spot | None
    retire: Spot | None


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits of one round of moves."""

    copies: int = 2  # of each unit at least, on different workers, while there is room
    spare: int = 1  # units of room that stay free on every worker, to prepare in
    moves: int = 8  # units prepared in one round
    gain: float = 0.05  # of a fair share by which the busiest worker's load must fall


@dataclass
class PoolState:
    """Rows of tables are units, columns are live workers."""

    catalog: Catalog
    workers: Sequence[Worker]
    rules: Rules
    loads: Floats  # [units]
    hosts: Bools  # [units, workers]
    room: NDArray[np.int64]  # [workers] free
    speeds: Floats  # [workers]
    domains: Bools  # [workers, domains]
    staying: Bools  # [workers] not draining
    moves: list[Move] = field(default_factory=list)
    prepared: int = 0

    @staticmethod
    def start(
        catalog: Catalog, workers: Sequence[Worker], rules: Rules, loads: Floats, hosted: Hosted
    ) -> PoolState:
        hosts = catalog.hosts(hosted, workers)
        room = np.array([worker.room for worker in workers], np.int64)
        return PoolState(
            catalog=catalog,
            workers=workers,
            rules=rules,
            loads=loads,
            hosts=hosts,
            room=room - catalog.sizes @ hosts,
            speeds=np.array([worker.speed for worker in workers]),
            domains=domain_table(workers),
            staying=np.array([not worker.draining for worker in workers]),
        )

    @property
    def moves_left(self) -> int:
        return self.rules.moves - self.prepared

    @property
    def copies(self) -> NDArray[np.int64]:
        """[units] on workers that stay."""
        return np.asarray(self.hosts[:, self.staying].sum(axis=1), np.int64)

    @property
    def wanted(self) -> int:
        """Copies of each unit."""
        return min(self.rules.copies, int(np.count_nonzero(self.staying)))

    @property
    def reserve(self) -> int:
        """Room that stays free on every worker."""
        return self.rules.spare * int(self.catalog.sizes.max())

    def move(
        self, prepare: tuple[int, int] | None = None, retire: tuple[int, int] | None = None
    ) -> None:
        """(unit, worker) each."""
        if prepare is not None:
            unit, worker = prepare
            assert not self.hosts[unit, worker] and self.room[worker] >= self.catalog.sizes[unit]
            self.hosts[unit, worker] = True
            self.room[worker] -= self.catalog.sizes[unit]
            self.prepared += 1
        if retire is not None:
            unit, worker = retire
            assert self.hosts[unit].sum() > 1 and self.hosts[unit, worker]
            self.hosts[unit, worker] = False
            self.room[worker] += self.catalog.sizes[unit]
        self.moves.append(Move(self._spot(prepare), self._spot(retire)))

    def keeps_domains(self, unit: int, *, without: int, with_: int | None = None) -> bool:
        """See `keeps_domains`; draining workers count for nothing."""
        hosts = self.hosts[unit] & self.staying
        return keeps_domains(hosts, self.domains, self.wanted, without=without, with_=with_)

    def lightness(self, unit: int) -> Floats:
        """[workers] load per speed in the unit's group, if copies shared evenly."""
        group = next(group for group in self.catalog.groups if unit in group)
        copies = np.maximum(self.copies[group], 1)
        return (self.loads[group] / copies) @ self.hosts[group] / self.speeds

    def _spot(self, place: tuple[int, int] | None) -> Spot | None:
        if place is None:
            return None
        unit, worker = place
        return Spot(self.catalog.units[unit], self.workers[worker].id)


def keeps_domains(
    hosts: Bools, domains: Bools, wanted: int, *, without: int, with_: int | None = None
) -> bool:
    """Whether a unit on `hosts` [workers] still stands in as many domains, or in `wanted`, when it
    leaves one worker and perhaps joins another.
    """
    after = hosts.copy()
    after[without] = False
    if with_ is not None:
        after[with_] = True
    before = int(np.count_nonzero(hosts @ domains))
    return int(np.count_nonzero(after @ domains)) >= min(before, wanted)

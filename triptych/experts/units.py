"""What is placed on FFN workers, and on whom: nouns of placement and balance. numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]


class Unit(NamedTuple):
    """One expert of a layer; a dense layer's FFN is its expert 0."""

    layer: int
    expert: int


Hosted: TypeAlias = Mapping[str, frozenset[Unit]]  # by worker id


@dataclass(frozen=True, slots=True)
class Worker:
    """An FFN worker that is alive."""

    id: str
    domain: str  # what fails together: a host, a rack
    room: int  # for units, in what `Catalog.room` counts in
    speed: float = 1.0  # rows per second, relative to the others
    draining: bool = False  # wants to leave: gets nothing new, loses what it has

    def __post_init__(self) -> None:
        assert self.room >= 0 and self.speed > 0, f"{self.id}: room {self.room}, {self.speed}"


@dataclass(frozen=True)
class Catalog:
    """The units of a model, numbered layer by layer: unit i is `units[i]`.

    experts[l]: experts of layer l, 1 for a dense FFN. room[l]: what one unit of layer l takes, in
    bytes; empty: every unit takes 1, so that a worker's room is a number of units.
    """

    experts: tuple[int, ...]
    room: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.experts and min(self.experts) >= 1, "every layer has at least one unit"
        assert len(self.room) in (0, len(self.experts)), "room: one entry per layer"

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        return tuple(Unit(layer, e) for layer, n in enumerate(self.experts) for e in range(n))

    @cached_property
    def index(self) -> dict[Unit, int]:
        return {unit: number for number, unit in enumerate(self.units)}

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """[units] what each one takes."""
        per_layer = self.room or (1,) * len(self.experts)
        return np.repeat(np.array(per_layer, np.int64), self.experts)

    @cached_property
    def groups(self) -> list[NDArray[np.intp]]:
        """Numbers of the units that are balanced with each other.

        A mixture's layer is a group: its experts work at the same time. Dense layers are one group
        together: of a single one, no two workers could ever have an equal share.
        """
        first = np.cumsum((0, *self.experts))
        mixtures = [
            np.arange(first[layer], first[layer + 1])
            for layer, n in enumerate(self.experts)
            if n > 1
        ]
        dense = [first[layer] for layer, n in enumerate(self.experts) if n == 1]
        return [*mixtures, np.array(dense)] if dense else mixtures

    def flat_loads(self, loads: ArrayLike | None) -> Floats:
        """loads [L, E] (of smaller layers only the first columns count) → [units]; None: ones."""
        if loads is None:
            return np.ones(len(self.units))
        table = np.asarray(loads, np.float64)
        wanted = (len(self.experts), max(self.experts))
        assert table.ndim == 2 and table.shape[0] == wanted[0] and table.shape[1] >= wanted[1], (
            f"loads {table.shape}, expected {wanted}"
        )
        assert np.isfinite(table).all() and (table >= 0).all(), "loads are counts"
        return np.concatenate([table[layer, :n] for layer, n in enumerate(self.experts)])

    def hosts(self, hosted: Hosted, workers: Sequence[Worker]) -> Bools:
        """[units, workers]: who holds what. Workers that are not in the list are dead."""
        table = np.zeros((len(self.units), len(workers)), bool)
        for column, worker in enumerate(workers):
            held = hosted.get(worker.id, frozenset())
            table[[self.index[unit] for unit in held], column] = True
        return table

    def hosted(self, hosts: Bools, workers: Sequence[Worker]) -> dict[str, frozenset[Unit]]:
        return {
            worker.id: frozenset(self.units[number] for number in np.flatnonzero(hosts[:, column]))
            for column, worker in enumerate(workers)
        }


def domain_table(workers: Sequence[Worker]) -> Bools:
    """[workers, domains]: who stands where."""
    names = sorted({worker.domain for worker in workers})
    return np.array([[worker.domain == name for name in names] for worker in workers], bool)


def numbers(mask: Bools) -> list[int]:
    """Where it is true."""
    return list(np.flatnonzero(mask).tolist())


def copies_of(hosted: Hosted, unit: Unit) -> int:
    return sum(unit in held for held in hosted.values())


def missing_units(catalog: Catalog, held: Iterable[frozenset[Unit]]) -> set[Unit]:
    return set(catalog.units).difference(*held)

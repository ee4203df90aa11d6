"""Which units a model has, as numbers and as sets of bits: what workers tell each other.

A unit is a feed-forward part that may run elsewhere, by layer and expert. A mixture's experts are
units; of a model without mixtures each layer's FFN is one, as expert 0. The dense layers of a model
that has mixtures stay at home.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.experts.units import Catalog, Unit


@dataclass(frozen=True, slots=True)
class UnitMap:
    """`per_layer[layer]` is the number of its units: of all layers that have any it is the same."""

    per_layer: tuple[int, ...]

    @property
    def width(self) -> int:
        """Units of a layer at most."""
        return max(self.per_layer)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.per_layer), self.width

    def __iter__(self) -> Iterator[Unit]:
        for layer, count in enumerate(self.per_layer):
            yield from (Unit(layer, expert) for expert in range(count))

    def __contains__(self, unit: Unit) -> bool:
        return 0 <= unit.layer < len(self.per_layer) and (
            0 <= unit.expert < self.per_layer[unit.layer]
        )

    def number(self, unit: Unit) -> int:
        return unit.layer * self.width + unit.expert

    def unit(self, number: int) -> Unit:
        return Unit(*divmod(number, self.width))

    def pack(self, units: Iterable[Unit]) -> bytes:
        """A bit per unit, see UnitsOffered in transport/protos/worker.proto."""
        mask = np.zeros(self.shape, dtype=bool)
        for unit in units:
            mask[unit] = True
        return np.packbits(mask.reshape(-1), bitorder="little").tobytes()

    def unpack(self, packed: bytes) -> NDArray[np.bool_]:
        """bool [layers, width]. Raises ValueError when it is of another model."""
        size = self.shape[0] * self.shape[1]
        bits = np.frombuffer(packed, dtype=np.uint8)
        if len(bits) != -(-size // 8):
            raise ValueError(f"{len(bits)} bytes for {size} units")
        mask = np.unpackbits(bits, count=size, bitorder="little").astype(bool)
        return mask.reshape(self.shape)


class Compact:
    """The same units for those who know no layers without any: layers are numbered anew."""

    def __init__(self, units: UnitMap) -> None:
        self.map = units
        self._layers = [layer for layer, count in enumerate(units.per_layer) if count]
        self.catalog = Catalog(tuple(units.per_layer[layer] for layer in self._layers))

    def inward(self, mask: NDArray[np.bool_]) -> list[Unit]:
        """bool [layers, width] → units in new numbers."""
        return [Unit(*place) for place in np.argwhere(mask[self._layers]).tolist()]

    def table(self, counts: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """[layers, width] → rows of layers that have units."""
        return counts[self._layers]

    def number(self, unit: Unit) -> int:
        """In the map, of a unit in new numbers."""
        return self.map.number(Unit(self._layers[unit.layer], unit.expert))

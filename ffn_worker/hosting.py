"""The units that this worker holds: read from the checkpoint, run by layer, dropped when told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from triptych.experts.units import Unit
from triptych.models.layers import DenseFfn
from triptych_kernels.cpu.experts import NativeExperts

MakeExperts = Callable[[dict[int, DenseFfn]], NativeExperts]  # of one layer, by expert


@dataclass(slots=True)
class Hosting:
    """On the loop's thread. `mask` uint8 [layers, units] is kept: not 0 where the unit is here."""

    mask: NDArray[np.uint8]
    make: MakeExperts
    nbytes: int = 0
    _layers: dict[int, dict[int, DenseFfn]] = field(default_factory=dict)
    _experts: dict[int, NativeExperts] = field(default_factory=dict)

    def add(self, units: Iterable[tuple[Unit, DenseFfn]]) -> None:
        changed = set()
        for unit, ffn in units:
            experts = self._layers.setdefault(unit.layer, {})
            assert unit.expert not in experts, f"{unit} is here already"
            experts[unit.expert] = ffn
            self.mask[unit] = 1
            self.nbytes += ffn.nbytes
            changed.add(unit.layer)
        self._remake(changed)

    def drop(self, units: Iterable[Unit]) -> None:
        changed = set()
        for unit in units:
            ffn = self._layers.get(unit.layer, {}).pop(unit.expert, None)
            if ffn is not None:
                self.mask[unit] = 0
                self.nbytes -= ffn.nbytes
                changed.add(unit.layer)
        self._remake(changed)

    def of_layer(self, layer: int) -> NativeExperts:
        """The layer has a unit here."""
        return self._experts[layer]

    def _remake(self, layers: Iterable[int]) -> None:
        for layer in layers:
            if self._layers[layer]:
                self._experts[layer] = self.make(self._layers[layer])
            else:
                del self._layers[layer], self._experts[layer]

"""Units that a home computes by itself when no worker can: the last rung of the ladder."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from triptych.experts.units import Unit

log = logging.getLogger(__name__)


class LoadedUnit(Protocol):
    """A unit that can be computed here."""

    @property
    def nbytes(self) -> int: ...

    def __call__(self, rows: Tensor) -> Tensor:
        """rows [M, H] float32 → [M, H], with the bits that an FFN worker would send back."""


class HomeUnits:
    """Reads units from the checkpoint when they are wanted; keeps those used last."""

    def __init__(self, load: Callable[[Unit], LoadedUnit], memory: int) -> None:
        """memory: bytes to keep; a unit in use is kept whatever its size."""
        self._load = load
        self._memory = memory
        self._kept: OrderedDict[Unit, LoadedUnit] = OrderedDict()
        self._bytes = 0

    def compute(self, unit: Unit, rows: Tensor) -> Tensor:
        """See LoadedUnit. Raises ModelError when the checkpoint cannot be read any more."""
        loaded = self._kept.get(unit)
        if loaded is None:
            loaded = self._keep(unit)
        self._kept.move_to_end(unit)
        return loaded(rows)

    def release(self) -> None:
        """All of them are hosted elsewhere again."""
        if self._kept:
            log.info("FFN workers host everything again; %d units are dropped", len(self._kept))
        self._kept.clear()
        self._bytes = 0

    def _keep(self, unit: Unit) -> LoadedUnit:
        if not self._kept:
            log.warning("no FFN worker computes %s: this process begins to compute units", unit)
        loaded = self._kept[unit] = self._load(unit)
        self._bytes += loaded.nbytes
        while self._bytes > self._memory and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes
        return loaded

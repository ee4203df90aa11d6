"""How much each expert is asked for, of late."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from triptych.experts.units import Catalog, Floats

# Below this many rows per layer and worker chance alone moves a worker's load by more than 2.5 %.
_ENOUGH_ROWS = 1600


class LoadMeter:
    """Fading means of rows per second, per layer and expert. Prompts and decoding have different
    favourites: keep a meter for each where both are served.
    """

    def __init__(self, catalog: Catalog, now: float, half_life_s: float = 30.0) -> None:
        assert half_life_s > 0
        self._half_life_s = half_life_s
        self._rows = np.zeros((len(catalog.experts), max(catalog.experts)))  # faded
        self._seconds = 0.0  # faded alike
        self._last = now

    def add(self, counts: ArrayLike, now: float) -> None:
        """counts [L, E]: rows since the last call; now: seconds of a clock that never goes back."""
        passed = now - self._last
        assert passed >= 0, "time goes on"
        fade = 0.5 ** (passed / self._half_life_s)
        # Rows and seconds of one interval are as old as each other.
        self._rows = fade * self._rows + np.asarray(counts, np.float64)
        self._seconds = fade * self._seconds + passed
        self._last = now

    @property
    def loads(self) -> Floats:
        """[L, E] rows per second; zeros before the first interval."""
        return self._rows / self._seconds if self._seconds else np.zeros_like(self._rows)

    def is_settled(self, num_workers: int) -> bool:
        """Whether differences between workers would be more than chance."""
        return bool(self._rows.sum(axis=1).min() >= _ENOUGH_ROWS * num_workers)

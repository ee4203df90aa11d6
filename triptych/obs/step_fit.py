"""A step's seconds by its rows and pairs, learned while it is used."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transport.pace import StepCost

_Array = NDArray[np.floating[Any]]

_FORGET = 0.98  # weight of all older samples at each new one: about the last fifty count
_FEW = 8  # samples before a step's parts are told apart
_FIRST = 2  # samples before anything is said: a process's first step may be much longer
_DOUBT = 1e-6  # what cannot be told apart (rows that never change) is shared out equally


class StepFit:
    """Least squares of the *relative* error, with forgetting; no term is negative.

    Relative, so that short steps count as much as long ones, and a pause, which looks like one very
    long step, hardly at all. `add` takes about a microsecond.
    """

    __slots__ = ("_cost", "_cost_of", "_products", "_sums", "samples")

    def __init__(self) -> None:
        self.samples = 0
        self._cost: StepCost | None = None
        self._cost_of = 0  # so many samples
        self._sums = [0.0, 0.0, 0.0]  # of base, row and pair features, each over its seconds
        self._products = [0.0] * 6  # upper triangle of their products

    def add(self, rows: float, pairs: float, seconds: float) -> None:
        assert seconds > 0, f"{rows} rows in {seconds} s"
        self.samples += 1
        one, row, pair = 1 / seconds, rows / seconds, pairs / seconds
        new = (one * one, one * row, one * pair, row * row, row * pair, pair * pair)
        self._products = [
            _FORGET * old + term for old, term in zip(self._products, new, strict=True)
        ]
        firsts = (one, row, pair)
        self._sums = [_FORGET * old + term for old, term in zip(self._sums, firsts, strict=True)]

    def cost(self) -> StepCost | None:
        """None as long as there are too few samples; with a few more all of it is put on the rows,
        which is right for steps like those that were seen.
        """
        if self.samples >= _FIRST and self._cost_of != self.samples:
            self._cost_of, self._cost = self.samples, self._solve()
        return self._cost

    def _solve(self) -> StepCost:
        bb, br, bp, rr, rp, pp = self._products
        if self.samples < _FEW:
            return StepCost(0.0, self._sums[1] / rr, 0.0)
        matrix = np.array([[bb, br, bp], [br, rr, rp], [bp, rp, pp]])
        scale = np.sqrt(np.where(np.diag(matrix) > 0, np.diag(matrix), 1.0))
        matrix = matrix / np.outer(scale, scale) + _DOUBT * np.eye(3)
        return StepCost(*(_least_squares(matrix, np.array(self._sums) / scale) / scale).tolist())


def _least_squares(matrix: _Array, target: _Array) -> _Array:
    """The best solution of the normal equations without a negative term: one of seven supports."""
    free: _Array = np.linalg.solve(matrix, target)
    if (free >= 0).all():
        return free
    best: _Array = np.zeros(3)
    least = 0.0
    for size in (2, 1):
        for support in map(list, combinations(range(3), size)):
            found = np.linalg.solve(matrix[np.ix_(support, support)], target[support])
            gain = float(found @ target[support])  # of the squared error; the more the better
            if (found >= 0).all() and gain > least:
                best, least = np.zeros(3), gain
                best[support] = found
    return best

"""A line through (rows, seconds) that is learned while it is used."""

from __future__ import annotations

from dataclasses import dataclass

_FORGET = 0.98  # weight of all older samples at each new one: about the last fifty count
_OUTLIER = 4.0  # usual deviations: what is further off counts as no more than that
_FEW = 8  # samples before anything is called an outlier
_FIXED = 0.5  # of the seconds do not depend on rows: believed while rows never change
_DOUBT = 1e-3  # how much that belief weighs, in squared relative spread of the rows


@dataclass(frozen=True, slots=True)
class Line:
    """seconds = slope · rows + base."""

    slope: float
    base: float

    def at(self, rows: float) -> float:
        return self.slope * rows + self.base


class LinearFit:
    """Least squares with forgetting, about 2 µs a sample. Slope and base are never negative.

    Hiccups are cut off: a sample's error counts up to four times the usual one, so that a real
    change of pace is followed within some dozens of samples, and a single pause hardly at all.
    """

    __slots__ = ("_base", "_error", "_slope", "_weight", "_x", "_xx", "_xy", "_y", "samples")

    def __init__(self) -> None:
        self.samples = 0
        self._weight = 0.0
        self._x = self._y = 0.0  # weighted means
        self._xx = self._xy = 0.0  # weighted sums of deviations from them
        self._error = 0.0  # usual deviation from the line, relative
        self._slope = self._base = 0.0

    @property
    def line(self) -> Line:
        return Line(self._slope, self._base)

    @property
    def cv(self) -> float:
        """Standard deviation of the seconds around the line, relative to it."""
        return self._error * 1.25  # of a normal law's mean absolute deviation

    def at(self, rows: float) -> float:
        return self._slope * rows + self._base

    def add(self, rows: float, seconds: float) -> None:
        assert rows > 0 and seconds >= 0, f"{rows} rows in {seconds} s"
        expected = self._slope * rows + self._base
        if self.samples and expected > 0:
            seconds = self._cut_off(expected, seconds)
        self.samples += 1
        self._weight = weight = _FORGET * self._weight + 1
        off_x, off_y = rows - self._x, seconds - self._y
        self._x = x = self._x + off_x / weight
        self._y = y = self._y + off_y / weight
        self._xx = _FORGET * self._xx + off_x * (rows - x)
        self._xy = _FORGET * self._xy + off_x * (seconds - y)
        doubt = _DOUBT * weight * x * x
        slope = (self._xy + doubt * (1 - _FIXED) * y / x) / (self._xx + doubt)
        self._slope = min(max(slope, 0.0), y / x)
        self._base = y - self._slope * x

    def _cut_off(self, expected: float, seconds: float) -> float:
        error = seconds / expected - 1
        if self.samples < _FEW:
            self._error += (min(abs(error), 1.0) - self._error) / self.samples
            return seconds
        # Never below a percent: on a quiet machine a change is no outlier.
        limit = _OUTLIER * max(self._error, 0.01)
        if abs(error) > limit:
            error = limit if error > 0 else -limit
        self._error += (abs(error) - self._error) * 0.05
        return expected * (1 + error)

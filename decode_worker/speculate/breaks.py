"""Rests for what does not pay, each time for twice as long (Cascade, arXiv 2506.20675)."""

from __future__ import annotations

from math import sqrt

FADE = 0.99  # of a comparison, per step
SOON, SURE = 8.0, 56.0  # steps compared before a bad, and a merely poor, utility counts
WAKE = 32  # steps before the end of a rest in which drafters see again what is decoded
LOOKS = 0.0025  # share of a rest's time for looks at what drafts would promise
WORTH = 1.03  # utility promised that ends a rest, after what promises have proved to be worth


class Breaks:
    """Measures a utility = tokens per sequence and step / seconds in those of doing without it."""

    def __init__(self, first: int, last: int) -> None:
        """Steps of the first rest, and of the longest."""
        self.count = 0  # how often it was switched off
        self._first, self._last = first, last
        self._next = first
        self._off_for = 0  # steps left
        self._worth = 1.0  # utility measured before the rest, by the one believed then
        self._heard = 0.0  # utility promised by the last looks; 0: none was taken
        self._look_every = 8  # steps of a rest
        self._clear()

    def _clear(self) -> None:
        self._tokens = self._seconds = self._weight = self._believed = 0.0
        self._rates = self._squares = 0.0  # of single steps

    @property
    def utility(self) -> float:
        """As measured; 1 if nothing was."""
        return self._tokens / self._seconds if self._seconds else 1.0

    @property
    def is_off(self) -> bool:
        return self._off_for > 0

    @property
    def steps_left(self) -> int:
        """Of a rest."""
        return self._off_for

    @property
    def sleeps(self) -> bool:
        """It rests and will not be used soon."""
        return self._off_for > WAKE

    @property
    def looks(self) -> bool:
        """It is off, and it is time to compare drafts again with what is decoded plainly."""
        return self._off_for % self._look_every == 1

    def looked(self, steps: float) -> None:
        """A look took as long as so many steps."""
        self._look_every = int(min(max(steps / LOOKS, 4), 32))

    def passes(self) -> bool:
        """May it be used in this step? Ask once per step."""
        on = self._off_for == 0
        self._off_for -= not on
        return on

    def hears(self, believed: float) -> None:
        """Drafts of a step without it promise a utility of so much."""
        self._heard = (self._heard + believed) / 2 if self._heard else believed
        if self._off_for and self._heard * self._worth >= WORTH:
            self._off_for = 0

    @property
    def _doubt(self) -> float:
        """Standard error of the utility: answers come in bursts, and times are noisy."""
        mean = self._rates / self._weight
        return sqrt(max(self._squares / self._weight - mean**2, 0.0) / self._weight)

    def observe(self, tokens: float, seconds: float, believed: float) -> bool:
        """A step with it. True: that was enough, it rests now."""
        rate = tokens / seconds
        self._rates = self._rates * FADE + rate
        self._squares = self._squares * FADE + rate**2
        self._tokens = self._tokens * FADE + tokens
        self._seconds = self._seconds * FADE + seconds
        self._believed = self._believed * FADE + believed * seconds
        self._weight = self._weight * FADE + 1
        if self._weight >= SURE and self.utility > 1.02:
            self._next = self._first
        poor = self._weight >= SURE and self.utility < 1
        if poor or (self._weight >= SOON and self.utility < 1 - 2 * self._doubt):
            self._switch_off()
            return True
        return False

    def _switch_off(self) -> None:
        self.count += 1
        self._off_for, self._heard = self._next, 0.0
        self._worth = min(self._tokens / self._believed, 1.0)
        self._next = min(2 * self._next, self._last)
        self._clear()


class BreaksByBatch:
    """Every octave of batch sizes by itself: what loses in a large batch may pay in a small one."""

    def __init__(self, first: int, last: int) -> None:
        """See Breaks."""
        self._first, self._last = first, last
        self._octaves: dict[int, Breaks] = {}

    def of(self, sequences: int) -> Breaks:
        """Of steps that draw for so many."""
        octave = sequences.bit_length()
        if octave not in self._octaves:
            self._octaves[octave] = Breaks(self._first, self._last)
        return self._octaves[octave]

    @property
    def count(self) -> int:
        """How often something was switched off; from any thread."""
        return sum(breaks.count for breaks in self._octaves.copy().values())

"""In how many micro-batches a step goes to the FFN workers.

The law of `pipeline.period` proposes, measured steps decide: a number is tried beside the one in
use, in steps of the same size, and taken only if they were shorter. Then its neighbour is tried:
by the law times are convex in the number, so this way leads to the best one.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from triptych.experts.linear_fit import LinearFit
from triptych.experts.pipeline import MOST, Stages, StallShares, choose_count, stall_shares

_TRIAL = 4  # steps in which another number is tried
_BETTER = 0.97  # of the seconds: less is a reason to change
_HOPELESS = 1.2  # of the seconds: more ends a trial early
_NEXT = 12  # steps between trials
_SOON, _SELDOM = 32, 2048  # steps until all is tried again: more each time that changed nothing
_KNOWN = 8  # samples of each stage before the law is asked


class MicroBatchPolicy:
    """What it knows it knows per power of two of rows. A call takes a few microseconds."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._fits = (LinearFit(), LinearFit(), LinearFit())
        self._stages = Stages(*self._fits)
        self._sizes: dict[int, _Choice] = {}

    def count(self, rows: int) -> int:
        """Micro-batches for the next step, which has `rows` rows."""
        choice = self._sizes.get(rows.bit_length())
        return 1 if choice is None else min(choice.now, max(1, rows))

    def observe(self, rows: int, attention_s: float, ffn_s: float, link_s: float | None) -> None:
        """Seconds of a layer of one micro-batch of `rows` rows, or means over a step's layers.

        ffn_s: computing alone, what waits there follows from the law; link_s: one way; None where
        it cannot be told from an answer that waited until somebody looked.
        """
        for fit, seconds in zip(self._fits, (attention_s, ffn_s, link_s), strict=True):
            if seconds is not None:
                fit.add(rows, seconds)

    def observe_step(self, rows: int, count: int, seconds: float) -> None:
        """What a whole step took, with the number of micro-batches it had."""
        choice = self._sizes.setdefault(rows.bit_length(), _Choice())
        if count != choice.now:
            choice.miss(count)
        elif choice.learn(seconds / rows):
            choice.try_other(self._proposal(rows, choice))

    def stalls(self, rows: int) -> StallShares:
        """Which part of the time each side waits, by the law, in steps of this size."""
        count = self.count(rows)
        return stall_shares(count, *self._stages.times(rows / count))

    def _proposal(self, rows: int, choice: _Choice) -> int:
        """The best by the law of those that were not refused; where that is chosen, one fewer,
        because no law knows all that a micro-batch costs; else what is chosen.
        """
        if min(fit.samples for fit in self._fits) < _KNOWN:
            return choice.chosen
        cv = max(fit.cv for fit in self._fits[:2])
        best = choose_count(self._stages, rows, cv, self._most, choice.refused)
        fewer = choice.chosen - 1
        return fewer if best == choice.chosen and fewer not in (0, *choice.refused) else best


class _Choice:
    """The number of micro-batches for steps of one size, and the trial of another one."""

    __slots__ = ("_every", "_misses", "_paces", "_tried", "_until", "chosen", "now", "refused")

    def __init__(self) -> None:
        self.chosen = 1
        self.now = 1  # differs during a trial
        self.refused: set[int] = set()  # were no better than what is chosen
        self._paces: deque[float] = deque(maxlen=_TRIAL)  # seconds per row, last steps as chosen
        self._tried: list[float] = []
        self._misses = 0  # steps in a row that could not be cut into so many
        self._every = _SOON
        self._until = _SOON // 2  # steps

    def learn(self, pace: float) -> bool:
        """A step as it was to be. Whether it is time to try another number."""
        self._misses = 0
        if self.now != self.chosen:
            self._tried.append(pace)
            if len(self._tried) == _TRIAL or self._is_hopeless():
                self._judge()
            return False
        self._paces.append(pace)
        self._until -= 1
        return self._until <= 0 and len(self._paces) == _TRIAL

    def miss(self, count: int) -> None:
        """A step was cut into `count`: what it consists of allowed no more."""
        self._misses += 1
        if self._misses < _TRIAL:
            return
        self._misses = 0
        if self.now == self.chosen:
            self._settle(count)
        else:
            self._refuse()

    def try_other(self, count: int) -> None:
        """`count`: what is chosen if none is worth a trial; then all are again some time later."""
        self.now = count
        self._tried = []
        if count == self.chosen:
            self.refused.clear()
            self._until = self._every
            self._every = min(2 * self._every, _SELDOM)

    def _is_hopeless(self) -> bool:
        return len(self._tried) > 2 and min(self._tried[1:]) > _HOPELESS * median(self._paces)

    def _judge(self) -> None:
        # The first step behind a change still pays for it.
        if median(self._tried[1:]) < _BETTER * median(self._paces):
            self._settle(self.now)
        else:
            self._refuse()

    def _settle(self, count: int) -> None:
        self.chosen = self.now = count
        self._paces.clear()
        self.refused.clear()
        self._every = _SOON
        self._until = _NEXT

    def _refuse(self) -> None:
        """And what is further off in the same direction, which would be worse."""
        worse = range(self.now, MOST + 1) if self.now > self.chosen else range(1, self.now + 1)
        self.refused.update(worse)
        self.now = self.chosen
        self._until = _NEXT

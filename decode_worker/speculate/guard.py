"""Does speculation pay as it goes? The outer loop of the automatic mode (Cascade, 2506.20675).

The tables believe that a plan pays; this measures it. For a fair comparison plain steps are
interleaved, the fewer the more speculation brings: a plain step costs most where the answer is
clear. Every octave of batch sizes is judged by itself.
"""

from __future__ import annotations

from enum import Enum

from decode_worker.speculate.breaks import Breaks, BreaksByBatch

WINDOW = 2  # plain steps in a row
REFRESH = 0.006  # share of the time that plain steps may cost
LEAST, MOST = 16, 192  # speculative steps between two windows
FIRST_BREAK, LAST_BREAK = 16, 512  # steps without speculation


class Mode(Enum):
    """Of a step."""

    PLAIN = "plain"  # nobody is asked
    LOOK = "look"  # drafts are compared with what is decoded, not verified
    SPECULATE = "speculate"


class Guard:
    def __init__(self) -> None:
        self._breaks = BreaksByBatch(FIRST_BREAK, LAST_BREAK)
        self._last = 1  # sequences of the last step
        self._window = 0  # plain steps left
        self._since = 0  # speculative steps since the last plain one

    @property
    def utility(self) -> float:
        """As measured, of steps like the last one."""
        return self.of(self._last).utility

    @property
    def breaks(self) -> int:
        """How often speculation was switched off."""
        return self._breaks.count

    def of(self, sequences: int) -> Breaks:
        """Of steps that draw for so many."""
        return self._breaks.of(sequences)

    def rests(self, sequences: int) -> bool:
        """The next step is plain for sure, and not needed for a comparison. Instead of `mode`."""
        breaks, self._last = self.of(sequences), sequences
        idle = breaks.steps_left > 2 * WINDOW and not breaks.looks
        if idle:
            breaks.passes()
        return idle

    def mode(self, sequences: int, plain_known: bool) -> Mode:
        """Of the next step. Ask once per step."""
        breaks, self._last = self.of(sequences), sequences
        looks = breaks.looks
        if not breaks.passes():
            return Mode.LOOK if looks else Mode.PLAIN
        if self._window:
            self._window -= 1
            return Mode.PLAIN
        if self._since >= (self._interval(breaks.utility) if plain_known else LEAST):
            self._since, self._window = 0, WINDOW - 1
            return Mode.PLAIN
        return Mode.SPECULATE

    def counts(self, nodes: int) -> None:
        """A step verified so many. Plain steps that come by themselves spare a window."""
        self._since = self._since + 1 if nodes else 0

    def observe(self, tokens: float, seconds: float, believed: float, sequences: int) -> None:
        """A step near a plain one that might speculate brought so many tokens per sequence.

        `seconds`: its time, all drafting and deciding included, in plain steps.
        """
        if self.of(sequences).observe(tokens, seconds, believed):
            self._since = 0

    @staticmethod
    def _interval(utility: float) -> int:
        lost = WINDOW * (1 - 1 / max(utility, 1.0))
        return int(min(max(lost / REFRESH, LEAST), MOST))

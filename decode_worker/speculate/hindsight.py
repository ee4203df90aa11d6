"""What drafts brought, by what they had promised: the factor by which to believe the next ones.

Whoever takes the best of many guesses takes those that were guessed too high, however sound the
guesses are on average (the winner's curse); texts differ more than drafters know; and they change
sooner than tables.
"""

from __future__ import annotations

FADE = 0.98  # of the evidence, per step: what was found out is not for ever


class Hindsight:
    """By default of the nodes that were chosen for a step, of all sequences."""

    __slots__ = ("_doubt", "_kept", "_least", "_memory", "_most", "_promised")

    def __init__(
        self, memory: float = 40.0, doubt: float = 8.0, least: float = 0.0, most: float = 1.1
    ) -> None:
        """memory: tokens promised, older ones fade; doubt: tokens that "as promised" counts for;
        least, most: bounds of the factor.
        """
        self._memory, self._doubt = memory, doubt
        self._least, self._most = least, most
        self._promised = self._kept = 0.0

    @property
    def factor(self) -> float:
        """Of what is promised now."""
        factor = (self._kept + self._doubt) / (self._promised + self._doubt)
        return min(max(factor, self._least), self._most)

    def passes(self) -> None:
        """A step, with or without a verdict."""
        self._promised *= FADE
        self._kept *= FADE

    def learn(self, promised: float, kept: int) -> None:
        """Tokens, of drafts that were verified."""
        fade = max(1 - promised / self._memory, 0.5)
        self._promised = self._promised * fade + promised
        self._kept = self._kept * fade + kept

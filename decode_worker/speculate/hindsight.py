"""What the nodes that were chosen brought, by what they had promised.

Whoever takes the best of many guesses takes those that were guessed too high, however sound the
guesses are on average (the winner's curse). And texts change sooner than tables.
"""

from __future__ import annotations

DOUBT = 8.0  # tokens; "as promised" counts for so many
MEMORY = 40.0  # tokens promised; older ones fade
FADE = 0.98  # of the evidence, per step
MOST = 1.1


class Hindsight:
    def __init__(self) -> None:
        self._promised = self._kept = 0.0

    @property
    def factor(self) -> float:
        """Of what is promised now."""
        return min((self._kept + DOUBT) / (self._promised + DOUBT), MOST)

    def passes(self) -> None:
        """A step: what was found out is not for ever, least of all when nothing is tried."""
        self._promised *= FADE
        self._kept *= FADE

    def learn(self, promised: float, kept: int) -> None:
        """Tokens of all drafts of a step together."""
        fade = max(1 - promised / MEMORY, 0.5)
        self._promised = self._promised * fade + promised
        self._kept = self._kept * fade + kept

"""How often drafted tokens were right, learned while they are verified."""

from __future__ import annotations

from collections import defaultdict

from triptych.drafters.drafter import Verdict

PRIOR_WEIGHT = 8.0  # drafts that the first guess counts for
MEMORY = 512.0  # verdicts of a cell; beyond, older ones fade
MAX_MATCH, MAX_DEPTH = 32, 16  # cells; what is beyond shares the last one


class HitRates:
    """P(node right | its parent right) by the length of the match and the depth of the node."""

    def __init__(self) -> None:
        self._right: defaultdict[tuple[int, int], float] = defaultdict(float)
        self._tried: defaultdict[tuple[int, int], float] = defaultdict(float)

    def rate(self, match: int, depth: int) -> float:
        """Strictly between 0 and 1. Before anything is known, m / (m + 1): two of three after two
        tokens that match.
        """
        cell = _cell(match, depth)
        first_guess = cell[0] / (cell[0] + 1)
        right = self._right.get(cell, 0.0) + PRIOR_WEIGHT * first_guess
        return right / (self._tried.get(cell, 0.0) + PRIOR_WEIGHT)

    def learn(self, match: int, verdict: Verdict) -> None:
        """From a chain. Nodes below a wrong one were never put to the test, nor was the one behind
        the last right one if the sequence ended there.
        """
        for depth in range(1, verdict.num_accepted + 1):
            self._count(_cell(match, depth), 1.0)
        was_wrong = len(verdict.new_tokens) > verdict.num_accepted < len(verdict.draft)
        if was_wrong:
            self._count(_cell(match, verdict.num_accepted + 1), 0.0)

    def _count(self, cell: tuple[int, int], right: float) -> None:
        fade = MEMORY / (MEMORY + 1) if self._tried[cell] >= MEMORY else 1.0
        self._tried[cell] = self._tried[cell] * fade + 1.0
        self._right[cell] = self._right[cell] * fade + right


def _cell(match: int, depth: int) -> tuple[int, int]:
    return min(match, MAX_MATCH), min(depth, MAX_DEPTH)

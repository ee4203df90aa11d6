"""What drafts bring at all: the two figures that DAS's budget needs (arXiv 2511.13841, Eq. 4)."""

from __future__ import annotations

from triptych.drafters.drafter import Verdict

PRIOR = 32.0  # drafts; the first guess counts so much
FADE = 0.999  # of the evidence, per draft
FIRST, ALL = 0.5, 1.5  # the first guess: chance of a draft's first node, tokens of a whole draft


class Acceptance:
    """Of all drafts that were verified, whoever made them."""

    def __init__(self) -> None:
        self._drafts = PRIOR
        self._first = PRIOR * FIRST
        self._accepted = PRIOR * ALL

    def learn(self, verdict: Verdict) -> None:
        """A step without a draft says nothing."""
        if verdict.draft:
            self._drafts = self._drafts * FADE + 1
            self._first = self._first * FADE + (verdict.num_accepted > 0)
            self._accepted = self._accepted * FADE + verdict.num_accepted

    @property
    def ceiling(self) -> float:
        """k: share of the tokens that drafts bring if every step has one; in (0, 1)."""
        accepted = self._accepted / self._drafts
        return min(max(accepted / (1 + accepted), 0.05), 0.95)

    @property
    def efficiency(self) -> float:
        """α: accepted = k·(1 - exp(-α·proposals)) per token rises at first as fast as the first
        nodes of drafts are right.
        """
        return max(self._first / self._drafts, 0.05) / self.ceiling

"""Trying drafters that are not believed to pay, for a bounded price.

A draft that does not pay to verify is compared with the tokens that come: only drafting was paid
for. A sequence that answers badly is asked less and less often; drafters that are dear also have a
purse each, which earns a share of all time.
"""

from __future__ import annotations

from triptych.engine.draft import ROOT, Draft

SHARE = 0.008  # of all time, for all dear drafters together
FIRST_WAIT, LAST_WAIT = 2, 8  # steps between probes of one sequence; the purse bounds the rest
BUSY_WAIT = 64  # while another drafter serves it well


class Purse:
    """Seconds that one drafter may spend on probes. May go into debt, then earns it back."""

    def __init__(self) -> None:
        self._credit: float | None = None

    def earn(self, plain_seconds: float, drafters: int) -> None:
        """A step passed. It never holds more than a plain step's worth."""
        if self._credit is None:
            self._credit = plain_seconds / drafters
        share = SHARE / drafters * plain_seconds
        self._credit = min(self._credit + share, plain_seconds)

    def allows(self, seconds: float, plain_seconds: float) -> bool:
        return self._credit is not None and self._credit >= min(seconds, plain_seconds / 4)

    def spend(self, seconds: float) -> None:
        self._credit = (self._credit or 0.0) - seconds


class Turn:
    """When a sequence is probed with a drafter next, in steps."""

    __slots__ = ("_wait", "due")

    def __init__(self, step: int) -> None:
        self.due = step
        self._wait = FIRST_WAIT

    def asked(self, step: int, busy: bool) -> None:
        self.due = step + (BUSY_WAIT if busy else self._wait)
        self._wait = min(2 * self._wait, LAST_WAIT)

    def answered_well(self, step: int) -> None:
        self._wait, self.due = FIRST_WAIT, step + 1


class Shadow:
    """A draft that is not verified but compared with what is decoded."""

    __slots__ = ("_at", "depth", "draft")

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.depth = 0  # tokens compared
        self._at = ROOT

    def compare(self, token: int) -> list[tuple[int, int, float]]:
        """Labels as of a verdict: (node, depth, right). None: the draft ended before."""
        self.depth += 1
        labels, parent = [], self._at
        for node in self._children(parent):
            right = self.draft.tokens[node] == token
            labels.append((node, self.depth, float(right)))
            if right:
                self._at = node
        return labels

    def _children(self, parent: int) -> list[int]:
        if self.draft.parents is None:
            return [parent + 1] if parent + 1 < len(self.draft) else []
        return [node for node, above in enumerate(self.draft.parents) if above == parent]

    @property
    def was_right(self) -> bool:
        return self._at != ROOT

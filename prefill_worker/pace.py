"""Is it sooner to fetch a prompt's history from its home, or to compute it again?"""

from __future__ import annotations

from dataclasses import dataclass

_NEWEST = 0.2  # weight of a measurement among those before
_FORGET = 64  # refusals after which a link is tried again: it may have got faster


@dataclass(slots=True)
class Pace:
    """What was measured here. Written by the loop's thread and by the event loop, each its own."""

    tokens_s: float = 0.0  # computed; 0: not known yet
    bytes_s: float = 0.0  # fetched; 0: not known yet
    _refusals: int = 0

    def computed(self, tokens: int, seconds: float) -> None:
        """One step of prompt chunks."""
        self.tokens_s = _mixed(self.tokens_s, tokens / max(seconds, 1e-9))

    def fetched(self, num_bytes: int, seconds: float) -> None:
        self.bytes_s = _mixed(self.bytes_s, num_bytes / max(seconds, 1e-9))
        self._refusals = 0

    def is_worth_fetching(self, tokens: int, num_bytes: int) -> bool:
        """Whether the home's copy of so many tokens is here sooner than they are computed."""
        if tokens <= 0:
            return False
        if not self.tokens_s or not self.bytes_s:
            return True  # one of them is tried, and known afterwards
        if num_bytes / self.bytes_s < tokens / self.tokens_s:
            return True
        self._refusals += 1
        if self._refusals < _FORGET:
            return False
        self._refusals = 0
        return True


def _mixed(before: float, newest: float) -> float:
    return newest if not before else before + _NEWEST * (newest - before)

"""Is it sooner to fetch a prompt's history from its home, or to compute it again?"""

from __future__ import annotations

from dataclasses import dataclass

from transport.pace import pairs_between
from triptych.obs.pace import PaceMeter

_FORGET = 64  # refusals after which a link is tried again: it may have got faster


@dataclass(slots=True)
class FetchOrCompute:
    """Decides by what this worker measured of its steps and fetches. On the event loop."""

    meter: PaceMeter
    chunk_tokens: int  # rows of a step, at most
    _refusals: int = 0  # since something was worth fetching

    def is_worth_fetching(self, start: int, end: int, num_bytes: int) -> bool:
        """Whether the home's copy of the prompt's tokens [start, end) is here sooner than they are
        computed.
        """
        if end <= start:
            return False
        cost, bytes_s = self.meter.prefill, self.meter.link_bytes_s
        if cost is not None and bytes_s:  # else one of them is tried, and known afterwards
            steps = (end - start) / self.chunk_tokens
            compute_s = cost.seconds(end - start, pairs_between(start, end), steps)
            self._refusals += 1
            if num_bytes / bytes_s >= compute_s and self._refusals < _FORGET:
                return False
        self._refusals = 0
        return True

"""Where a text ends because one of its stop strings appeared.

The home stops generating with it, the router trims with it. Same class, same text, same answer: the
result is a function of the text alone, however it was cut into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triptych.errors import RequestError


class StopMatcher:
    """Finds the stop string that is *completed* first; of several completed at once, the longest.

    Text that may yet turn out to be part of a stop string is held back. The cost of a character
    does not depend on how long the stop strings are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Without stops everything passes. Raises RequestError(param="stop") for an empty one."""
        if "" in stops:
            raise RequestError("stop: an empty string can never end a text", param="stop")
        self._progress = [_Progress(stop, _fallbacks(stop)) for stop in dict.fromkeys(stops)]
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that is final now, the stop string that ended it or None).

        On a match the text ends just before the stop string. What follows is dropped: later pushes
        return ("", the same stop string).
        """
        if self._matched is not None or not self._progress:
            return ("" if self._matched else text), self._matched
        seen = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            completed = [item.stop for item in self._progress if item.advance(character)]
            if completed:
                self._matched = max(completed, key=len)
                self._held = ""
                return seen[: end - len(self._matched)], self._matched
        safe = len(seen) - max(item.length for item in self._progress)
        self._held = seen[safe:]
        return seen[:safe], None

    def flush(self) -> str:
        """What was held back, at the end of the text; "" after a match."""
        held, self._held = self._held, ""
        for item in self._progress:
            item.length = 0
        return held


@dataclass(slots=True)
class _Progress:
    """How much of one stop string the text ends with (Knuth, Morris, Pratt)."""

    stop: str
    fallbacks: list[int]  # [n]: the longest proper prefix of stop[:n] that is also its suffix
    length: int = 0  # the longest prefix of `stop` that is a suffix of the text

    def advance(self, character: str) -> bool:
        """Whether this character completes the stop string. Not to be called again after that."""
        while self.length and self.stop[self.length] != character:
            self.length = self.fallbacks[self.length]
        if self.stop[self.length] == character:
            self.length += 1
        return self.length == len(self.stop)


def _fallbacks(stop: str) -> list[int]:
    found = [0, 0]
    for character in stop[1:]:
        length = found[-1]
        while length and stop[length] != character:
            length = found[length]
        found.append(length + 1 if stop[length] == character else 0)
    return found

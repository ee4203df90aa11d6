"""Stop strings at the home: they end a choice, on the same text that the router shows."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.stop import StopMatcher
from triptych.tokenizer import Detokenizer, Tokenizer


class TextStop:
    """The engine's StopWatch for one choice."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._stops = stops
        self._detokenizer = Detokenizer(tokenizer, continues=True)
        self._matcher = StopMatcher(stops)

    def push(self, token_id: int) -> str | None:
        """The stop string that this token completed.

        A match that does not end the choice (`min_tokens`) is passed over: the search starts anew
        with the next token, as it does in the router's trimmer.
        """
        _, stop = self._matcher.push(self._detokenizer.push(token_id))
        if stop is not None:
            self._matcher = StopMatcher(self._stops)
        return stop

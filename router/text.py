"""Tokens of one choice to the text that its client sees."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from triptych.errors import WorkerError
from triptych.request import FinishReason, SamplingParams, TokenDelta, TokenLogprobs
from triptych.stop import StopMatcher
from triptych.tokenizer import Detokenizer, Tokenizer


class Piece(NamedTuple):
    """What one delta adds to one choice. `text` may be empty: held back, or nothing to show."""

    choice: int  # index in the HTTP answer
    text: str
    token_ids: tuple[int, ...]  # all of the delta's, also those that show no text
    logprobs: tuple[TokenLogprobs, ...]  # one per token, if they were asked for
    offsets: tuple[int, ...]  # of each token: characters of the choice before it, nothing trimmed
    finish_reason: FinishReason | None
    stop_reason: str | int | None

    @property
    def is_plain(self) -> bool:
        """Text and nothing else."""
        return bool(self.text) and self.finish_reason is None and not self.logprobs


class ChoiceText:
    """Text of one choice, without the stop string, stop token or end of sequence that ended it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        index: int,
        shown: Collection[int] = (),
    ) -> None:
        """`shown`: special tokens that are text."""
        self.index = index
        self.finished = False
        self._detokenizer = Detokenizer(tokenizer, shown=shown, continues=True)
        self._trimmer = StopTrimmer(params.stop)
        self._terminators = {*params.stop_token_ids, *tokenizer.eos_token_ids}
        self._num_chars = 0

    def push(self, delta: TokenDelta) -> Piece:
        """Raises WorkerError when the logprobs do not go with the tokens."""
        _, _, token_ids, logprobs, finish_reason, stop_reason = delta
        if logprobs and len(logprobs) != len(token_ids):
            raise WorkerError(f"{delta.request_id}: logprobs of other tokens than those that came")
        hidden = 1 if finish_reason is not None and self._ends_with_terminator(delta) else 0
        text, offsets = "", []
        for token_id in token_ids[:-1] if hidden else token_ids:
            offsets.append(self._num_chars)
            text += self.push_token(token_id)
        offsets += [self._num_chars] * hidden
        if finish_reason is not None:
            self.finished = True
            stopped = isinstance(stop_reason, str)
            text += self._trimmer.finish(self._detokenizer.flush(), stopped=stopped)
        return Piece(
            self.index, text, token_ids, logprobs, tuple(offsets), finish_reason, stop_reason
        )

    def push_token(self, token_id: int) -> str:
        """The text of a token that is to be shown and does not end the choice."""
        new = self._detokenizer.push(token_id)
        self._num_chars += len(new)
        return self._trimmer.push(new)

    def _ends_with_terminator(self, delta: TokenDelta) -> bool:
        return (
            delta.finish_reason is FinishReason.STOP
            and not isinstance(delta.stop_reason, str)
            and bool(delta.token_ids)
            and delta.token_ids[-1] in self._terminators
        )


class StopTrimmer:
    """Cuts the stop string that ended a text, and holds back what may become one.

    The home decides where a choice ends. A match that is followed by more text did not end it (the
    home passes over matches before `min_tokens`): it is text like any other.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._matcher = StopMatcher(stops)
        self._held = ""
        self._matched = False

    def push(self, text: str) -> str:
        """Text that is final now."""
        if not self._stops:
            return text
        passed_over = ""
        if self._matched:
            passed_over, self._held = self._held, ""
            self._matcher, self._matched = StopMatcher(self._stops), False
        self._held += text
        safe, stop = self._matcher.push(text)
        self._matched = stop is not None
        self._held = self._held[len(safe) :]
        return passed_over + safe

    def finish(self, tail: str, *, stopped: bool) -> str:
        """The rest of the text. `stopped`: the home says that a stop string ended it."""
        return "" if stopped and self._matched else self._held + tail

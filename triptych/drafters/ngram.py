"""Prompt lookup: what followed the last few tokens the last time they stood in the text.

Saxena 2023, "Prompt lookup decoding". Costs no model and pays where output repeats the prompt or
itself: edits, extraction, agents.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from triptych.drafters.calibration import HitRates
from triptych.drafters.drafter import Ask, Hints, Verdict
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.sequence import Sequence

# Tokens indexed in one call of `propose`, all sequences together: some 10 ms. The rest of a long
# prompt follows in the next ones, so that it never holds up the step.
CATCH_UP_TOKENS = 1 << 12

_FACTOR = 0x9E3779B97F4A7C15
_MASK = (1 << 62) - 1


class NgramIndex:
    """Where each n-gram of a growing text ended last. O(max_n) for a token and for a look-up.

    Some 400 bytes per token of text (min_n 2, max_n 5).
    """

    def __init__(self, min_n: int, max_n: int) -> None:
        assert 1 <= min_n <= max_n, "lengths are positive and in order"
        self._min_n = min_n
        self._max_n = max_n
        self._ends: dict[int, int] = {}  # by hash, the longer ones' hashes among the shorter ones'
        self.num_indexed = 0  # tokens whose n-grams are known, with the token that follows them

    def extend(self, tokens: Seq[int], most: int) -> int:
        """Takes in what was added to the text, at most so many tokens; returns how many."""
        begin = self.num_indexed
        self.num_indexed = max(begin, min(len(tokens) - 1, begin + most))
        for end in range(begin + 1, self.num_indexed + 1):
            for _, key in self._keys(tokens, end):
                self._ends[key] = end
        return self.num_indexed - begin

    def find(self, tokens: Seq[int]) -> tuple[int, int]:
        """Length of the longest match of the text's end, and where its newest one ends; or 0, 0."""
        for length, key in reversed(self._keys(tokens, len(tokens))):
            end = self._ends.get(key, 0)
            if end >= length and tokens[end - length : end] == tokens[-length:]:
                return length, end
        return 0, 0

    def _keys(self, tokens: Seq[int], end: int) -> list[tuple[int, int]]:
        """Length and hash of the n-grams that end before `end`, shortest first."""
        keys, key = [], 0
        for length in range(1, min(self._max_n, end) + 1):
            key = (key * _FACTOR + tokens[end - length] + 1) & _MASK
            if length >= self._min_n:
                keys.append((length, key))
        return keys


@dataclass(slots=True)
class _State:
    index: NgramIndex
    match: int = 0  # tokens, of the last draft


@dataclass(eq=False)
class NgramDrafter:
    """Drafts a chain; longest match first, newest occurrence among equals (vLLM takes the oldest;
    on answers of a small model the two came out alike, the newest a little ahead).
    """

    min_n: int = 2
    max_n: int = 5
    catch_up_tokens: int = CATCH_UP_TOKENS
    name: str = field(default="ngram", init=False)

    def __post_init__(self) -> None:
        self._states: dict[Sequence, _State] = {}
        self._rates = HitRates()

    def begin(self, sequence: Sequence, hints: Hints) -> None:
        self._states[sequence] = _State(NgramIndex(self.min_n, self.max_n))

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        drafts = []
        room = self.catch_up_tokens
        for sequence, max_nodes in asks:
            state = self._states.get(sequence)
            if state is None:
                drafts.append(NO_DRAFT)
                continue
            room -= state.index.extend(sequence.tokens, room)
            drafts.append(self._draft(state, sequence.tokens, max_nodes))
        return drafts

    def observe(self, verdicts: Seq[Verdict]) -> None:
        for verdict in verdicts:
            state = self._states.get(verdict.sequence)
            if state is not None and verdict.draft.drafter == self.name:
                self._rates.learn(state.match, verdict)

    def end(self, sequence: Sequence) -> None:
        self._states.pop(sequence, None)

    def _draft(self, state: _State, tokens: list[int], max_nodes: int) -> Draft:
        state.match, begin = state.index.find(tokens)
        if not state.match:
            return NO_DRAFT
        drafted = tokens[begin : begin + max_nodes]
        period = len(tokens) - begin
        while len(drafted) < max_nodes:  # the match reaches the end: the text goes in a circle
            drafted.append(drafted[-period])
        confidence = [self._rates.rate(state.match, depth) for depth in range(1, max_nodes + 1)]
        return Draft(tuple(drafted), confidence=tuple(confidence), drafter=self.name)

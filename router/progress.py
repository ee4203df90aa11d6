"""What the choices of one call have got so far, whichever homes it came from."""

from __future__ import annotations

from collections import defaultdict

from transport.protos import worker_pb2 as pb
from triptych.request import TokenDelta


class Progress:
    """Grows as homes tell; enough for another home to go on behind it."""

    def __init__(self, num_prompt: int = 0, n: int = 1) -> None:
        self._num_prompt = num_prompt
        self._n = n
        self._token_ids: defaultdict[int, list[int]] = defaultdict(list)  # output, by choice
        self._done: set[int] = set()
        self._cached_tokens: int | None = None  # of the prompt, at the home that computed it
        # Every token of every stream passes here: bare tokens are choice 0's.
        self.add_token = self._token_ids[0].append

    def add(self, delta: TokenDelta) -> None:
        self._token_ids[delta.choice] += delta.token_ids
        if delta.finish_reason is not None:
            self._done.add(delta.choice)

    def add_cached(self, cached_tokens: int) -> None:
        """The first home's word counts: a later one finds what was computed for this call."""
        if self._cached_tokens is None:
            self._cached_tokens = cached_tokens

    @property
    def num_tokens(self) -> int:
        """Of all choices."""
        return sum(map(len, self._token_ids.values()))

    @property
    def _longest(self) -> int:
        left = (len(ids) for choice, ids in self._token_ids.items() if choice not in self._done)
        return max(left, default=0)

    @property
    def num_left(self) -> int:
        """Choices that are not done."""
        return self._n - len(self._done)

    @property
    def num_given(self) -> int:
        """Tokens that the next home begins with: the prompt, and behind it the longest choice."""
        return self._num_prompt + self._longest

    def resumed(self) -> list[pb.Resumed]:
        """What the next home has to know."""
        return [
            pb.Resumed(choice=choice, done=True)
            if choice in self._done
            else pb.Resumed(choice=choice, token_ids=token_ids)
            for choice, token_ids in sorted(self._token_ids.items())
            if token_ids or choice in self._done
        ]

    def whole(self, stats: pb.RequestStats) -> pb.RequestStats:
        """The last home's stats, made true of all homes together. Tokens of the others count as
        drawn one by one: what they drafted is not known any more.
        """
        found = pb.RequestStats()
        found.CopyFrom(stats)
        earlier = self.num_tokens - stats.completion_tokens
        found.prompt_tokens = self._num_prompt
        found.completion_tokens += earlier
        found.rounds += earlier
        if self._cached_tokens is not None:
            found.cached_tokens = self._cached_tokens
        return found

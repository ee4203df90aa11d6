"""What requests turn out to cost: how long answers are, and how much of a prompt is computed."""

from __future__ import annotations

from router.admission.ask import Ask

_FIRST_GUESS = 128.0  # tokens of an answer
_RATE = 1 / 16  # weight of a new observation


class Answers:
    """Running means, of answers by tenant."""

    def __init__(self) -> None:
        self._lengths: dict[str, float] = {}
        self.computed_share = 1.0  # the rest of a prompt lies in a prefix cache

    def expected(self, ask: Ask) -> float:
        """Tokens of one choice."""
        return min(ask.max_tokens, self._lengths.get(ask.tenant, _FIRST_GUESS))

    def learn(self, ask: Ask, computed_tokens: int, answer_tokens: int) -> None:
        length = answer_tokens / ask.sequences
        mean = self._lengths.get(ask.tenant, length)
        self._lengths[ask.tenant] = mean + (length - mean) * _RATE
        share = computed_tokens / ask.prompt_tokens
        # Not 0: a prompt without any cost would have any number of them under way.
        self.computed_share = max(0.02, self.computed_share + (share - self.computed_share) * _RATE)

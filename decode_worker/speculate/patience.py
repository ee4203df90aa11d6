"""How long a step may wait for remote drafts."""

from __future__ import annotations

FADE = 0.95  # of what is known, per step


class Patience:
    """Waits no longer than the drafts are worth.

    While a step of n sequences waits w seconds, each of them loses w / step tokens. A draft brings
    `gain` tokens to each of the sequences that asked, so waiting pays while
    w < step · gain · asked / n. The first guess is one token a draft.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._step_s: float | None = None  # without the wait
        self._gain = 1.0  # tokens per draft that was verified
        self._running = 1

    def wait_s(self, asked: int) -> float:
        """For `asked` drafts of one step."""
        if self._step_s is None:
            return self._most_s
        share = asked / max(asked, self._running)
        return min(self._most_s, self._step_s * self._gain * share)

    def learn(self, running: int, accepted: list[int], step_s: float | None) -> None:
        """A step of `running` sequences; `accepted`: right nodes of each of our drafts in it."""
        self._running = running
        if step_s is not None:
            old = step_s if self._step_s is None else self._step_s
            self._step_s = FADE * old + (1 - FADE) * step_s
        if accepted:
            mean = sum(accepted) / len(accepted)
            self._gain = FADE * self._gain + (1 - FADE) * mean

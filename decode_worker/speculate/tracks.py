"""What is known of one sequence and one drafter: whether asking brings anything."""

from __future__ import annotations

from decode_worker.speculate.hindsight import Hindsight
from decode_worker.speculate.trust import Offer

LONGEST_WAIT = 16  # steps between two asks that bring nothing
_LEARN = 0.25  # weight of the last ask in what an ask is worth


class Track:
    __slots__ = ("_luck", "_wait", "asked_nodes", "due", "offer", "worth")

    def __init__(self, worth: float) -> None:
        self.worth = worth  # tokens that an ask brings
        self.due = 0  # step of the next ask
        self.offer: Offer | None = None  # of this step
        self.asked_nodes = 0  # of the last draft
        self._wait = 0
        self._luck = Hindsight(memory=12.0, doubt=4.0, least=0.1, most=1.5)

    @property
    def factor(self) -> float:
        """Of P(right): texts differ more than drafters know."""
        return self._luck.factor

    def judge(self, expected: float, right: int) -> None:
        """Nodes were compared with what was decoded."""
        self._luck.learn(expected, right)

    def untried(self) -> None:
        """A step passed in which it could have been asked, and was not for want of promise."""
        self._luck.passes()

    def asked(self, step: int, tokens: float, price: float) -> None:
        """What came promises so many tokens, after all prices but its own."""
        self.worth += (tokens - self.worth) * _LEARN
        if self.worth > price:
            self._wait = 0
        else:
            self._wait = min(max(1, 2 * self._wait), LONGEST_WAIT)
        self.due = step + 1 + self._wait

    def promises(self, step: int) -> None:
        """It was right where nobody expected it: ask again at once."""
        self._wait, self.due = 0, step

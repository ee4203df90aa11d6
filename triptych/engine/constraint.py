"""Which tokens may follow: the seam of structured output."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Constraint(Protocol):
    """Of one sequence. What it says is a function of the tokens that it is asked about: never of
    what it was asked before, so the wrong branches of a draft leave no trace.

    `tokens` are all of the sequence's, which only ever grow; one thread at a time.
    """

    @property
    def failure(self) -> str:
        """Why nothing may follow any more; "" as long as all is well."""

    def restrict(self, logits: Tensor, tokens: list[int], path: tuple[int, ...]) -> None:
        """Sets logits [V] to −∞, in place, where a token must not follow `tokens` and `path`.

        Behind tokens that are not allowed themselves everything stays as it is: nobody gets there.
        """

    def is_complete(self, tokens: list[int]) -> bool:
        """Nothing but the end may follow `tokens`."""

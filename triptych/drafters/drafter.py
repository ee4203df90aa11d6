"""What every drafter is. A drafter can be wrong, late or broken and costs time only."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Hints:
    """What the caller says about a request, for drafters that learn across requests."""

    tenant: str = ""  # histories never cross tenants: they would tell in their timing
    problem_id: str = ""  # requests that are samples of one problem


class Ask(NamedTuple):
    """A draft is wanted, of at most so many nodes; max_nodes ≥ 1."""

    sequence: Sequence
    max_nodes: int


class Verdict(NamedTuple):
    """What became of a draft, or of a step without one (then `draft` is empty)."""

    sequence: Sequence  # `new_tokens` are already behind its tokens
    draft: Draft
    path: tuple[int, ...]  # the draft's nodes that were right, from the root down
    new_tokens: tuple[int, ...]  # theirs and one more; fewer if the sequence ended
    logits: Tensor | None = None  # [V] that the last token was drawn from; gone in the next step

    @property
    def num_accepted(self) -> int:
        return len(self.path)


class Drafter(Protocol):
    """Called from the engine's thread only, between steps."""

    @property
    def name(self) -> str:
        """As in the configuration, in metrics and in drafts."""

    def begin(self, sequence: Sequence, hints: Hints) -> None:
        """A sequence exists. Cheap: what a sequence needs is made when it is first asked for."""

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        """A draft per ask, in order, of at most `max_nodes` nodes; an empty one is always right.

        Between two calls a sequence may have grown by any number of tokens, whoever drafted them.
        """

    def observe(self, verdicts: Seq[Verdict]) -> None:
        """What a step brought to the sequences that began here, drafted for by whomever."""

    def end(self, sequence: Sequence) -> None:
        """Finished, cancelled or moved away: nothing of it is needed here any more."""


@runtime_checkable
class TapDrafter(Drafter, Protocol):
    """Also learns what the target knew at every position whose token is final."""

    @property
    def taps(self) -> tuple[int, ...]:
        """Layers of the target, ascending, behind which the residual stream is read."""

    @property
    def window(self) -> int:
        """Rows before its first draft that it looks at, at most."""

    def feed(self, sequence: Sequence, start: int, taps: Tensor) -> None:
        """taps bfloat16 [m, taps · H] of rows from `start` on. In order, each row once, unless the
        sequence is computed again.
        """

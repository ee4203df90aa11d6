"""What every budget policy is: who drafts for whom, and how many nodes are worth verifying."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol, runtime_checkable

from triptych.drafters.drafter import Hints, Verdict
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence


class Candidate(NamedTuple):
    """A sequence that draws a token in this step."""

    sequence: Sequence
    max_nodes: int  # what its length, blocks and settings allow; 0: nothing
    drafters: tuple[str, ...]  # those that its request allows


class StepLoad(NamedTuple):
    """The step that is about to be computed, without any draft."""

    candidates: tuple[Candidate, ...]
    other_rows: int  # prompt rows in the same forward
    kv_tokens: int  # positions of KV that the step reads


class Budget(NamedTuple):
    drafter: str = ""
    max_nodes: int = 0  # 0: no draft


NO_BUDGET = Budget()


class StepReport(NamedTuple):
    """A step as it went."""

    verdicts: tuple[Verdict, ...]  # of all candidates
    rows: int  # that were computed: others, last tokens, nodes
    kv_tokens: int
    draft_seconds: dict[str, float]  # by drafter
    step_seconds: float  # of the rest of the step: forward, draws, commit
    decide_seconds: float = 0.0  # of plan, improve and trim; of learning from the last report

    @property
    def nodes(self) -> int:
        """That were verified."""
        return sum([len(verdict.draft.tokens) for verdict in self.verdicts])

    @property
    def accepted(self) -> int:
        return sum([len(verdict.path) for verdict in self.verdicts])

    @property
    def seconds(self) -> float:
        """Of all of it."""
        return sum(self.draft_seconds.values()) + self.step_seconds + self.decide_seconds


class BudgetPolicy(Protocol):
    """Decides from what it saw; measures no clock itself, so a test replays any history."""

    def rests(self, sequences: int) -> bool:
        """A step that draws for so many needs no plan: nobody drafts. Asked once per step."""

    def plan(self, load: StepLoad) -> list[Budget]:
        """A budget per candidate, in order."""

    def improve(self, load: StepLoad, drafts: Seq[Draft]) -> list[Budget]:
        """Who should draft again, now that these drafts came, instead of them; `NO_BUDGET`
        (or an empty list, for all): the draft stands.
        """

    def trim(self, load: StepLoad, drafts: Seq[Draft]) -> list[Draft]:
        """The drafts (one per candidate, maybe empty) without nodes that will not pay."""

    def asleep(self) -> Collection[str]:
        """Drafters that nobody will ask in the next steps: they need not see what is decoded."""

    def observe(self, report: StepReport) -> None: ...

    def forget(self, sequence: Sequence) -> None:
        """It ended."""


@runtime_checkable
class Introduced(Protocol):
    """What a policy also is that must know sequences before they draw: who waits, and whose samples
    they are. What begins here is forgotten later, drawn or not.
    """

    def begin(self, sequence: Sequence, hints: Hints) -> None: ...

"""The same draft length for everybody, always: what other policies are measured against."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq

from decode_worker.speculate.policy import NO_BUDGET, Budget, StepLoad, StepReport
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence


class Unlearned:
    """The part of a policy that learns nothing, trims nothing and asks once."""

    def rests(self, sequences: int) -> bool:
        return False

    def improve(self, load: StepLoad, drafts: Seq[Draft]) -> list[Budget]:
        return []

    def trim(self, load: StepLoad, drafts: Seq[Draft]) -> list[Draft]:
        return list(drafts)

    def asleep(self) -> Collection[str]:
        return ()

    def observe(self, report: StepReport) -> None:
        pass

    def forget(self, sequence: Sequence) -> None:
        pass


class Fixed(Unlearned):
    """`nodes` by `drafter` for every sequence that allows it; learns nothing."""

    def __init__(self, drafter: str, nodes: int) -> None:
        self._drafter = drafter
        self._nodes = nodes

    def plan(self, load: StepLoad) -> list[Budget]:
        return [
            Budget(self._drafter, min(self._nodes, candidate.max_nodes))
            if self._drafter in candidate.drafters and candidate.max_nodes and self._nodes
            else NO_BUDGET
            for candidate in load.candidates
        ]

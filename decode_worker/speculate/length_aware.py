"""Spends drafts on the long tail: for rollouts, where everybody waits for the longest (DAS).

DAS = "Beat the long tail", arXiv 2511.13841. While samples wait for a place, each that ends makes
room for another, so tokens per second are all that counts and the inner policy decides alone. Once
nobody waits, what counts is the step at which the last one ends: sequences that will have ended
by then anyway draft nothing, the others as much as takes them there in time.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from collections.abc import Sequence as Seq

from decode_worker.speculate.costs import StepCosts
from decode_worker.speculate.das import Tail, nodes_per_step
from decode_worker.speculate.das_acceptance import Acceptance
from decode_worker.speculate.lengths import Lengths
from decode_worker.speculate.policy import Budget, BudgetPolicy, Candidate, StepLoad, StepReport
from triptych.drafters.drafter import Hints
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence

EVERY = 16  # steps between two distributions: expectations change slowly
NODES = 8  # per sequence, at which the price of a node is read
# Longest draft, in mean lengths as DAS allots them: most rounds offer less than that, and what
# a likely draft is worth is known to the inner policy only.
UNEVEN = 4


class LengthAware:
    """Caps what another policy may spend on each sequence. That one still chooses and trims, and
    measures whether any of it pays: a cap can only make its drafts fewer.
    """

    def __init__(self, inner: BudgetPolicy) -> None:
        self._inner = inner
        self._lengths = Lengths()
        self._acceptance = Acceptance()
        self._costs = StepCosts()
        self._problems: dict[Sequence, Hashable | None] = {}  # of all that began
        self._caps: dict[Sequence, int] = {}  # of those that draw, while nobody waits
        self._age = 0  # steps since the caps were set

    def begin(self, sequence: Sequence, hints: Hints) -> None:
        problem = (hints.tenant, hints.problem_id) if hints.problem_id else None
        self._problems[sequence] = problem

    def forget(self, sequence: Sequence) -> None:
        problem = self._problems.pop(sequence, None)
        if sequence.finish_reason is not None:  # else it was cancelled: its length says nothing
            self._lengths.finished(problem, sequence.num_output)
        self._caps.pop(sequence, None)
        self._inner.forget(sequence)

    def rests(self, sequences: int) -> bool:
        return self._inner.rests(sequences)

    def plan(self, load: StepLoad) -> list[Budget]:
        if len(self._problems) > len(load.candidates):
            self._caps.clear()
            return self._inner.plan(load)
        self._age += 1
        if self._age >= EVERY or any(c.sequence not in self._caps for c in load.candidates):
            self._distribute(load)
        capped = tuple(
            candidate._replace(max_nodes=min(candidate.max_nodes, self._caps[candidate.sequence]))
            for candidate in load.candidates
        )
        return self._inner.plan(load._replace(candidates=capped))

    def improve(self, load: StepLoad, drafts: Seq[Draft]) -> list[Budget]:
        budgets = self._inner.improve(load, drafts)
        return [
            budget._replace(max_nodes=min(budget.max_nodes, self._cap(candidate)))
            for candidate, budget in zip(load.candidates, budgets, strict=False)
        ]

    def _cap(self, candidate: Candidate) -> int:
        return self._caps.get(candidate.sequence, candidate.max_nodes)

    def trim(self, load: StepLoad, drafts: Seq[Draft]) -> list[Draft]:
        return self._inner.trim(load, drafts)

    def asleep(self) -> Collection[str]:
        return self._inner.asleep()

    def observe(self, report: StepReport) -> None:
        nodes = report.nodes
        rows = report.rows - nodes
        self._costs.learn(rows, nodes, report.kv_tokens, report.step_seconds)
        for verdict in report.verdicts if nodes else ():
            self._acceptance.learn(verdict)
        self._inner.observe(report)

    def _distribute(self, load: StepLoad) -> None:
        self._age = 0
        tails = [self._tail(candidate.sequence) for candidate in load.candidates]
        rows = len(tails) + load.other_rows
        nodes = NODES * len(tails)
        # In plain steps; only their ratio counts.
        per_node = (self._costs.ratios(rows, nodes)[nodes] - 1) / nodes
        for candidate, share in zip(
            load.candidates, nodes_per_step(tails, 1.0, max(per_node, 1e-6)), strict=True
        ):
            self._caps[candidate.sequence] = UNEVEN * share

    def _tail(self, sequence: Sequence) -> Tail:
        problem = self._problems.get(sequence)
        left = self._lengths.expected_left(problem, sequence.num_output)
        return Tail(max(left, 1.0), self._acceptance.ceiling, self._acceptance.efficiency)

"""Spends drafts on the long tail: for rollouts, where everybody waits for the longest (DAS)."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from decode_worker.speculate.costs import StepCosts
from decode_worker.speculate.das import Tail, nodes_per_step
from decode_worker.speculate.lengths import Lengths
from decode_worker.speculate.policy import Budget, BudgetPolicy, StepLoad, StepReport
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence

EVERY = 16  # steps between two distributions: lengths change slowly
NODES = 16  # per sequence whose cost stands for the slope


class LengthAware:
    """Caps what another policy may spend on each sequence. That one still chooses and trims."""

    def __init__(self, inner: BudgetPolicy, problem_of: Callable[[Sequence], str]) -> None:
        self._inner = inner
        self._problem_of = problem_of
        self._lengths = Lengths()
        self._costs = StepCosts()
        self._caps: dict[Sequence, int] = {}
        self._age = EVERY

    def plan(self, load: StepLoad) -> list[Budget]:
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
            budget._replace(max_nodes=min(budget.max_nodes, self._caps[candidate.sequence]))
            for candidate, budget in zip(load.candidates, budgets, strict=False)
        ]

    def _distribute(self, load: StepLoad) -> None:
        self._age = 0
        sequences = [candidate.sequence for candidate in load.candidates]
        rows = len(sequences) + load.other_rows
        curve = self._costs.curve(rows, load.kv_tokens, NODES)
        base = curve[0] or 1.0  # unknown: the ratio below is all that counts
        slope = self._costs.ratios(rows, NODES)[NODES] - 1
        tails = [Tail(self._left(sequence)) for sequence in sequences]
        for sequence, nodes in zip(
            sequences, nodes_per_step(tails, base, base * slope / NODES), strict=True
        ):
            self._caps[sequence] = 0 if self._is_short(sequence) else nodes

    def _left(self, sequence: Sequence) -> float:
        left = self._lengths.expected_left(self._problem_of(sequence), sequence.num_output)
        return max(left, 1.0)

    def _is_short(self, sequence: Sequence) -> bool:
        problem = self._problem_of(sequence)
        return self._lengths.likely_class(problem, sequence.num_output) == "short"

    def trim(self, load: StepLoad, drafts: Seq[Draft]) -> list[Draft]:
        return self._inner.trim(load, drafts)

    def observe(self, report: StepReport) -> None:
        nodes = sum(len(verdict.draft) for verdict in report.verdicts)
        rows = report.rows - nodes
        self._costs.learn(rows, nodes, report.kv_tokens, report.step_seconds)
        self._inner.observe(report)

    def forget(self, sequence: Sequence) -> None:
        if sequence.finish_reason is not None:  # else it was cancelled: its length says nothing
            self._lengths.finished(self._problem_of(sequence), sequence.num_output)
        self._caps.pop(sequence, None)
        self._inner.forget(sequence)

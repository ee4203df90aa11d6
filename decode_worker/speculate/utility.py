"""The automatic mode: speculate where tokens per second rise, by what was measured here.

plan: cheap drafters are asked for all they have, wherever an ask is worth its few microseconds.
improve: where their drafts promise less than a dear drafter (a head, a model), that one is asked:
the hybrid of SuffixDecoding (arXiv 2411.04975, section 4), with a price. trim: survival top-M over
all nodes that came. Around them `Guard` measures whether what is believed is true.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from decode_worker.speculate.asking import Asking, Known
from decode_worker.speculate.best_nodes import best_count, keep_best
from decode_worker.speculate.choosing import row_price, worth_of
from decode_worker.speculate.costs import StepCosts
from decode_worker.speculate.guard import Guard
from decode_worker.speculate.policy import Budget, StepLoad, StepReport
from decode_worker.speculate.probing import Shadow
from decode_worker.speculate.yields import labels_of
from triptych.drafters.drafter import Verdict
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.sequence import Sequence

MARGIN = 1.005  # believed utility below which a step stays plain: beliefs are noisy


class Utility:
    def __init__(self) -> None:
        self.costs = StepCosts()
        self.guard = Guard()
        self.asking = Asking()
        self._plain_steps = 0
        # Of the step in flight.
        self._may = False  # else drafts are compared, not verified
        self._row = 0.0  # price of a node, in tokens
        self._believed = 1.0
        self._first: Seq[Draft] = ()  # drafts of the cheap
        self._survivals: list[list[float]] = []  # of their nodes

    def plan(self, load: StepLoad) -> list[Budget]:
        count, rows = len(load.candidates), len(load.candidates) + load.other_rows
        self._first, self._may = (), False
        plain = self.costs.plain_seconds(rows, load.kv_tokens)
        if not count or self._plain_steps < 2:
            return self.asking.nobody(count)  # without a plain step nothing can be compared
        self._may = self.guard.allows(self.costs.knows(rows, load.kv_tokens))
        if not self._may and not self.guard.is_off:
            return self.asking.nobody(count)
        self._row = row_price(count, self.costs.ratios(rows, 8 * count))
        return self.asking.ask_cheap(load.candidates, plain, self._may)

    def improve(self, load: StepLoad, drafts: Seq[Draft]) -> list[Budget]:
        if not self.asking.step or (not self._may and not self.guard.is_off):
            return []
        self._first = list(drafts)
        self._survivals = [self._survival(load, at, draft) for at, draft in enumerate(drafts)]
        made = [worth_of(own, self._row) if own else 0.0 for own in self._survivals]
        self.asking.learn_worths(load.candidates, made)
        return self.asking.ask_dear(load.candidates, made, self._row, self._may)

    def _survival(self, load: StepLoad, at: int, draft: Draft) -> list[float]:
        if not draft:
            return []
        return self.asking.yield_of(load.candidates[at].sequence, draft.drafter).survival(draft)

    def trim(self, load: StepLoad, drafts: Seq[Draft]) -> list[Draft]:
        if not any(drafts):
            return list(drafts)
        survivals = [
            self._survivals[at]
            if self._first and draft is self._first[at]
            else self._survival(load, at, draft)
            for at, draft in enumerate(drafts)
        ]
        keep = keep_best(survivals, self._count(load, survivals))
        kept = [_kept(draft, k) if draft else draft for draft, k in zip(drafts, keep, strict=True)]
        for at, (draft, left) in enumerate(zip(drafts, kept, strict=True)):
            first = self._first[at] if self._first else draft
            unused = NO_DRAFT if left else draft
            if first is not draft:  # a dear one took its place
                unused = unused or first
            if unused:
                self._follow(self.asking.of(load.candidates[at].sequence), unused)
        return kept

    def _count(self, load: StepLoad, survivals: Seq[Seq[float]]) -> int:
        """Nodes that are verified; 0 while the guard wants it so."""
        ranked = sorted((s for own in survivals for s in own if s), reverse=True)
        sequences = len(load.candidates)
        ratios = self.costs.ratios(sequences + load.other_rows, len(ranked))
        drafting = self.asking.drafting
        seconds = [ratio + drafting for ratio in ratios[: len(ranked) + 1]]
        count = best_count(ranked, sequences, seconds)
        self._believed = (1 + sum(ranked[:count]) / sequences) / seconds[count]
        if not self._may:
            self.guard.hears(self._believed)
        return count if self._may and self._believed >= MARGIN else 0

    @staticmethod
    def _follow(known: Known, draft: Draft) -> None:
        if known.shadow is None:
            known.shadow = Shadow(draft)

    def observe(self, report: StepReport) -> None:
        nodes = sum(len(verdict.draft) for verdict in report.verdicts)
        rows = report.rows - nodes
        self.costs.learn(rows, nodes, report.kv_tokens, report.step_seconds)
        self._plain_steps += not nodes
        self.guard.counts(nodes)
        self.asking.learn_costs(report.draft_seconds)
        if nodes:
            self._compare(report, rows)
        for verdict in report.verdicts:
            self._learn(verdict)

    def forget(self, sequence: Sequence) -> None:
        self.asking.forget(sequence)

    def _compare(self, report: StepReport, rows: int) -> None:
        costs = self.costs
        if not (costs.near_plain() and costs.knows(rows, report.kv_tokens)):
            return
        tokens = sum(1 + verdict.num_accepted for verdict in report.verdicts)
        seconds = report.step_seconds + sum(report.draft_seconds.values())
        plain = costs.plain_seconds(rows, report.kv_tokens) * costs.pace
        self.guard.observe(tokens / len(report.verdicts), seconds / plain, self._believed)

    def _learn(self, verdict: Verdict) -> None:
        draft = verdict.draft
        known = self.asking.find(verdict.sequence)
        if known is None:
            return
        if draft:
            labels = labels_of(draft, verdict.path)
            known.yields[draft.drafter].learn(draft, labels)
            if verdict.path:
                self.asking.answered_well(known, draft.drafter)
        if known.shadow is not None:
            self._learn_shadow(known, known.shadow, verdict.new_tokens)

    def _learn_shadow(self, known: Known, shadow: Shadow, tokens: tuple[int, ...]) -> None:
        for token in tokens:
            labels = shadow.compare(token)
            known.yields[shadow.draft.drafter].learn(shadow.draft, labels)
            if not any(label for _, _, label in labels):
                if shadow.was_right:
                    self.asking.answered_well(known, shadow.draft.drafter)
                known.shadow = None
                return


def _kept(draft: Draft, keep: Seq[bool]) -> Draft:
    """Draft.kept; chains, which are most, without looking at every node."""
    if draft.parents is not None:
        return draft.kept(keep)
    count = sum(keep)
    if count in (0, len(draft)):
        return draft if count else NO_DRAFT
    return draft.first(count)

"""The automatic mode: speculate where tokens per second rise, by what was measured here.

plan: per sequence the drafter and length with the best gain at the batch's prices; all of it only
if the step as a whole is believed to gain. trim: survival top-M over all nodes that came. Around
both, `Guard` measures whether that is true, and probes keep the beliefs fresh.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from decode_worker.speculate.best_nodes import best_count, keep_best
from decode_worker.speculate.choosing import (
    NO_CHOICE,
    Choice,
    believed_utility,
    best_length,
    cut,
    draft_prices,
    row_price,
)
from decode_worker.speculate.costs import StepCosts
from decode_worker.speculate.draft_costs import DraftCosts
from decode_worker.speculate.guard import Guard
from decode_worker.speculate.policy import NO_BUDGET, Budget, Candidate, StepLoad, StepReport
from decode_worker.speculate.probing import Purse, Shadow, Turn
from decode_worker.speculate.yields import Skill, Yield, labels_of
from triptych.drafters.drafter import Verdict
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence

MARGIN = 1.02  # believed utility below which a step stays plain: beliefs are noisy
LOYALTY = 1.1  # times the gain of the drafter in use that another one must promise
PROBE_NODES = 4
REFRESH = 32  # steps after which an idle belief takes over what others taught its drafter


class _Known:
    """What is known of one sequence."""

    __slots__ = ("drafter", "shadow", "turns", "yields")

    def __init__(self) -> None:
        self.drafter = ""  # in use
        self.yields: dict[str, Yield] = {}
        self.turns: dict[str, Turn] = {}
        self.shadow: Shadow | None = None


class Utility:
    def __init__(self) -> None:
        self.costs = StepCosts()
        self.draft_costs = DraftCosts()
        self.guard = Guard()
        self._step = 0
        self._plain_steps = 0
        self._skills: dict[str, Skill] = {}
        self._purses: dict[str, Purse] = {}
        self._known: dict[Sequence, _Known] = {}
        # Of the step in flight.
        self._believed = 1.0
        self._speculates = False
        self._held = False  # the guard wants it plain: probes are compared, not verified
        self._budgets: list[Budget] = []
        self._probes: dict[str, int] = {}  # sequences, by drafter

    def plan(self, load: StepLoad) -> list[Budget]:
        self._step += 1
        self._probes = {}
        self._speculates = self._held = False
        self._budgets = [NO_BUDGET] * len(load.candidates)
        rows = len(load.candidates) + load.other_rows
        plain = self.costs.plain_seconds(rows, load.kv_tokens)
        if not load.candidates or self._plain_steps < 2:
            return self._budgets  # without a plain step nothing can be compared
        choices = self._choose(load, plain)
        if any(choice.max_nodes for choice in choices):
            known = self.costs.knows(rows, load.kv_tokens)
            self._speculates = self.guard.allows(self._believed, known)
            self._held = not self._speculates
        if self._speculates:
            self._budgets = [
                Budget(c.drafter, c.max_nodes) if c.max_nodes else NO_BUDGET for c in choices
            ]
        self._probe(load, choices, plain)
        return self._budgets

    def trim(self, load: StepLoad, drafts: Seq[Draft]) -> list[Draft]:
        if not any(drafts):
            return list(drafts)
        survivals = [
            self._yield(candidate.sequence, draft.drafter).survival(draft) if draft else []
            for candidate, draft in zip(load.candidates, drafts, strict=True)
        ]
        ranked = sorted((s for own in survivals for s in own), reverse=True)
        rows = len(drafts) + load.other_rows
        drafting = self._draft_seconds(self._asked())
        seconds = [drafting + s for s in self.costs.curve(rows, load.kv_tokens, len(ranked))]
        count = 0 if self._held else best_count(ranked, len(drafts), seconds)
        keep = keep_best(survivals, count)
        kept = [draft.kept(k) if draft else draft for draft, k in zip(drafts, keep, strict=True)]
        for candidate, draft, left in zip(load.candidates, drafts, kept, strict=True):
            if draft and not left:
                self._known[candidate.sequence].shadow = Shadow(draft)
        return kept

    def observe(self, report: StepReport) -> None:
        nodes = sum(len(verdict.draft) for verdict in report.verdicts)
        rows = report.rows - nodes
        self.costs.learn(rows, nodes, report.kv_tokens, report.step_seconds)
        self._plain_steps += not nodes
        self._learn_drafting(report)
        if self._speculates:
            self._compare(report, rows)
        for verdict, budget in zip(report.verdicts, self._budgets, strict=False):
            self._learn(verdict, budget)

    def forget(self, sequence: Sequence) -> None:
        self._known.pop(sequence, None)

    def _choose(self, load: StepLoad, plain: float) -> list[Choice]:
        """Choices of a step that is believed to pay; otherwise none has nodes."""
        count = len(load.candidates)
        ratios = self.costs.ratios(count + load.other_rows, 8 * count)
        row = row_price(count, ratios)
        prices: dict[str, list[float]] = {}
        choices = []
        for candidate in load.candidates:
            best = NO_CHOICE
            if candidate.max_nodes:
                known = self._of(candidate.sequence)
                for drafter in candidate.drafters:
                    if drafter not in prices:
                        prices[drafter] = draft_prices(self.draft_costs, drafter, count, plain)
                    choice = self._length(candidate, known, drafter, row, prices[drafter])
                    bar = LOYALTY if best.drafter == known.drafter else 1.0
                    if choice.gain * (LOYALTY if drafter == known.drafter else 1) > best.gain * bar:
                        best = choice
            choices.append(best)
        return self._believe(choices, ratios, row, plain)

    def _length(
        self, candidate: Candidate, known: _Known, drafter: str, row: float, prices: list[float]
    ) -> Choice:
        if not self.draft_costs.knows(drafter):
            return NO_CHOICE  # its first draft is a probe
        told = known.yields.get(drafter) or self._yield(candidate.sequence, drafter)
        return best_length(drafter, told.ahead(), told.offered, candidate.max_nodes, row, prices)

    def _believe(
        self, choices: list[Choice], ratios: list[float], row: float, plain: float
    ) -> list[Choice]:
        """Without drafters whose batch is too small to pay, cut to what pays, and all or nothing.

        Prices were of a batch in which everybody drafts; now it is known who does.
        """
        count = len(choices)
        asked = _asked(choices)
        for drafter in asked:
            gained = sum(c.tokens - row * c.rows for c in choices if c.drafter == drafter)
            if gained <= self._draft_seconds({drafter: asked[drafter]}) / plain * count:
                choices = [NO_CHOICE if c.drafter == drafter else c for c in choices]
        drafting = self._draft_seconds(_asked(choices)) / plain
        self._believed, least = believed_utility(choices, ratios, drafting)
        if self._believed < MARGIN:
            return [NO_CHOICE] * count
        return [cut(choice, least) for choice in choices]

    def _probe(self, load: StepLoad, choices: list[Choice], plain: float) -> None:
        drafters = {name for c in load.candidates if c.max_nodes for name in c.drafters}
        for drafter in sorted(drafters):
            purse = self._purses.setdefault(drafter, Purse())
            purse.earn(plain, len(drafters))
            due = self._due(load, drafter)
            if not due:
                continue
            idle = [at for at in due if not self._budgets[at].max_nodes]
            # One at a time of those that another drafter serves: it misses that one's tokens.
            due = idle if idle and self.draft_costs.knows(drafter) else (idle or due)[:1]
            nodes = self._probe_nodes(drafter, plain)
            price = self.draft_costs.seconds(drafter, len(due), nodes)
            served = [at for at in due if self._budgets[at].max_nodes]
            missed = sum(choices[at].gain for at in served) * plain / len(choices)
            if purse.allows(price + missed, plain):
                purse.spend(missed)
                self._ask(load, drafter, due, nodes)

    def _due(self, load: StepLoad, drafter: str) -> list[int]:
        due = []
        for at, candidate in enumerate(load.candidates):
            if self._budgets[at].drafter == drafter or not candidate.max_nodes:
                continue
            if drafter in candidate.drafters:
                turn = self._of(candidate.sequence).turns.get(drafter)
                if turn is None or turn.due <= self._step:
                    due.append(at)
        return due

    def _probe_nodes(self, drafter: str, plain: float) -> int:
        """Few where each costs much."""
        nodes = PROBE_NODES
        while nodes > 1 and self.draft_costs.seconds(drafter, 1, nodes) > 0.1 * nodes * plain / 2:
            nodes //= 2
        return nodes

    def _ask(self, load: StepLoad, drafter: str, due: list[int], nodes: int) -> None:
        self._probes[drafter] = len(due)
        for at in due:
            candidate = load.candidates[at]
            known = self._of(candidate.sequence)
            turn = known.turns.setdefault(drafter, Turn(self._step))
            turn.asked(self._step, busy=bool(self._budgets[at].max_nodes))
            self._yield(candidate.sequence, drafter).refresh()
            self._budgets[at] = Budget(drafter, min(nodes, candidate.max_nodes))

    def _learn_drafting(self, report: StepReport) -> None:
        asked = self._asked()
        for drafter, seconds in report.draft_seconds.items():
            if drafter not in asked:
                continue
            sequences, longest = asked[drafter]
            self.draft_costs.learn(drafter, sequences, longest, seconds)
            if drafter in self._probes:
                self._purses[drafter].spend(seconds * self._probes[drafter] / sequences)

    def _compare(self, report: StepReport, rows: int) -> None:
        costs = self.costs
        if not (costs.near_plain() and costs.knows(rows, report.kv_tokens)):
            return
        tokens = sum(1 + verdict.num_accepted for verdict in report.verdicts)
        seconds = report.step_seconds + sum(report.draft_seconds.values())
        plain = costs.plain_seconds(rows, report.kv_tokens) * costs.pace
        self.guard.observe(tokens / len(report.verdicts), seconds / plain, self._believed)

    def _learn(self, verdict: Verdict, budget: Budget) -> None:
        known = self._known.get(verdict.sequence)
        if known is None:
            return
        draft = verdict.draft
        if budget.max_nodes:
            known.drafter = budget.drafter
            told = self._yield(verdict.sequence, budget.drafter)
            told.learn_offer(bool(draft) or known.shadow is not None)
        if draft:
            self._yield(verdict.sequence, draft.drafter).learn(
                draft, labels_of(draft, verdict.path)
            )
            self._answer(known, draft.drafter, bool(verdict.path))
            known.shadow = None
        elif known.shadow is not None:
            self._learn_shadow(known, known.shadow, verdict.new_tokens)

    def _learn_shadow(self, known: _Known, shadow: Shadow, tokens: tuple[int, ...]) -> None:
        for token in tokens:
            labels = shadow.compare(token)
            known.yields[shadow.draft.drafter].learn(shadow.draft, labels)
            if not any(label for _, _, label in labels):
                self._answer(known, shadow.draft.drafter, shadow.was_right)
                known.shadow = None
                return

    def _answer(self, known: _Known, drafter: str, well: bool) -> None:
        if drafter in known.turns:
            known.turns[drafter].answered(self._step, well)

    def _of(self, sequence: Sequence) -> _Known:
        known = self._known.get(sequence)
        if known is None:
            known = self._known[sequence] = _Known()
        return known

    def _yield(self, sequence: Sequence, drafter: str) -> Yield:
        yields = self._of(sequence).yields
        if drafter not in yields:
            skill = self._skills.setdefault(drafter, Skill())
            yields[drafter] = Yield(skill)
        return yields[drafter]

    def _asked(self) -> dict[str, tuple[int, int]]:
        return _asked(self._budgets)

    def _draft_seconds(self, asked: dict[str, tuple[int, int]]) -> float:
        return sum(
            self.draft_costs.seconds(drafter, sequences, longest)
            for drafter, (sequences, longest) in asked.items()
        )


def _asked(budgets: Seq[Budget | Choice]) -> dict[str, tuple[int, int]]:
    """(sequences, nodes of the longest draft) by drafter: most draft in lock-step."""
    asked: dict[str, tuple[int, int]] = {}
    for budget in budgets:
        if budget.max_nodes:
            sequences, longest = asked.get(budget.drafter, (0, 0))
            asked[budget.drafter] = sequences + 1, max(longest, budget.max_nodes)
    return asked

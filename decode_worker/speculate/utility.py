"""The automatic mode: speculate where tokens per second rise, by what was measured here.

plan: drafters whose asks cost microseconds are asked for all they have, less often where nothing
comes of it. improve: where their drafts promise less than a dear drafter (a head, a model), that
one is asked: the hybrid of SuffixDecoding (arXiv 2411.04975, section 4), with a price. trim: of all
nodes those stay that raise tokens per second (survival top-M over a measured cost curve). Around it
`Guard` measures whether what is believed is true.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import partial

from decode_worker.speculate.beliefs import Beliefs
from decode_worker.speculate.best_nodes import best_count, keep_best
from decode_worker.speculate.costs import StepCosts
from decode_worker.speculate.dear import LENGTHS, Asker, Order, best_order
from decode_worker.speculate.draft_costs import DraftCosts
from decode_worker.speculate.guard import Guard
from decode_worker.speculate.policy import NO_BUDGET, Budget, Candidate, StepLoad, StepReport
from decode_worker.speculate.trust import first_labels, labels_of
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence

MARGIN = 1.005  # believed utility below which a step stays plain: beliefs are noisy
CHEAP = 0.1  # tokens that an ask may cost and still be made on a guess
PROBES = 0.006  # share of the time that trying dear drafters may take
PROBE_NODES = 4
LONGEST = 16  # nodes of a dear draft
TYPICAL = 4  # nodes of a draft, when the price of one is read


class Utility:
    def __init__(self) -> None:
        self.costs = StepCosts()
        self.guard = Guard()
        self._drafting = DraftCosts()
        self.beliefs = Beliefs()
        self._purse: dict[str, float] = {}  # seconds to try dear drafters with
        self._step = 0
        self._plain_steps = 0
        # Of the step in flight.
        self._may = False  # else drafts are compared, not verified
        self._plain = 0.0  # seconds of the step without drafts
        self._row = 0.0  # price of verifying a node, in tokens
        self._prices: dict[str, float] = {}  # of an ask of each drafter, in tokens; 0: unknown
        self._asked: dict[str, tuple[int, int]] = {}  # sequences, nodes of the longest draft
        self._made_first: Seq[Draft] = ()  # before dear drafters were asked
        self._unverified: list[tuple[Candidate, Draft]] = []
        self._believed = 1.0

    # ---- the policy's verbs ---------------------------------------------------------------------

    def plan(self, load: StepLoad) -> list[Budget]:
        count, rows = len(load.candidates), len(load.candidates) + load.other_rows
        nobody = [NO_BUDGET] * count
        self._asked, self._made_first, self._unverified, self._may = {}, (), [], False
        if not count or self._plain_steps < 2:
            return nobody  # without a plain step nothing can be compared
        self._may = self.guard.allows(self.costs.knows(rows, load.kv_tokens))
        if not self._may and not self.guard.is_off:
            return nobody
        self._step += 1
        self._plain = self.costs.plain_seconds(rows, load.kv_tokens)
        self._row = _row_price(count, self.costs.ratios(rows, 8 * count))
        self._prices = self._price_asks(load.candidates)
        budgets = [self._cheap(candidate) for candidate in load.candidates]
        self._note(load.candidates, budgets)
        return budgets

    def improve(self, load: StepLoad, drafts: Seq[Draft]) -> list[Budget]:
        self._made_first = tuple(drafts)
        if not self._plain or (not self._may and not self.guard.is_off):
            return []
        made = [
            self._made(candidate, draft) if draft else 0.0
            for candidate, draft in zip(load.candidates, drafts, strict=True)
        ]
        self._learn_empty(load.candidates, drafts)
        dear = sorted(name for name, price in self._prices.items() if price > CHEAP)
        if not dear:
            return []
        budgets = [NO_BUDGET] * len(drafts)
        if self._may:
            orders = [(self._order(name, load.candidates, made), name) for name in dear]
            order, name = max(orders, key=lambda pair: pair[0].gain)
            for place in order.places:
                budgets[place] = Budget(name, order.nodes)
        for name in dear:
            self._probe(name, PROBES / len(dear), load.candidates, budgets)
        self._note(load.candidates, budgets)
        return budgets

    def trim(self, load: StepLoad, drafts: Seq[Draft]) -> list[Draft]:
        if not any(drafts):
            return list(drafts)
        drafts, others = self._better_ones(load.candidates, drafts)
        pairs = list(zip(load.candidates, drafts, strict=True))
        offer = self.beliefs.offer
        survivals = [offer(c.sequence, draft).survival if draft else [] for c, draft in pairs]
        keep = keep_best(survivals, self._count(load, survivals))
        kept = [
            self.beliefs.keep(candidate.sequence, draft, own)
            for (candidate, draft), own in zip(pairs, keep, strict=True)
        ]
        self._unverified = others + [
            pair for pair, left in zip(pairs, kept, strict=True) if pair[1] and not left
        ]
        return kept

    def observe(self, report: StepReport) -> None:
        nodes = sum(len(verdict.draft) for verdict in report.verdicts)
        rows = report.rows - nodes
        self.costs.learn(rows, nodes, report.kv_tokens, report.step_seconds)
        self._plain_steps += not nodes
        self.guard.counts(nodes)
        for name, seconds in report.draft_seconds.items():
            if name in self._asked:
                self._drafting.learn(name, *self._asked[name], seconds)
        if nodes:
            self._compare(report, rows)
            for verdict in report.verdicts:
                if verdict.draft:
                    labels = labels_of(verdict.draft, verdict.path)
                    self.beliefs.learn(verdict.sequence, verdict.draft.drafter, labels, self._step)
        if self._unverified:
            self._learn_unverified(report)

    def forget(self, sequence: Sequence) -> None:
        self.beliefs.forget(sequence)

    # ---- who is asked ---------------------------------------------------------------------------

    def _price_asks(self, candidates: Seq[Candidate]) -> dict[str, float]:
        """If everybody asked for long drafts."""
        names = {name for candidate in candidates for name in candidate.drafters}
        count = len(candidates)
        seconds = {name: self._drafting.seconds(name, count, LONGEST) for name in names}
        return {name: spent / self._plain for name, spent in seconds.items()}

    def _cheap(self, candidate: Candidate) -> Budget:
        """The cheap drafter that is due and brings most; one never asked comes first."""
        chosen, worth = "", -1.0
        for name in candidate.drafters if candidate.max_nodes else ():
            if self._prices[name] > CHEAP:
                continue
            track = self.beliefs.track(candidate.sequence, name)
            if track.due <= self._step and track.worth > worth:
                chosen, worth = name, track.worth
        if not chosen:
            return NO_BUDGET
        nodes = candidate.max_nodes if self._drafting.knows(chosen) else PROBE_NODES
        return Budget(chosen, min(nodes, candidate.max_nodes))

    def _order(self, name: str, candidates: Seq[Candidate], made: Seq[float]) -> Order:
        trust, drafting = self.beliefs.trust(name), self._drafting
        askers = []
        for place, candidate in enumerate(candidates):
            if name in candidate.drafters and candidate.max_nodes:
                factor = self.beliefs.track(candidate.sequence, name).factor
                ahead = trust.ahead(factor, min(candidate.max_nodes, LONGEST))
                askers.append(Asker(place, ahead, made[place], trust.breadth))
        batch = len(candidates) / self._plain
        price = partial(_price_of, drafting, name, batch)
        lengths = (LONGEST,) if trust.is_wide else LENGTHS
        return best_order(askers, self._row, price, 0.01 * len(candidates), lengths)

    def _probe(
        self, name: str, share: float, candidates: Seq[Candidate], budgets: list[Budget]
    ) -> None:
        """Tries a dear drafter that nobody asks, on one sequence, when enough time was saved up."""
        if any(budget.drafter == name for budget in budgets):
            return
        saved = self._purse.get(name, 0.0) + share * self._plain
        nodes = LONGEST if self.beliefs.trust(name).is_wide else PROBE_NODES
        price = self._drafting.seconds(name, 1, nodes)
        open_to = [
            place
            for place, c in enumerate(candidates)
            if name in c.drafters and c.max_nodes and not budgets[place].max_nodes
        ]
        if saved >= price and open_to:
            place = open_to[self._step % len(open_to)]
            budgets[place] = Budget(name, min(nodes, candidates[place].max_nodes))
            saved = 0.0
        self._purse[name] = min(saved, max(price, self._plain))

    def _note(self, candidates: Seq[Candidate], budgets: Seq[Budget]) -> None:
        for candidate, budget in zip(candidates, budgets, strict=True):
            if budget.max_nodes:
                self.beliefs.track(
                    candidate.sequence, budget.drafter
                ).asked_nodes = budget.max_nodes
                sequences, longest = self._asked.get(budget.drafter, (0, 0))
                self._asked[budget.drafter] = sequences + 1, max(longest, budget.max_nodes)

    # ---- what drafts are worth -------------------------------------------------------------------

    def _made(self, candidate: Candidate, draft: Draft) -> float:
        """Tokens that a cheap draft brings, after the price of its rows."""
        tokens = self._tokens_of(candidate, draft)
        self._asked_for(candidate, draft.drafter, tokens)
        return tokens

    def _tokens_of(self, candidate: Candidate, draft: Draft) -> float:
        row, offer = self._row, self.beliefs.offer(candidate.sequence, draft)
        return sum(s - row for s in offer.survival if s > row)

    def _better_ones(
        self, candidates: Seq[Candidate], drafts: Seq[Draft]
    ) -> tuple[list[Draft], list[tuple[Candidate, Draft]]]:
        """And the others. Who asks a dear drafter bets on its average; now both are there."""
        chosen, others = list(drafts), list[tuple[Candidate, Draft]]()
        for place, first in enumerate(self._made_first):
            candidate, second = candidates[place], chosen[place]
            if not first or first is second:
                continue
            if self._tokens_of(candidate, first) > self._tokens_of(candidate, second):
                chosen[place], first = first, second
            others.append((candidate, first))
        return chosen, others

    def _learn_empty(self, candidates: Seq[Candidate], drafts: Seq[Draft]) -> None:
        """Who was asked and had nothing waits."""
        for candidate, draft in zip(candidates, drafts, strict=True):
            if not draft:
                for name, track in self.beliefs.tracks(candidate.sequence).items():
                    if name in self._asked and track.due <= self._step:
                        self._asked_for(candidate, name, 0.0)

    def _asked_for(self, candidate: Candidate, name: str, tokens: float) -> None:
        price = 2 * self._prices[name]
        self.beliefs.worth(candidate.sequence, name, self._step, tokens, price)

    def _count(self, load: StepLoad, survivals: Seq[Seq[float]]) -> int:
        """Nodes that are verified; 0 while the guard wants it so."""
        ranked = sorted((s for own in survivals for s in own if s), reverse=True)
        sequences = len(load.candidates)
        ratios = self.costs.ratios(sequences + load.other_rows, len(ranked))
        spent = sum(self._drafting.seconds(name, *asked) for name, asked in self._asked.items())
        drafting = spent / self._plain
        seconds = [ratio + drafting for ratio in ratios[: len(ranked) + 1]]
        count = best_count(ranked, sequences, seconds)
        self._believed = (1 + sum(ranked[:count]) / sequences) / seconds[count]
        if not self._may:
            self.guard.hears(self._believed)
        return count if self._may and self._believed * (1 + drafting) >= MARGIN else 0

    # ---- what came of them -----------------------------------------------------------------------

    def _compare(self, report: StepReport, rows: int) -> None:
        costs = self.costs
        if not (costs.near_plain() and costs.knows(rows, report.kv_tokens)):
            return
        tokens = sum(1 + verdict.num_accepted for verdict in report.verdicts)
        seconds = report.step_seconds + sum(report.draft_seconds.values())
        plain = costs.plain_seconds(rows, report.kv_tokens) * costs.pace
        self.guard.observe(tokens / len(report.verdicts), seconds / plain, self._believed)

    def _learn_unverified(self, report: StepReport) -> None:
        """Drafts that were not worth a row: their first node can be compared all the same."""
        drawn = {verdict.sequence: verdict.new_tokens for verdict in report.verdicts}
        for candidate, draft in self._unverified:
            tokens = drawn.get(candidate.sequence)
            if tokens:
                labels = first_labels(draft, tokens[0])
                self.beliefs.learn(
                    candidate.sequence, draft.drafter, labels, self._step, verified=False
                )


def _row_price(sequences: int, ratios: Seq[float]) -> float:
    """Of verifying one node, in tokens, if there are some of each sequence: what the first few
    cost alone is mostly noise.
    """
    nodes = min(TYPICAL * sequences, len(ratios) - 1)
    return sequences * (ratios[nodes] - 1) / nodes


def _price_of(
    drafting: DraftCosts, name: str, tokens_per_second: float, sequences: int, nodes: int
) -> float:
    return drafting.seconds(name, sequences, nodes) * tokens_per_second

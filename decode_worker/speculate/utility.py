"""The automatic mode: speculate where tokens per second rise, by what was measured here.

plan: drafters whose asks cost microseconds are asked for all they have, less often where nothing
comes of it. improve: where their drafts promise less than a dear drafter (a head, a model), that
one is asked: the hybrid of SuffixDecoding (arXiv 2411.04975, section 4), with a price. trim: of all
nodes those stay that raise tokens per second (survival top-M over a measured cost curve). Around it
`Guard` measures whether what is believed is true.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq

from decode_worker.speculate.beliefs import Beliefs
from decode_worker.speculate.best_nodes import best_count, keep_best
from decode_worker.speculate.costs import HICCUP, StepCosts
from decode_worker.speculate.dear_drafters import LONGEST, PROBE_NODES, DearDrafters, Moment
from decode_worker.speculate.draft_costs import DraftCosts
from decode_worker.speculate.guard import Guard, Mode
from decode_worker.speculate.hindsight import Hindsight
from decode_worker.speculate.policy import NO_BUDGET, Budget, Candidate, StepLoad, StepReport
from decode_worker.speculate.trust import first_labels, labels_of
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence

MARGIN = 1.005  # believed utility below which a step stays plain: beliefs are noisy
CHEAP = 0.1  # tokens that an ask may cost and still be made on a guess
TYPICAL = 4  # nodes of a draft, when the price of one is read


class Utility:
    def __init__(self, *, may_sleep: bool = True) -> None:
        """may_sleep: drafters need not see what is decoded while they rest for long."""
        self._may_sleep = may_sleep
        self.costs = StepCosts()
        self.guard = Guard()
        self.beliefs = Beliefs()
        self._hindsight = Hindsight()
        self._drafting = DraftCosts()
        self._dear = DearDrafters(self.beliefs, self._drafting)
        self._step = 0
        self._deciding = 0.0  # seconds of a step in which somebody is asked
        # Of the step in flight.
        self._sequences = 0
        self._mode = Mode.PLAIN
        self._plain = 0.0  # seconds of the step without drafts
        self._row = 0.0  # price of verifying a node, in tokens
        self._prices: dict[str, float] = {}  # of an ask of each drafter, in tokens; 0: unknown
        self._asked: dict[str, tuple[int, int]] = {}  # sequences, nodes of the longest draft
        self._made_first: Seq[Draft] = ()  # before dear drafters were asked
        self._unverified: list[tuple[Candidate, Draft]] = []
        self._believed = 1.0
        self._promised = 0.0  # tokens, by the nodes that are verified

    # ---- the policy's verbs ---------------------------------------------------------------------

    def rests(self, sequences: int) -> bool:
        """Deciding that nobody drafts takes a hundredth of a step of many."""
        self._sequences, self._mode = sequences, Mode.PLAIN
        self._hindsight.passes()
        return self.guard.rests(sequences)

    def plan(self, load: StepLoad) -> list[Budget]:
        self._sequences = count = len(load.candidates)
        rows = count + load.other_rows
        self._asked, self._made_first, self._unverified = {}, (), []
        self._believed, self._promised, self._mode = 1.0, 0.0, Mode.PLAIN
        self._dear.nobody()
        if count and self.costs.can_compare(rows, load.kv_tokens):
            self._mode = self.guard.mode(count, self.costs.knows(rows, load.kv_tokens))
        if self._mode is Mode.PLAIN:
            return [NO_BUDGET] * count
        self._step += 1
        self._plain = self.costs.plain_seconds(rows, load.kv_tokens)
        self._row = _row_price(count, self.costs.ratios(rows, 8 * count))
        self._prices = self._price_asks(load.candidates)
        budgets = self._cheap_ones(load.candidates)
        self._note(load.candidates, budgets)
        return budgets

    def improve(self, load: StepLoad, drafts: Seq[Draft]) -> list[Budget]:
        if self._mode is Mode.PLAIN:
            return []
        self._made_first = tuple(drafts)
        made = [
            self._made(candidate, draft) if draft.tokens else self._made_nothing(candidate)
            for candidate, draft in zip(load.candidates, drafts, strict=True)
        ]
        dear = sorted(name for name, price in self._prices.items() if price > CHEAP)
        if not dear:
            return []
        now = Moment(self._step, self._plain, self._row)
        speculates = self._mode is Mode.SPECULATE
        budgets = self._dear.choose(dear, now, load.candidates, made, speculates=speculates)
        self._note(load.candidates, budgets)
        return budgets

    def trim(self, load: StepLoad, drafts: Seq[Draft]) -> list[Draft]:
        drafts, others = self._better_ones(load.candidates, drafts)
        there = [place for place, draft in enumerate(drafts) if draft.tokens]
        if not there:
            return drafts
        offers = [self.beliefs.offer(load.candidates[at].sequence, drafts[at]) for at in there]
        survivals = [offer.survival for offer in offers]
        keep = keep_best(survivals, self._count(load, survivals))
        self._unverified = others
        for place, offer, own in zip(there, offers, keep, strict=True):
            draft = drafts[place]
            drafts[place] = offer.kept(own)
            if not drafts[place].tokens:
                self._unverified.append((load.candidates[place], draft))
        return drafts

    def asleep(self) -> Collection[str]:
        if not self._may_sleep:
            return ()
        if self.guard.of(self._sequences).sleeps:
            return [name for name, price in self._prices.items() if price > CHEAP]
        return self._dear.asleep(self._sequences)

    def observe(self, report: StepReport) -> None:
        nodes = report.nodes
        rows = report.rows - nodes
        self.costs.learn(rows, nodes, report.kv_tokens, report.step_seconds)
        if self._asked:
            self._deciding += (report.decide_seconds - self._deciding) * 0.1
        if self._mode is Mode.LOOK:
            looking = report.seconds - report.step_seconds
            self.guard.of(len(report.verdicts)).looked(looking / self._plain)
        self.guard.counts(nodes)
        self._compare(report, rows, nodes)
        if nodes:
            self._hindsight.learn(self._promised, report.accepted)
        self._dear.pay(report)
        for name, seconds in report.draft_seconds.items():
            if name in self._asked:
                self._drafting.learn(name, *self._asked[name], seconds)
        if nodes:
            for verdict in report.verdicts:
                if verdict.draft.tokens:
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

    def _cheap_ones(self, candidates: Seq[Candidate]) -> list[Budget]:
        """Who was never asked is asked for one sequence: that may be dear."""
        unknown = {name for name in self._prices if not self._drafting.knows(name)}
        budgets, tried = list[Budget](), set[str]()
        for candidate in candidates:
            name = self._cheap(candidate, tried)
            nodes = candidate.max_nodes
            if name in unknown:
                tried.add(name)
                nodes = min(nodes, PROBE_NODES)
            budgets.append(Budget(name, nodes) if name else NO_BUDGET)
        return budgets

    def _cheap(self, candidate: Candidate, tried: Collection[str]) -> str:
        """The cheap drafter that is due and brings most; one never asked comes first."""
        chosen, worth = "", -1.0
        for name in candidate.drafters if candidate.max_nodes else ():
            if self._prices[name] > CHEAP or name in tried:
                continue
            track = self.beliefs.track(candidate.sequence, name)
            if track.due <= self._step and track.worth > worth:
                chosen, worth = name, track.worth
        return chosen

    def _note(self, candidates: Seq[Candidate], budgets: Seq[Budget]) -> None:
        track, asked = self.beliefs.track, self._asked
        for candidate, (name, nodes) in zip(candidates, budgets, strict=True):
            if nodes:
                track(candidate.sequence, name).asked_nodes = nodes
                sequences, longest = asked.get(name, (0, 0))
                asked[name] = sequences + 1, max(longest, nodes)

    # ---- what drafts are worth -------------------------------------------------------------------

    def _made(self, candidate: Candidate, draft: Draft) -> float:
        """Tokens that a cheap draft brings, after the price of its rows."""
        tokens = self._tokens_of(candidate, draft)
        self._asked_for(candidate, draft.drafter, tokens)
        return tokens

    def _made_nothing(self, candidate: Candidate) -> float:
        """Who was asked and had nothing waits."""
        for name, track in self.beliefs.tracks(candidate.sequence).items():
            if name in self._asked and track.due <= self._step:
                self._asked_for(candidate, name, 0.0)
        return 0.0

    def _tokens_of(self, candidate: Candidate, draft: Draft) -> float:
        row, offer = self._row, self.beliefs.offer(candidate.sequence, draft)
        return sum([s - row for s in offer.survival if s > row])

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

    def _asked_for(self, candidate: Candidate, name: str, tokens: float) -> None:
        price = 2 * (self._prices[name] + self._deciding / self._plain)
        self.beliefs.worth(candidate.sequence, name, self._step, tokens, price)

    def _count(self, load: StepLoad, survivals: Seq[Seq[float]]) -> int:
        """Nodes that are verified; 0 while the guard wants it so."""
        ranked = sorted([s for own in survivals for s in own if s], reverse=True)
        sequences = len(load.candidates)
        ratios = self.costs.ratios(sequences + load.other_rows, len(ranked))
        spent = sum(self._drafting.seconds(name, *asked) for name, asked in self._asked.items())
        drafting = (spent + self._deciding) / self._plain
        seconds = [ratio + drafting for ratio in ratios[: len(ranked) + 1]]
        factor = self._hindsight.factor
        count = best_count([s * factor for s in ranked], sequences, seconds)
        promised = sum(ranked[:count])
        self._believed = (1 + factor * promised / sequences) / seconds[count]
        if self._mode is Mode.LOOK:
            self.guard.of(sequences).hears(self._believed)
            return 0
        if self._believed * (1 + drafting) < MARGIN:
            return 0
        self._promised = promised
        return count

    # ---- what came of them -----------------------------------------------------------------------

    def _compare(self, report: StepReport, rows: int, nodes: int) -> None:
        """Only with a plain step near by: the machine has moods."""
        sequences, costs = len(report.verdicts), self.costs
        if self._mode is not Mode.SPECULATE or not sequences:
            return
        known = costs.near_plain() and costs.knows(rows, report.kv_tokens)
        plain = costs.plain_seconds(rows, report.kv_tokens) * costs.mean_pace
        drafting = (report.seconds - report.step_seconds) / plain
        if not nodes:
            self.guard.observe(1.0, 1 + drafting, self._believed, sequences)
        elif known:
            tokens = 1 + report.accepted / sequences
            most = HICCUP * (costs.ratios(rows, nodes)[nodes] + drafting)
            seconds = min(report.seconds / plain, most)
            self.guard.observe(tokens, seconds, self._believed, sequences)
        near = plain if known and nodes else 0.0
        self._dear.observe(report, near, costs.ratios(rows, nodes))

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

"""Drafters whose asks cost time: who asks them now, and whether that pays as it goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Seq
from functools import partial
from typing import NamedTuple

from decode_worker.speculate.beliefs import Beliefs
from decode_worker.speculate.breaks import BreaksByBatch
from decode_worker.speculate.dear import LENGTHS, Asker, Order, best_order
from decode_worker.speculate.draft_costs import DraftCosts
from decode_worker.speculate.policy import NO_BUDGET, Budget, Candidate, StepReport
from triptych.engine.sequence import Sequence

PROBES = 0.006  # share of the time that trying them may take
PROBE_NODES = 4
INTRODUCED = 3  # asks that are made of a new one without saving up for them,
FAIR = 0.6  # if one for a few nodes takes no longer than so many plain steps
LONGEST = 16  # nodes of a draft
FIRST_BREAK, LAST_BREAK = 32, 2048  # steps without one that did not pay


class Moment(NamedTuple):
    """A step, as far as prices go."""

    step: int
    plain: float  # seconds without drafts
    row: float  # price of verifying a node, in tokens


class DearDrafters:
    def __init__(self, beliefs: Beliefs, drafting: DraftCosts) -> None:
        self._beliefs = beliefs
        self._drafting = drafting
        self._purses: dict[str, float] = {}  # seconds to try them with; below 0: spent in advance
        self._breaks = defaultdict[str, BreaksByBatch](
            lambda: BreaksByBatch(FIRST_BREAK, LAST_BREAK)
        )
        # Of the step in flight.
        self._ordered = ""  # who drafts because that should pay
        self._promised = 1.0  # tokens by those of a step without it
        self._instead: dict[Sequence, float] = {}  # tokens of the drafts that it should better
        self._probed: tuple[str, ...] = ()

    def nobody(self) -> None:
        """Is asked in this step."""
        self._ordered, self._probed, self._instead = "", (), {}

    def asleep(self, sequences: int) -> list[str]:
        """Those that rest for long in a batch of this size."""
        return [name for name, breaks in self._breaks.items() if breaks.of(sequences).sleeps]

    def choose(
        self,
        names: Seq[str],
        now: Moment,
        candidates: Seq[Candidate],
        made: Seq[float],
        *,
        speculates: bool,
    ) -> list[Budget]:
        """A budget per candidate. made: tokens that it has a draft for already. Not `speculates`:
        drafts are looked at, not verified.
        """
        budgets = [NO_BUDGET] * len(candidates)
        if speculates:
            orders = [(self._order(name, now, candidates, made), name) for name in names]
            order, name = max(orders, key=lambda pair: pair[0].gain)
            for place in order.places:
                budgets[place] = Budget(name, order.nodes)
                self._instead[candidates[place].sequence] = made[place]
            if order.places:
                self._ordered, self._promised = name, 1 + order.gain / len(candidates)
        for name in names:
            if name != self._ordered:
                self._probe(name, PROBES / len(names), now, candidates, budgets)
        return budgets

    def pay(self, report: StepReport) -> None:
        """For those that were tried: what it took, the reading of a text included."""
        for name in self._probed:
            self._purses[name] -= report.draft_seconds.get(name, 0.0)

    def observe(self, report: StepReport, plain: float, ratios: Seq[float]) -> None:
        """plain: seconds of the step without drafts; 0: none is known that is near enough. ratios:
        how much longer nodes make it.
        """
        if not self._ordered or not plain:
            return
        sequences = len(report.verdicts)
        nodes = report.nodes
        ours = [v for v in report.verdicts if v.draft.drafter == self._ordered]
        fewer = nodes - sum(len(verdict.draft) for verdict in ours)
        seconds = report.seconds / plain
        drafting = report.draft_seconds.get(self._ordered, 0.0) / plain
        tokens = 1 + report.accepted / sequences
        gained = sum(v.num_accepted - self._instead.get(v.sequence, 0.0) for v in ours) / sequences
        without = max(seconds - drafting - ratios[nodes] + ratios[fewer], 0.5)
        utility = tokens, seconds * max(tokens - gained, 1.0) / without
        self._breaks[self._ordered].of(sequences).observe(*utility, self._promised)

    def _order(self, name: str, now: Moment, candidates: Seq[Candidate], made: Seq[float]) -> Order:
        """Nothing while it rests, but looks are taken at what it would promise."""
        rests = self._breaks[name].of(len(candidates))
        looks = rests.looks
        if rests.passes():
            return self._best_order(name, now, candidates, made)
        if looks:
            order = self._best_order(name, now, candidates, made)
            rests.hears(1 + order.gain / len(candidates))
        return Order()

    def _best_order(
        self, name: str, now: Moment, candidates: Seq[Candidate], made: Seq[float]
    ) -> Order:
        trust, beliefs = self._beliefs.trust(name), self._beliefs
        askers, tracks = [], []
        for place, candidate in enumerate(candidates):
            if name in candidate.drafters and candidate.max_nodes:
                track = beliefs.track(candidate.sequence, name)
                tracks.append(track)
                ahead = trust.ahead(track.factor, min(candidate.max_nodes, LONGEST))
                askers.append(Asker(place, ahead, made[place], trust.breadth))
        # Time is worth what the step would bring without: dear drafts for some hold up all.
        rate = 1 + sum(made) / len(candidates)
        price = partial(_price_of, self._drafting, name, rate * len(candidates) / now.plain)
        lengths = (LONGEST,) if trust.is_wide else LENGTHS
        # What an ask of many costs is guessed, and may be far off: one step at a time.
        most = 2 * max(1, self._drafting.most_at_once(name))
        margin = 0.01 * len(candidates)
        order = best_order(askers, rate * now.row, price, margin, lengths, most)
        for asker, track in zip(askers, tracks, strict=True):
            if asker.place not in order.places:
                track.untried()
        return order

    def _probe(
        self,
        name: str,
        share: float,
        now: Moment,
        candidates: Seq[Candidate],
        budgets: list[Budget],
    ) -> None:
        """Tries one that nobody asks, on one sequence, when enough time was saved up."""
        open_to = [
            place
            for place, c in enumerate(candidates)
            if name in c.drafters and c.max_nodes and not budgets[place].max_nodes
        ]
        nodes = self._introduction(name, now.plain)
        if open_to and nodes:
            # Always the same sequence: reading a text in is not what an ask costs.
            budgets[open_to[0]] = Budget(name, min(nodes, candidates[open_to[0]].max_nodes))
            return
        nodes = LONGEST if self._beliefs.trust(name).is_wide else PROBE_NODES
        price = self._drafting.seconds(name, 1, nodes)
        income = share * now.plain
        saved = min(self._purses.get(name, 0.0) + income, max(price, income))
        self._purses[name] = saved
        if saved >= price and open_to and name not in self.asleep(len(candidates)):
            place = open_to[now.step % len(open_to)]
            budgets[place] = Budget(name, min(nodes, candidates[place].max_nodes))
            self._probed = (*self._probed, name)

    def _introduction(self, name: str, plain: float) -> int:
        """Nodes that a new one is asked for at once; 0: it is known, or far too dear. First the
        price of a few, then what it makes of all the room there is: does it draft trees?
        """
        asked = self._drafting.count(name)
        if asked < 2:
            return PROBE_NODES
        fair = self._drafting.seconds(name, 1, PROBE_NODES) < FAIR * plain
        return LONGEST if asked < INTRODUCED and fair else 0


def _price_of(
    drafting: DraftCosts, name: str, tokens_per_second: float, sequences: int, nodes: int
) -> float:
    return drafting.seconds(name, sequences, nodes) * tokens_per_second

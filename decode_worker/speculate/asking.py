"""Who is asked for a draft: cheap drafters wherever it may bring something, dear ones if they pay.

An ask has a price in tokens: what else the batch would have drawn in that time. A cheap drafter is
asked for all it has, and what comes decides; a dear one's draft must be worth it before it is made.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from decode_worker.speculate.choosing import DRAFT_SIZES, NO_CHOICE, Choice, best_length, that_pay
from decode_worker.speculate.draft_costs import DraftCosts
from decode_worker.speculate.policy import NO_BUDGET, Budget, Candidate
from decode_worker.speculate.probing import Purse, Shadow, Turn
from decode_worker.speculate.yields import HORIZON, Skill, Yield
from triptych.engine.sequence import Sequence

CHEAP = 0.05  # tokens that an ask of everybody may cost each
FREE = 0.004  # so cheap that nobody is left out
WORTH = 3.0  # times its price that an ask must bring: what comes of it is looked at, too
PROBE_NODES = 4
INTRODUCTIONS = 3  # asks of one sequence before a drafter's price is believed
MARGIN = 0.02  # tokens per sequence that dear drafts must promise beyond their price


class Known:
    """What is known of one sequence."""

    __slots__ = ("shadow", "turns", "yields")

    def __init__(self) -> None:
        self.yields: dict[str, Yield] = {}
        self.turns: dict[str, Turn] = {}
        self.shadow: Shadow | None = None


class Asking:
    """Budgets of one step after the other, and what the drafters are like."""

    def __init__(self) -> None:
        self.costs = DraftCosts()
        self.step = 0
        self._known: dict[Sequence, Known] = {}
        self._skills: dict[str, Skill] = {}
        self._purses: dict[str, Purse] = {}
        # Of the step in flight.
        self._plain = 0.0
        self._budgets: list[Budget] = []
        self._asked: dict[str, tuple[int, int]] = {}  # sequences, nodes of the longest draft
        self._probes: dict[str, int] = {}  # sequences asked on trial, by dear drafter

    def nobody(self, count: int) -> list[Budget]:
        """A step without drafts."""
        self._asked, self._probes = {}, {}
        self._budgets = [NO_BUDGET] * count
        return self._budgets

    def ask_cheap(self, candidates: Seq[Candidate], plain: float, may: bool) -> list[Budget]:
        """`plain`: seconds of the step without drafts. May not: drafts are only for comparison."""
        budgets = self.nobody(len(candidates))
        self.step += 1
        self._plain = plain
        names = {name for candidate in candidates for name in candidate.drafters}
        prices = {name: self._price(name, len(candidates), HORIZON // 2) for name in names}
        known = {name for name in names if self.costs.count(name) >= INTRODUCTIONS}
        cheap = {name: price for name, price in prices.items() if name in known and price <= CHEAP}
        for at, candidate in enumerate(candidates):
            if candidate.max_nodes:
                name = self._cheap_drafter(candidate, cheap, may)
                if name:
                    budgets[at] = Budget(name, candidate.max_nodes)
        for name in sorted(names - known):
            self._introduce(name, candidates, budgets)
        self._budgets = budgets
        self._note(budgets)
        return budgets

    def learn_worths(self, candidates: Seq[Candidate], made: Seq[float]) -> None:
        """What the drafts that were asked for just now are believed to bring."""
        for candidate, budget, tokens in zip(candidates, self._budgets, made, strict=True):
            if budget.max_nodes:
                self.yield_of(candidate.sequence, budget.drafter).learn_worth(tokens)

    def _cheap_drafter(self, candidate: Candidate, cheap: dict[str, float], may: bool) -> str:
        known = self.of(candidate.sequence)
        serving, most = "", -1.0
        for name in candidate.drafters:
            if name in cheap:
                worth = self.yield_of(candidate.sequence, name).worth
                if worth > most:
                    serving, most = name, worth
        if not serving:
            return ""
        pays = may and (most > WORTH * cheap[serving] or cheap[serving] <= FREE)
        for name in candidate.drafters:
            if name not in cheap or (pays and name == serving):
                continue
            turn = known.turns.get(name)
            if turn is None:
                turn = known.turns[name] = Turn(self.step)
            if turn.due <= self.step:
                turn.asked(self.step, busy=pays)
                return name
        return serving if pays else ""

    def _introduce(self, name: str, candidates: Seq[Candidate], budgets: list[Budget]) -> None:
        """Asks for the first one who allows it: a second time its prompt is read in already."""
        for at, candidate in enumerate(candidates):
            if name in candidate.drafters and candidate.max_nodes and not budgets[at].max_nodes:
                nodes = PROBE_NODES
                if self.costs.knows(name):
                    is_cheap = self._price(name, 1, PROBE_NODES) <= CHEAP
                    nodes = candidate.max_nodes if is_cheap else 1
                budgets[at] = Budget(name, min(nodes, candidate.max_nodes))
                return

    def ask_dear(
        self, candidates: Seq[Candidate], made: Seq[float], row: float, may: bool
    ) -> list[Budget]:
        """Where a dear drafter promises more than is there. `made`: tokens that the drafts which
        are there bring each sequence; `row`: price of a node, in tokens.
        """
        count = len(candidates)
        names = sorted({name for candidate in candidates for name in candidate.drafters})
        prices = {
            name: [self._price(name, count, nodes) for nodes in DRAFT_SIZES]
            for name in names
            if self.costs.count(name) >= INTRODUCTIONS
            and self._price(name, count, HORIZON // 2) > CHEAP
        }
        if not prices:
            return []
        budgets = [NO_BUDGET] * count
        if may:
            choices = [
                self._dear_choice(candidate, prices, made[at], row)
                for at, candidate in enumerate(candidates)
            ]
            margin = MARGIN * count
            choices = that_pay(choices, made, lambda *asked: self._price(*asked) * count + margin)
            budgets = [Budget(choice.drafter, choice.max_nodes) for choice in choices]
        for name in prices:
            self._probe(name, len(prices), candidates, made, budgets)
        self._note(budgets)
        return budgets

    def _dear_choice(
        self, candidate: Candidate, prices: dict[str, list[float]], made: float, row: float
    ) -> Choice:
        best = NO_CHOICE
        for name in candidate.drafters:
            if name in prices:
                ahead = self.yield_of(candidate.sequence, name).ahead()
                choice = best_length(name, ahead, candidate.max_nodes, row, prices[name])
                best = choice if choice.gain > max(best.gain, made) else best
        return best

    def _probe(
        self,
        name: str,
        num_dear: int,
        candidates: Seq[Candidate],
        made: Seq[float],
        budgets: list[Budget],
    ) -> None:
        purse = self._purses.setdefault(name, Purse())
        purse.earn(self._plain, num_dear)
        due = [at for at, c in enumerate(candidates) if self._is_due(c, name, budgets[at])]
        if not due:
            return
        idle = [at for at in due if not made[at] and not budgets[at].max_nodes]
        due = idle or due[:1]  # one at a time of those that are served: it misses their tokens
        nodes = self._probe_nodes(name)
        missed = sum(made[at] for at in due) * self._plain / len(candidates)
        if not purse.allows(self.costs.seconds(name, len(due), nodes) + missed, self._plain):
            return
        purse.spend(missed)
        self._probes[name] = len(due)
        for at in due:
            candidate = candidates[at]
            self.of(candidate.sequence).turns[name].asked(self.step, busy=at not in idle)
            self.yield_of(candidate.sequence, name).refresh()
            budgets[at] = Budget(name, min(nodes, candidate.max_nodes))

    def _is_due(self, candidate: Candidate, name: str, budget: Budget) -> bool:
        if name not in candidate.drafters or not candidate.max_nodes or budget.drafter == name:
            return False
        return self.of(candidate.sequence).turns.setdefault(name, Turn(self.step)).due <= self.step

    def _probe_nodes(self, name: str) -> int:
        """Few where each costs much."""
        nodes = PROBE_NODES
        while nodes > 1 and self.costs.seconds(name, 1, nodes) > 0.05 * nodes * self._plain:
            nodes //= 2
        return nodes

    def _price(self, name: str, sequences: int, nodes: int) -> float:
        """Of one of so many asks, in tokens; 0 if the drafter never drafted."""
        return self.costs.seconds(name, sequences, nodes) / self._plain

    def _note(self, budgets: Seq[Budget]) -> None:
        for budget in budgets:
            if budget.max_nodes:
                sequences, longest = self._asked.get(budget.drafter, (0, 0))
                self._asked[budget.drafter] = sequences + 1, max(longest, budget.max_nodes)

    @property
    def drafting(self) -> float:
        """Time that this step's drafts take, in plain steps."""
        seconds = sum(self.costs.seconds(name, *asked) for name, asked in self._asked.items())
        return seconds / self._plain if self._plain else 0.0

    def learn_costs(self, draft_seconds: dict[str, float]) -> None:
        for name, seconds in draft_seconds.items():
            if name in self._asked:
                sequences, longest = self._asked[name]
                self.costs.learn(name, sequences, longest, seconds)
                if name in self._probes:
                    self._purses[name].spend(seconds * self._probes[name] / sequences)

    def answered_well(self, known: Known, name: str) -> None:
        if name in known.turns:
            known.turns[name].answered_well(self.step)

    def find(self, sequence: Sequence) -> Known | None:
        return self._known.get(sequence)

    def of(self, sequence: Sequence) -> Known:
        known = self._known.get(sequence)
        if known is None:
            known = self._known[sequence] = Known()
        return known

    def yield_of(self, sequence: Sequence, name: str) -> Yield:
        yields = self.of(sequence).yields
        if name not in yields:
            yields[name] = Yield(self._skills.setdefault(name, Skill()))
        return yields[name]

    def forget(self, sequence: Sequence) -> None:
        self._known.pop(sequence, None)

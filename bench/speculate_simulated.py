"""An engine that only pretends: true costs and true acceptance are known, so a policy is judged.

Policies get noisy seconds; what they achieved is counted in expectations, so that a few hundred
rounds tell a difference of a percent. Plain decoding is the yardstick: one token per sequence and
step at the plain cost of the same moment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from math import exp
from random import Random
from typing import NamedTuple

from decode_worker.speculate.policy import (
    NO_BUDGET,
    Budget,
    BudgetPolicy,
    Candidate,
    StepLoad,
    StepReport,
)
from triptych.drafters.drafter import Verdict
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.sequence import Sequence

NODES = (1, 2, 3, 4, 6, 8, 12, 16)  # lengths of which the best fixed one is taken
# Milliseconds by which rows make a step of one row longer; tiles of four.
ROWS_MS = ((1, 0.0), (5, 0.65), (16, 3.25), (32, 7.0), (64, 15.0), (128, 32.0), (1024, 250.0))


def step_seconds(sequences: int, other_rows: int, nodes: int) -> float:
    """Of a small model on two cores: 13 ms for one row, 31 ms for 32 sequences."""
    rows = sequences + other_rows + nodes
    tiled = rows if rows < 5 else -(-rows // 4) * 4
    at = min(bisect_right([r for r, _ in ROWS_MS], tiled), len(ROWS_MS) - 1)
    (left, low), (right, high) = ROWS_MS[at - 1], ROWS_MS[at]
    longer = low + (high - low) * (tiled - left) / (right - left)
    return (13.0 + longer + 0.33 * (sequences - 1)) / 1e3


@dataclass(frozen=True)
class SimulatedDrafter:
    name: str
    right: Callable[[int, int], float]  # (round, sequence): P(node right | parent right)
    seconds: Callable[[int, int], float]  # (sequences, nodes of each)
    offered: Callable[[int, int], float] = lambda at, which: 1.0  # P(any draft)
    decay: float = 1.0  # of `right` per depth
    told: float = 0.0  # > 0: tells a confidence: the truth, bent by this power

    def survival(self, at: int, which: int, nodes: int) -> list[float]:
        total, right, survival = 1.0, self.right(at, which), []
        for _ in range(nodes):
            total *= right
            survival.append(total)
            right *= self.decay
        return survival


@dataclass(frozen=True)
class World:
    drafters: tuple[SimulatedDrafter, ...]
    batch: Callable[[int], int]  # round: sequences that decode
    other_rows: Callable[[int], int] = lambda at: 0  # round: prompt rows
    noise: float = 0.1  # deviation of a step's seconds, relative
    moody: bool = True  # slow spells, a third longer, of seconds
    hidden: float = 0.0  # seconds per drafting sequence that no count of rows explains
    life: int = 10**9  # rounds after which a sequence ends and another begins
    seed: int = 0

    def plain_seconds(self, at: int) -> float:
        return step_seconds(self.batch(at), self.other_rows(at), 0)


class Round(NamedTuple):
    speedup: float  # expected tokens per second, by those of plain decoding
    plain_seconds: float  # that its tokens are worth
    seconds: float
    asked: tuple[Budget, ...]


def simulate(policy: BudgetPolicy, world: World, rounds: int) -> list[Round]:
    engine = _Engine(world)
    return [engine.step(policy, at) for at in range(rounds)]


def speedup(history: Seq[Round]) -> float:
    return sum(r.plain_seconds for r in history) / sum(r.seconds for r in history)


def best_fixed(world: World, at: int) -> float:
    """Speed-up of the best pair of one drafter and one length for all, at one moment; 1: none."""
    sequences, plain = world.batch(at), world.plain_seconds(at)
    best = 1.0
    for drafter in world.drafters:
        offered = [drafter.offered(at, which) for which in range(sequences)]
        for nodes in NODES:
            tokens = sum(
                share * sum(drafter.survival(at, which, nodes))
                for which, share in enumerate(offered)
            )
            drafting = drafter.seconds(sequences, nodes) + world.hidden * sequences
            rows = round(nodes * sum(offered))
            seconds = step_seconds(sequences, world.other_rows(at), rows) + drafting
            best = max(best, (1 + tokens / sequences) * plain / seconds)
    return best


class _Engine:
    def __init__(self, world: World) -> None:
        self._world = world
        self._random = Random(world.seed)
        self._by_name = {drafter.name: drafter for drafter in world.drafters}
        self._sequences: list[tuple[int, Sequence]] = []  # and when each began
        self._mood = 1.0

    def step(self, policy: BudgetPolicy, at: int) -> Round:
        world = self._world
        self._come_and_go(policy, at)
        sequences = [sequence for _, sequence in self._sequences]
        names = tuple(self._by_name)
        candidates = tuple(Candidate(sequence, 32, names) for sequence in sequences)
        kv_tokens = sum(len(sequence.tokens) + 200 for sequence in sequences)
        load = StepLoad(candidates, world.other_rows(at), kv_tokens)
        if policy.rests(len(sequences)):
            return self._plain_round(at)
        budgets = policy.plan(load)
        made = [self._draft(at, which, budget) for which, budget in enumerate(budgets)]
        better = policy.improve(load, made)
        for which, budget in enumerate(better):
            made[which] = self._draft(at, which, budget) or made[which]
        asked = [*budgets, *better]
        drafts = policy.trim(load, made)
        mood = self._next_mood()
        drafting = self._draft_seconds(asked)
        nodes = sum(map(len, drafts))
        true_step = step_seconds(len(sequences), world.other_rows(at), nodes)
        true_step += world.hidden * sum(1 for draft in drafts if draft)
        verdicts = tuple(map(self._verdict, sequences, drafts))
        policy.observe(
            StepReport(
                verdicts,
                len(sequences) + world.other_rows(at) + nodes,
                kv_tokens,
                {name: s * mood * self._noise() for name, s in drafting.items()},
                true_step * mood * self._noise(),
            )
        )
        tokens = 1 + sum(
            self._brought(at, which, verdict) for which, verdict in enumerate(verdicts)
        ) / len(sequences)
        worth, seconds = tokens * world.plain_seconds(at), true_step + sum(drafting.values())
        return Round(worth / seconds, worth * mood, seconds * mood, tuple(_served(budgets, better)))

    def _plain_round(self, at: int) -> Round:
        for _, sequence in self._sequences:
            sequence.tokens.append(len(sequence.tokens))
        seconds = self._world.plain_seconds(at) * self._next_mood()
        return Round(1.0, seconds, seconds, (NO_BUDGET,) * len(self._sequences))

    def _come_and_go(self, policy: BudgetPolicy, at: int) -> None:
        stay: list[tuple[int, Sequence]] = []
        for began, sequence in self._sequences:
            if at - began >= self._world.life or len(stay) >= self._world.batch(at):
                sequence.finished = True
                policy.forget(sequence)
            else:
                stay.append((began, sequence))
        while len(stay) < self._world.batch(at):
            stay.append((at, Sequence(f"{at}-{len(stay)}", [0], b"", 16)))
        self._sequences = stay

    def _draft(self, at: int, which: int, budget: Budget) -> Draft:
        """The true token at a position is the position itself, so drafts and shadows compare."""
        if not budget.max_nodes:
            return NO_DRAFT
        drafter, random = self._by_name[budget.drafter], self._random
        if random.random() >= drafter.offered(at, which):
            return NO_DRAFT
        position = len(self._sequences[which][1].tokens)
        tokens, confidence, right = [], [], drafter.right(at, which)
        for node in range(budget.max_nodes):
            chance = right
            if drafter.told:  # most nodes are nearly sure or nearly lost; `right` in the mean
                chance = 0.9 * (random.random() < right) + 0.1 * right
            tokens.append(position + node if random.random() < chance else -1)
            confidence.append(min(max(chance, 0.01), 0.99) ** (drafter.told or 1.0))
            right *= drafter.decay
        told = tuple(confidence) if drafter.told else ()
        return Draft(tuple(tokens), confidence=told, drafter=budget.drafter)

    def _verdict(self, sequence: Sequence, draft: Draft) -> Verdict:
        position, right = len(sequence.tokens), 0
        while right < len(draft) and draft.tokens[right] == position + right:
            right += 1
        new_tokens = tuple(range(position, position + right + 1))
        sequence.tokens.extend(new_tokens)
        return Verdict(sequence, draft, tuple(range(right)), new_tokens)

    def _brought(self, at: int, which: int, verdict: Verdict) -> float:
        """Tokens expected of a draft; those that came if nodes were kept by what it told."""
        if not verdict.draft:
            return 0.0
        drafter = self._by_name[verdict.draft.drafter]
        if drafter.told:
            return verdict.num_accepted
        return sum(drafter.survival(at, which, len(verdict.draft)))

    def _draft_seconds(self, budgets: Seq[Budget]) -> dict[str, float]:
        seconds = {}
        for name, drafter in self._by_name.items():
            nodes = [budget.max_nodes for budget in budgets if budget.drafter == name]
            if nodes:
                seconds[name] = drafter.seconds(len(nodes), max(nodes))
        return seconds

    def _next_mood(self) -> float:
        if self._world.moody and self._random.random() < 0.005:
            self._mood = 1.33 if self._mood == 1.0 else 1.0
        return self._mood

    def _noise(self) -> float:
        spike = 2.0 if self._random.random() < 0.01 else 1.0
        return exp(self._random.gauss(0, self._world.noise)) * spike if self._world.noise else 1.0


def _served(budgets: Seq[Budget], better: Seq[Budget]) -> list[Budget]:
    """Who was asked last, by sequence."""
    later = [*better, *[NO_BUDGET] * (len(budgets) - len(better))]
    return [new if new.max_nodes else old for old, new in zip(budgets, later, strict=True)]


def always(value: float) -> Callable[[int, int], float]:
    return lambda at, which: value


def flipping(before: float, after: float, every: int) -> Callable[[int, int], float]:
    return lambda at, which: after if at // every % 2 else before


ALWAYS = always(1.0)


def ngram(
    right: Callable[[int, int], float], offered: Callable[[int, int], float] = ALWAYS
) -> SimulatedDrafter:
    """Looks up: costs 40 µs per sequence, however long the draft."""
    return SimulatedDrafter("ngram", right, lambda n, k: 40e-6 * n, offered)


def head(right: Callable[[int, int], float], told: float = 0.0) -> SimulatedDrafter:
    """A layer on top: 1.5 ms per token, batched."""
    return SimulatedDrafter(
        "head", right, lambda n, k: (1.5e-3 + 40e-6 * (n - 1)) * k, decay=0.97, told=told
    )


def model(right: Callable[[int, int], float]) -> SimulatedDrafter:
    """A smaller model: 5 ms per token, batched."""
    return SimulatedDrafter("model", right, lambda n, k: (5e-3 + 0.2e-3 * (n - 1)) * k, decay=0.99)

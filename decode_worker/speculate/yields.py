"""How likely a draft's nodes are right, learned from the drafts that were verified.

Per drafter a logistic model of P(node right | parent right): a bias per depth, and, for drafters
that tell how sure they are, a slope for that (sigmoid(w · logit(confidence) + bias)).
Per sequence an offset, shrunk to the drafter's: texts differ more than depths do. Labels: nodes
whose parent is right; what lies below a wrong node was never judged.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, log

from triptych.engine.draft import ROOT, Draft

DEPTHS = 8  # with a bias of their own; deeper nodes share the last one
HORIZON = 32  # nodes that a plan looks ahead
FADE = 0.95  # of the evidence for an offset, per label
SURPRISE = 0.02  # a run of outcomes less likely than this means that the text has changed
FAINT = 0.02  # survival below which looking further is pointless
CERTAIN = 0.98  # a node so likely to be right teaches nothing by being right
FIRST_WORTH = 0.3  # tokens that a draft brings before anything is known


class Offset:
    """A number in log-odds by which one sequence is better or worse: Newton steps with fading."""

    __slots__ = ("_evidence", "_run", "_run_of", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self._evidence = 1.0  # the prior: a deviation of 1
        self._run = 1.0  # likelihood of the last labels, all of them `_run_of`
        self._run_of = 0.0

    def learn(self, label: float, believed: float) -> None:
        likelihood = believed if label else 1 - believed
        self._run = likelihood * (self._run if label == self._run_of else 1.0)
        self._run_of = label
        if self._run < SURPRISE:  # not noise: what was learned is of another text
            self._evidence, self._run = 0.7, 1.0
        self._evidence = self._evidence * FADE + believed * (1 - believed)
        step = (label - believed) / max(self._evidence, 0.3)
        self.value = min(max(self.value * 0.998 + max(-2.0, min(2.0, step)), -5.0), 5.0)


class Skill:
    """Of one drafter, over all sequences."""

    def __init__(self, prior: float = 0.55) -> None:
        self._blind = [log(prior / (1 - prior))] * DEPTHS  # without a look at confidences
        self._sure = [0.0] * DEPTHS
        self._slope = 1.0
        self._evidence = [2.0] * DEPTHS
        self._sure_evidence = [4.0] * DEPTHS
        self.worth = FIRST_WORTH  # as a sequence's, see `Yield`; what a new one starts with
        self.looks_ahead = False  # somebody plans before there is a draft

    def blind(self, depth: int, offset: float) -> float:
        return sigmoid(self._blind[min(depth, DEPTHS) - 1] + offset)

    def sure(self, depth: int, confidence: float, offset: float) -> float:
        bias = self._sure[min(depth, DEPTHS) - 1]
        return sigmoid(self._slope * logit(confidence) + bias + offset)

    def learn_blind(self, depth: int, label: float, believed: float) -> None:
        at = min(depth, DEPTHS) - 1
        self._evidence[at] = self._evidence[at] * 0.995 + believed * (1 - believed)
        self._blind[at] += (label - believed) / max(self._evidence[at], 2.0)

    def learn_sure(self, depth: int, confidence: float, label: float, believed: float) -> None:
        at, error = min(depth, DEPTHS) - 1, label - believed
        self._sure_evidence[at] = self._sure_evidence[at] * 0.998 + believed * (1 - believed)
        self._sure[at] += error / max(self._sure_evidence[at], 4.0)
        slope = self._slope + 0.02 * error * max(-4.0, min(4.0, logit(confidence)))
        self._slope = min(max(slope, 0.2), 2.0)


class Yield:
    """Of one drafter for one sequence."""

    __slots__ = ("_ahead", "_blind", "_skill", "_sure", "worth")

    def __init__(self, skill: Skill) -> None:
        self._skill = skill
        self._blind = Offset()
        self._sure = Offset()
        self.worth = skill.worth  # tokens that an ask brings, after the price of its rows
        self._ahead: tuple[float, ...] | None = None

    def ahead(self) -> tuple[float, ...]:
        """Survival by depth of the chain that it would draft: P(all up to here are right)."""
        if self._ahead is None:
            self._skill.looks_ahead = True
            self._ahead = self._look_ahead()
        return self._ahead

    def _look_ahead(self) -> tuple[float, ...]:
        survival, ahead, right = 1.0, [], 0.0
        for depth in range(1, HORIZON + 1):
            if depth <= DEPTHS:
                right = self._skill.blind(depth, self._blind.value)
            survival *= right
            if survival < FAINT and depth > 1:
                break
            ahead.append(survival)
        return tuple(ahead)

    def survival(self, draft: Draft) -> list[float]:
        """Of every node; never more than its parent's, and 0 below a faint one."""
        if draft.parents is None:
            return self._chain_survival(draft)
        survival: list[float] = []
        for node, depth in enumerate(draft.depths()):
            parent = draft.parent(node)
            above = 1.0 if parent == ROOT else survival[parent]
            survival.append(above * self._right(draft, node, depth))
        return survival

    def _chain_survival(self, draft: Draft) -> list[float]:
        survival, above, rights = [0.0] * len(draft), 1.0, dict[tuple[int, float], float]()
        for node, confidence in enumerate(draft.confidence or survival):
            key = min(node + 1, DEPTHS), confidence  # most nodes of a long copy are alike
            right = rights.get(key)
            if right is None:
                right = rights[key] = self._right(draft, node, node + 1)
            above *= right
            if above < FAINT:
                break
            survival[node] = above
        return survival

    def _right(self, draft: Draft, node: int, depth: int) -> float:
        if draft.confidence:
            return self._skill.sure(depth, draft.confidence[node], self._sure.value)
        return self._skill.blind(depth, self._blind.value)

    def learn(self, draft: Draft, labels: Iterable[tuple[int, int, float]]) -> None:
        """`labels`: (node, depth, 1 if right else 0) of the nodes that were judged."""
        blindly = self._skill.looks_ahead or not draft.confidence
        for node, depth, label in labels:
            if blindly:
                self._learn_blind(depth, label)
            if draft.confidence:
                self._learn_sure(depth, draft.confidence[node], label)
        if blindly:
            self._ahead = None

    def _learn_blind(self, depth: int, label: float) -> None:
        believed = self._skill.blind(depth, self._blind.value)
        if not (label and believed > CERTAIN):
            self._blind.learn(label, believed)
            self._skill.learn_blind(depth, label, believed)

    def _learn_sure(self, depth: int, confidence: float, label: float) -> None:
        believed = self._skill.sure(depth, confidence, self._sure.value)
        if not (label and believed > CERTAIN):
            self._sure.learn(label, believed)
            self._skill.learn_sure(depth, confidence, label, believed)

    def learn_worth(self, tokens: float) -> None:
        """It was asked, and what came of it is believed to bring so many."""
        self.worth += (tokens - self.worth) * 0.2
        self._skill.worth += (tokens - self._skill.worth) * 0.02

    def refresh(self) -> None:
        """The skill has moved on."""
        self._ahead = None


def labels_of(draft: Draft, path: tuple[int, ...]) -> list[tuple[int, int, float]]:
    """What a verdict says about the nodes of a draft whose `path` was right."""
    if draft.parents is None:
        labels = [(node, node + 1, 1.0) for node in path]
        if len(path) < len(draft):
            labels.append((len(path), len(path) + 1, 0.0))
        return labels
    right = {ROOT, *path}
    return [
        (node, depth, float(node in right))
        for node, depth in enumerate(draft.depths())
        if draft.parent(node) in right
    ]


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x)) if x > -30 else 0.0


def logit(p: float) -> float:
    p = min(max(p, 1e-3), 1 - 1e-3)
    return log(p / (1 - p))

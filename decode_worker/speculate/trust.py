"""How far a drafter's word can be trusted, learned from the drafts that were verified.

A drafter tells how likely each node is, and how many it has to offer; what became of such nodes
says more than the number itself (DSpark's confidence head does the same with a regression). Counts
fade, so that a change of text is followed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence as Seq
from itertools import compress
from typing import NamedTuple

from triptych.engine.draft import NO_DRAFT, ROOT, Draft

DEPTHS = 8  # told apart when looking ahead; deeper ones are like the last
PRIOR = 6.0  # labels; what less detailed counts say weighs so much
MEMORY = 400.0  # labels of a cell; older ones fade
FADE = MEMORY / (MEMORY + 1)
FAINT = 0.02  # survival below which a node is not looked at
_CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
_MIDDLES = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.93, 0.9)
_BLIND = len(_MIDDLES)  # the bin of drafters that do not tell
_SIZES = (2, 4, 7, 12)  # nodes that were offered


class Label(NamedTuple):
    """What became of a node whose parent was right."""

    node: int
    right: bool


class Count:
    """Right ones of those tried, with a memory."""

    __slots__ = ("right", "tried")

    def __init__(self) -> None:
        self.right = self.tried = 0.0

    def add(self, right: bool) -> None:
        if self.tried >= MEMORY:
            self.right *= FADE
            self.tried *= FADE
        self.right += right
        self.tried += 1.0

    def rate(self, prior: float) -> float:
        return (self.right + PRIOR * prior) / (self.tried + PRIOR)


class Offer:
    """A draft as it came, and what a trust makes of its nodes."""

    __slots__ = ("depths", "draft", "ended", "keys", "rates", "survival")

    def __init__(self, draft: Draft, asked: int) -> None:
        """`asked`: nodes that it could have had."""
        self.draft = draft
        self.ended = len(draft) < asked  # the drafter itself went no deeper
        self.depths: Seq[int] = (
            range(1, len(draft) + 1) if draft.parents is None else draft.depths()
        )
        size = bisect_right(_SIZES, len(draft)) << 2
        if draft.confidence:
            told = [bisect_right(_CONFIDENCES, sure) << 6 for sure in draft.confidence]
        else:
            told = [_BLIND << 6] * len(draft)
        self.keys = [
            bin_ | size | (depth if depth < 3 else 3)
            for bin_, depth in zip(told, self.depths, strict=True)
        ]
        self.rates: list[float] = []  # P(right | its parent is), of any sequence; 0 below a faint
        self.survival: list[float] = []  # P(all up to here are right); 0 below a faint node

    def kept(self, keep: Seq[bool]) -> Draft:
        """What is left of the draft, `Draft.kept`: if anything is, the offer is of that."""
        if all(keep):
            return self.draft
        left = self.draft.kept(keep) if any(keep) else NO_DRAFT
        if left.tokens:
            self._is_now(left, keep)
        return left

    def _is_now(self, draft: Draft, keep: Seq[bool]) -> None:
        deepest = max(self.depths)
        self.draft = draft
        self.keys = list(compress(self.keys, keep))
        self.rates = list(compress(self.rates, keep))
        self.depths = list(compress(self.depths, keep))
        self.ended = self.ended and max(self.depths, default=0) == deepest


class Trust:
    """In one drafter, over all sequences."""

    def __init__(self) -> None:
        self._bins = [Count() for _ in range(_BLIND + 1)]
        self._cells: dict[int, Count] = {}
        self._depths = [Count() for _ in range(DEPTHS)]
        self.breadth = 1.0  # nodes per level of what was verified
        self.is_wide = False  # it drafts trees
        self._known: dict[int, float] = {}  # rates, until something is learned

    def offer(self, draft: Draft, asked: int, factor: float) -> Offer:
        """`factor`: of the sequence, times P(right). A node survives at most as its parent does."""
        offer = Offer(draft, asked)
        self.is_wide = self.is_wide or draft.parents is not None
        survival, rates, known, parents = offer.survival, offer.rates, self._known, draft.parents
        above = 1.0
        for node, key in enumerate(offer.keys):
            if parents is not None:
                above = 1.0 if parents[node] == ROOT else survival[parents[node]]
            rate = known.get(key) or self._rate(key) if above else 0.0
            above *= min(rate * factor, 0.995)
            above = above if above >= FAINT else 0.0
            rates.append(rate)
            survival.append(above)
        return offer

    def ahead(self, factor: float, most: int) -> list[float]:
        """P(right up to there), by depth, of a draft of so many levels."""
        survival, above = [], 1.0
        for depth in range(1, most + 1):
            above *= min(self._depths[min(depth, DEPTHS) - 1].rate(0.6) * factor, 0.995)
            if above < FAINT:
                break
            survival.append(above)
        return survival

    def learn(self, offer: Offer, labels: Seq[Label], *, verified: bool = True) -> float:
        """Returns how many right ones it expected. Not `verified`: the labels are not all that one
        could know of the draft.
        """
        expected = 0.0
        levels: dict[int, bool] = {}  # whether the draft went on rightly there
        keys, depths, rates, cells = offer.keys, offer.depths, offer.rates, self._cells
        for node, right in labels:
            key, depth = keys[node], depths[node]
            expected += rates[node]
            levels[depth] = right or levels.get(depth, False)
            cell = cells.get(key)
            if cell is None:
                cell = cells[key] = Count()
            cell.add(right)
            self._bins[key >> 6].add(right)
        self._learn_levels(offer, levels, verified)
        self._known.clear()
        return expected

    def _learn_levels(self, offer: Offer, levels: dict[int, bool], verified: bool) -> None:
        """Where the draft had nothing behind what was right, by its own will, it missed a level."""
        deepest, reached = max(offer.depths, default=0), max(levels, default=0)
        if verified and levels.get(reached) and (offer.ended or reached < deepest):
            levels[reached + 1] = False
        for depth, right in levels.items():
            self._depths[min(depth, DEPTHS) - 1].add(right)
        if deepest:
            self.breadth += (len(offer.depths) / deepest - self.breadth) * 0.05

    def _rate(self, key: int) -> float:
        told = key >> 6
        prior = self._bins[told].rate(0.5 if told == _BLIND else _MIDDLES[told])
        cell = self._cells.get(key)
        rate = self._known[key] = prior if cell is None else cell.rate(prior)
        return rate


def labels_of(draft: Draft, path: Seq[int]) -> list[Label]:
    """What a verdict says about the nodes of a draft whose `path` was right."""
    if draft.parents is None:
        labels = [Label(node, True) for node in path]
        if len(path) < len(draft):
            labels.append(Label(len(path), False))
        return labels
    right = {ROOT, *path}
    nodes = range(len(draft))
    return [Label(node, node in right) for node in nodes if draft.parent(node) in right]


def first_labels(draft: Draft, token: int) -> list[Label]:
    """What the token that was drawn instead says about a draft that nobody verified."""
    if draft.parents is None:
        return [Label(0, draft.tokens[0] == token)]
    nodes = range(len(draft))
    return [Label(n, draft.tokens[n] == token) for n in nodes if draft.parents[n] == ROOT]

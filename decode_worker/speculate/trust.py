"""How far a drafter's word can be trusted, learned from the drafts that were verified.

A drafter tells how likely each node is, and how many it has to offer; what became of such nodes
says more than the number itself (DSpark's confidence head does the same with a regression). Counts
fade, so that a change of text is followed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence as Seq
from typing import NamedTuple

from triptych.engine.draft import ROOT, Draft

DEPTHS = 8  # told apart when looking ahead; deeper ones are like the last
PRIOR = 6.0  # labels; what less detailed counts say weighs so much
MEMORY = 400.0  # labels of a cell; older ones fade
FAINT = 0.02  # survival below which a node is not looked at
_CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
_MIDDLES = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.93, 0.9)
_BLIND = len(_MIDDLES)  # the bin of drafters that do not tell
_SIZES = (2, 4, 7, 12)  # nodes that were offered


class Label(NamedTuple):
    """What became of a node whose parent was right."""

    node: int
    depth: int
    right: bool


class Count:
    """Right ones of those tried, with a memory."""

    __slots__ = ("right", "tried")

    def __init__(self) -> None:
        self.right = self.tried = 0.0

    def add(self, right: bool) -> None:
        if self.tried >= MEMORY:
            self.right *= MEMORY / (MEMORY + 1)
            self.tried *= MEMORY / (MEMORY + 1)
        self.right += right
        self.tried += 1.0

    def rate(self, prior: float) -> float:
        return (self.right + PRIOR * prior) / (self.tried + PRIOR)


class Trust:
    """In one drafter, over all sequences."""

    def __init__(self) -> None:
        self._bins = [Count() for _ in range(_BLIND + 1)]
        self._cells: dict[tuple[int, int, int], Count] = {}
        self._depths = [Count() for _ in range(DEPTHS)]
        self._rates: dict[tuple[int, int, int], float] = {}  # answers, until something is learned

    def survival(self, draft: Draft, factor: float) -> list[float]:
        """P(all up to here are right) of every node; `factor`: of the sequence, times P(right).
        Never more than its parent's; 0 below a faint one.
        """
        size = bisect_right(_SIZES, len(draft))
        survival: list[float] = []
        depths = range(1, len(draft) + 1) if draft.parents is None else draft.depths()
        for node, depth in enumerate(depths):
            parent = draft.parent(node)
            above = 1.0 if parent == ROOT else survival[parent]
            if above >= FAINT:
                right = self._rate((_bin(draft, node), size, min(depth, 3)))
                above *= min(right * factor, 0.995)
            survival.append(above if above >= FAINT else 0.0)
        return survival

    def ahead(self, factor: float, most: int) -> list[float]:
        """The same for the chain that it would draft, by depth."""
        survival, above = [], 1.0
        for depth in range(1, most + 1):
            above *= min(self._depths[min(depth, DEPTHS) - 1].rate(0.6) * factor, 0.995)
            if above < FAINT:
                break
            survival.append(above)
        return survival

    def learn(self, draft: Draft, offered: int, labels: Seq[Label]) -> float:
        """`offered`: nodes before any were cut off. Returns how many right ones it expected."""
        size, expected = bisect_right(_SIZES, offered), 0.0
        for node, depth, right in labels:
            key = _bin(draft, node), size, min(depth, 3)
            expected += self._rate(key)
            self._bins[key[0]].add(right)
            self._cells.setdefault(key, Count()).add(right)
            self._depths[min(depth, DEPTHS) - 1].add(right)
        self._rates.clear()
        return expected

    def _rate(self, key: tuple[int, int, int]) -> float:
        rate = self._rates.get(key)
        if rate is None:
            told = key[0]
            prior = self._bins[told].rate(0.5 if told == _BLIND else _MIDDLES[told])
            cell = self._cells.get(key)
            rate = self._rates[key] = prior if cell is None else cell.rate(prior)
        return rate


def labels_of(draft: Draft, path: Seq[int]) -> list[Label]:
    """What a verdict says about the nodes of a draft whose `path` was right."""
    if draft.parents is None:
        labels = [Label(node, node + 1, True) for node in path]
        if len(path) < len(draft):
            labels.append(Label(len(path), len(path) + 1, False))
        return labels
    right = {ROOT, *path}
    return [
        Label(node, depth, node in right)
        for node, depth in enumerate(draft.depths())
        if draft.parent(node) in right
    ]


def _bin(draft: Draft, node: int) -> int:
    if not draft.confidence:
        return _BLIND
    return bisect_right(_CONFIDENCES, draft.confidence[node])

"""Tokens that may follow a sequence, not verified yet."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

ROOT = -1  # parent of the nodes that follow the sequence's last token


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of tokens whose root is the last token of a sequence; most are chains.

    Whoever made it, a node is right iff it is the token that plain decoding draws behind its path.
    So nothing in here can change an answer.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...] | None = None  # parents[i] < i, or ROOT; None: a chain
    # Per node P(right | its parent is right) as the drafter sees it; empty: it does not know.
    confidence: tuple[float, ...] = ()
    drafter: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    def parent(self, node: int) -> int:
        return node - 1 if self.parents is None else self.parents[node]

    def depths(self) -> list[int]:
        """Of every node; children of the root have depth 1."""
        depths: list[int] = []
        for node in range(len(self.tokens)):
            parent = self.parent(node)
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return depths

    def path(self, node: int) -> list[int]:
        """Nodes from a child of the root to `node`; [] for ROOT."""
        path = []
        while node != ROOT:
            path.append(node)
            node = self.parent(node)
        return path[::-1]

    def kept(self, keep: Seq[bool]) -> Draft:
        """Without the nodes that `keep` leaves out; with a node everything below it goes."""
        place: dict[int, int] = {ROOT: ROOT}
        for node in range(len(self.tokens)):
            if keep[node] and self.parent(node) in place:
                place[node] = len(place) - 1
        nodes = list(place)[1:]
        if len(nodes) == len(self.tokens):
            return self
        parents = None if self.parents is None else tuple(place[self.parent(n)] for n in nodes)
        return replace(
            self,
            tokens=tuple(self.tokens[node] for node in nodes),
            parents=parents,
            confidence=tuple(self.confidence[node] for node in nodes) if self.confidence else (),
        )

    def first(self, count: int) -> Draft:
        return self.kept([node < count for node in range(len(self.tokens))])


NO_DRAFT = Draft(())

"""Tokens that may follow a sequence, not verified yet."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from torch import Tensor

ROOT = -1  # parent of the nodes that follow the sequence's last token


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """The distribution that a node was drawn from; whatever was drawn from is what is stated.

    A sibling that was drawn without replacement was drawn from the law without its elder siblings,
    renormalised. A law that was cut to its likely tokens is the cut one, renormalised.
    """

    ids: Tensor  # int32 [S], distinct
    probs: Tensor  # float32 [S], their sum is 1


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of tokens whose root is the last token of a sequence; most are chains.

    Whoever made it, a node is right iff it is the token that plain decoding draws behind its path.
    So nothing in here can change an answer. (Rules that are lossless in law only judge it by `laws`
    and chance: `decode_worker.speculate.acceptance`.)
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...] | None = None  # parents[i] < i, or ROOT; None: a chain
    # Per node P(right | its parent is right) as the drafter sees it; empty: it does not know.
    confidence: tuple[float, ...] = ()
    # Per node what it was drawn from, siblings in the order of their draws; empty: whoever drafted
    # has no law (fixed text) or does not tell. Only for nodes that were drawn with noise of their
    # own (`triptych_kernels.coins`), all of which are here: none was left out, and none was added,
    # because of what was drawn.
    laws: tuple[Law, ...] = ()
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
        """Without the nodes that `keep` leaves out; with a node everything below it goes.

        And without laws, even if all stay: who chooses nodes has seen what was drawn, and of those
        that such a choice passes the law is another one.
        """
        if self.parents is None:  # most are, and this is on every step's way
            count = next((node for node, kept in enumerate(keep) if not kept), len(self))
            tokens, confidence = self.tokens[:count], self.confidence[:count]
            return Draft(tokens, confidence=confidence, drafter=self.drafter)
        left = self._without(keep)
        return replace(left, laws=()) if left.laws else left

    def first(self, count: int) -> Draft:
        """At most `count` nodes, a number that what was drawn has no influence on; with laws."""
        return self._without([node < count for node in range(len(self.tokens))])

    def _without(self, keep: Seq[bool]) -> Draft:
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
            laws=tuple(self.laws[node] for node in nodes) if self.laws else (),
        )


NO_DRAFT = Draft(())

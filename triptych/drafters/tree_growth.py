"""How a draft grows node by node, whoever guesses: the likeliest branches first.

Dynamic draft trees (EAGLE-2, arXiv 2406.16858, section 4.1): level by level the likeliest nodes are
expanded, and of all that were found the best ones stay. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from triptych.engine.draft import ROOT, Draft


@dataclass(frozen=True, slots=True)
class Growth:
    """What a draft may become."""

    width: int = 1  # children of a node; 1: a chain
    expanded: int = 1  # nodes of a level whose children are looked for
    min_prob: float = 0.1  # of a node's path: what is less likely is not worth a row
    min_level: float = 0.0  # P(a level's children are asked for): less is not worth a pass


@dataclass(slots=True)
class GrowingTree:
    """Nodes in the order in which they were found, parents first."""

    growth: Growth
    max_nodes: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    reach: list[float] = field(default_factory=list)  # P(the whole path is right)
    frontier: list[int] = field(default_factory=lambda: [ROOT])  # to be expanded next

    def expand(self, children: list[list[tuple[int, float]]]) -> None:
        """children: of each node of the frontier its (token, P(right | node right)), best first.
        Chooses the next frontier; it is empty when the draft is complete.
        """
        found = []
        for node, guesses in zip(self.frontier, children, strict=True):
            before = 1.0 if node == ROOT else self.reach[node]
            found += [(before * p, p, token, node) for token, p in guesses]
        found = [guess for guess in found if guess[0] >= self.growth.min_prob]
        found.sort(key=lambda guess: -guess[0])
        first = len(self.tokens)
        for reach, p, token, node in found[: self.max_nodes]:
            self.tokens.append(token)
            self.parents.append(node)
            self.confidence.append(p)
            self.reach.append(reach)
        grown = range(first, len(self.tokens))
        bar = self._bar()
        likely = [node for node in grown if self.reach[node] > bar]
        self.frontier = likely[: self.growth.expanded]
        unlikely = sum(self.reach[node] for node in self.frontier) < self.growth.min_level
        if unlikely or len(self.upper()) > self.max_nodes:
            self.frontier = []

    def _bar(self) -> float:
        """What a node's children must beat: the draft is full of likelier nodes already."""
        if len(self.tokens) < self.max_nodes:
            return 0.0
        return sorted(self.reach, reverse=True)[self.max_nodes - 1]

    def path(self, node: int) -> tuple[int, ...]:
        """Tokens from below the root to `node`."""
        tokens = []
        while node != ROOT:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tuple(reversed(tokens))

    def upper(self) -> list[int]:
        """The frontier and all that it stands on, in order: what must be computed to expand it."""
        nodes = set[int]()
        for node in self.frontier:
            while node != ROOT and node not in nodes:
                nodes.add(node)
                node = self.parents[node]
        return sorted(nodes)

    def part(self, nodes: list[int]) -> Draft:
        """These nodes alone; with each its parent is among them."""
        place = {ROOT: ROOT} | {node: index for index, node in enumerate(nodes)}
        parents = [place[self.parents[node]] for node in nodes]
        return Draft(tuple(self.tokens[node] for node in nodes), self._shape(parents))

    def draft(self, drafter: str) -> Draft:
        """The best nodes. A child is never likelier than its parent, which stays with it."""
        order = sorted(range(len(self.tokens)), key=lambda node: (-self.reach[node], node))
        kept = sorted(order[: self.max_nodes])
        confidence = tuple(self.confidence[node] for node in kept)
        return replace(self.part(kept), confidence=confidence, drafter=drafter)

    @staticmethod
    def _shape(parents: list[int]) -> tuple[int, ...] | None:
        return None if parents == list(range(-1, len(parents) - 1)) else tuple(parents)

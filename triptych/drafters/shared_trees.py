"""Suffix trees of earlier answers: one per problem, and one per tenant for what has no problem.

A tree per problem beats one for everything (DAS, arXiv 2511.13841). Tenants share nothing, or one
could read another's text in the time its own takes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from triptych.drafters.drafter import Hints
from triptych_kernels.suffix_tree import SuffixTree


class SharedTrees:
    """Keeps `total_tokens` of text; each tree also has its own window, see `make_tree`.

    Beyond that, the tenant that holds most loses the tree it has not used for longest: one tenant's
    flood costs its own history first.
    """

    def __init__(self, make_tree: Callable[[], SuffixTree], total_tokens: int) -> None:
        self._make_tree = make_tree
        self._total_tokens = total_tokens
        # By tenant and problem, least recently used problem first.
        self._trees: dict[str, OrderedDict[str, SuffixTree]] = {}
        self._held: dict[str, int] = {}  # tokens, by tenant
        self.num_tokens = 0

    @property
    def num_bytes(self) -> int:
        return sum(tree.num_bytes for trees in self._trees.values() for tree in trees.values())

    def find(self, hints: Hints) -> SuffixTree | None:
        trees = self._trees.get(hints.tenant)
        if trees is None or hints.problem_id not in trees:
            return None
        trees.move_to_end(hints.problem_id)
        return trees[hints.problem_id]

    def add(self, hints: Hints, context: Sequence[int], tokens: Sequence[int]) -> None:
        """Part of an answer, and the tokens before it."""
        tree = self.find(hints)
        if tree is None:
            tree = self._make_tree()
            self._trees.setdefault(hints.tenant, OrderedDict())[hints.problem_id] = tree
        before = tree.num_tokens
        tree.start(context)
        tree.push(tokens)
        self._hold(hints.tenant, tree.num_tokens - before)
        while self.num_tokens > self._total_tokens and self._drop_tree(tree):
            pass

    def _drop_tree(self, newest: SuffixTree) -> bool:
        """False if there is none but the newest."""
        for tenant in sorted(self._held, key=self._held.__getitem__, reverse=True):
            trees = self._trees[tenant]
            problem, tree = next(iter(trees.items()))
            if tree is newest:
                continue
            del trees[problem]
            self._hold(tenant, -tree.num_tokens)
            if not trees:
                del self._trees[tenant], self._held[tenant]
            return True
        return False

    def _hold(self, tenant: str, more: int) -> None:
        self._held[tenant] = self._held.get(tenant, 0) + more
        self.num_tokens += more

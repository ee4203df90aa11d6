"""SuffixDecoding (arXiv 2411.04975): continues the text as it went on before, as far as the counts
say that it will; in this sequence, or in earlier answers for the same tenant and problem.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from triptych.drafters.drafter import Ask, Hints, Verdict
from triptych.drafters.shared_trees import SharedTrees
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.sequence import Sequence
from triptych_kernels.cpu.suffix_tree import MakeTree, best_suffix_tree, propose_all
from triptych_kernels.suffix_tree import (
    DEPTH,
    NO_GUESS,
    Guess,
    Limits,
    Query,
    SuffixTree,
    Window,
)


@dataclass(frozen=True, slots=True)
class SuffixOptions:
    """Memory: some 30 to 100 bytes per token kept."""

    depth: int = DEPTH  # tokens of context that are told apart
    factor: float = 1.0  # a match of m tokens earns m · factor + offset nodes
    offset: float = 0.0
    min_prob: float = 0.1  # of a drafted path
    tree: bool = False  # also draft less likely branches
    local: Window = Window(max_tokens=1 << 17, segment_tokens=1 << 13)  # of each sequence
    shared: Window = Window(max_tokens=1 << 18, segment_tokens=1 << 14)  # of each shared tree
    total_shared_tokens: int = 1 << 21
    # Indexed in one call of `propose`, all sequences together: some 20 ms. The rest of a long
    # prompt follows in the next ones, so that it never holds up the step.
    catch_up_tokens: int = 1 << 14
    # Samples of one problem see what the others have written, this many tokens at a time.
    share_every: int = 64


@dataclass(slots=True)
class _State:
    hints: Hints
    num_shared: int  # tokens that the shared tree has, or is not meant to have
    tree: SuffixTree | None = None  # made when first asked for
    num_indexed: int = 0


class SuffixDrafter:
    """A tree for each sequence, which wins ties, and the shared ones."""

    name = "suffix"

    def __init__(
        self, options: SuffixOptions = SuffixOptions(), make_tree: MakeTree | None = None
    ) -> None:
        assert options.total_shared_tokens >= options.shared.max_tokens, "one shared tree fits"
        assert 0.0 < options.min_prob <= 1.0, "else a draft has no end to its branches"
        self._options = options
        self._make_tree = make_tree or best_suffix_tree()
        self._states: dict[Sequence, _State] = {}
        self.shared = SharedTrees(
            lambda: self._make_tree(options.depth, options.shared), options.total_shared_tokens
        )

    def begin(self, sequence: Sequence, hints: Hints) -> None:
        self._states[sequence] = _State(hints, sequence.num_prompt)

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        drafts = [NO_DRAFT] * len(asks)
        room = self._options.catch_up_tokens
        places, queries = [], []
        for place, (sequence, max_nodes) in enumerate(asks):
            state = self._states.get(sequence)
            if state is None:
                continue
            missing = len(sequence.tokens) - state.num_indexed
            most = min(room, missing)
            room -= most
            if most < missing:  # its tree does not end where the sequence does
                self._index(state, sequence.tokens, most)
                drafts[place] = self._draft(state, sequence.tokens, max_nodes)
                continue
            queries.append(self._query(state, sequence.tokens, max_nodes))
            places.append(place)
        options = self._options
        limits = Limits(0, options.factor, options.offset, options.min_prob, options.tree)
        for place, guess in zip(places, propose_all(queries, limits), strict=True):
            drafts[place] = self._as_draft(guess)
        return drafts

    def _query(self, state: _State, tokens: list[int], max_nodes: int) -> Query:
        """To be answered, or `num_indexed` is not true."""
        tree = self._tree_of(state)
        added, state.num_indexed = tokens[state.num_indexed :], len(tokens)
        shared = self.shared.find(state.hints)
        trees = (tree,) if shared is None else (tree, shared)
        return Query(trees, added, tokens[-self._options.depth :], max_nodes)

    def observe(self, verdicts: Seq[Verdict]) -> None:
        for sequence in (verdict.sequence for verdict in verdicts):
            state = self._states.get(sequence)
            if state is None or not state.hints.problem_id:
                continue
            if len(sequence.tokens) - state.num_shared >= self._options.share_every:
                self._share(state, sequence.tokens)

    def end(self, sequence: Sequence) -> None:
        state = self._states.pop(sequence, None)
        if state is not None:
            self._share(state, sequence.tokens)

    def _tree_of(self, state: _State) -> SuffixTree:
        if state.tree is None:
            state.tree = self._make_tree(self._options.depth, self._options.local)
            state.tree.start()
        return state.tree

    def _index(self, state: _State, tokens: list[int], most: int) -> None:
        """Takes in what the sequence has grown by, at most so many tokens."""
        added = tokens[state.num_indexed : state.num_indexed + most]
        self._tree_of(state).push(added)
        state.num_indexed += len(added)

    def _share(self, state: _State, tokens: list[int]) -> None:
        begin, state.num_shared = state.num_shared, len(tokens)
        if begin < len(tokens):
            context = tokens[max(0, begin - self._options.depth) : begin]
            self.shared.add(state.hints, context, tokens[begin:])

    def _draft(self, state: _State, tokens: list[int], max_nodes: int) -> Draft:
        options = self._options
        limits = Limits(max_nodes, options.factor, options.offset, options.min_prob, options.tree)
        pattern = tokens[-options.depth :]
        best = NO_GUESS
        for tree in (state.tree, self.shared.find(state.hints)):
            if tree is not None:
                guess = tree.propose(pattern, limits)
                best = guess if guess.score > best.score else best
        return self._as_draft(best)

    def _as_draft(self, guess: Guess) -> Draft:
        if not guess.tokens:
            return NO_DRAFT
        is_chain = guess.parents == list(range(-1, len(guess.tokens) - 1))
        return Draft(
            tokens=tuple(guess.tokens),
            parents=None if is_chain else tuple(guess.parents),
            confidence=tuple(guess.probabilities),
            drafter=self.name,
        )

"""What followed which context how often, and the drafts that come of it.

Counts are those of SuffixDecoding's suffix tree (arXiv 2411.04975, section 4), kept for a window of
the newest text (DAS, arXiv 2511.13841): every context of 1 to `depth` tokens, with the tokens that
followed it. The class here is written to be read; `triptych_kernels.cpu.suffix_tree` is the one
that is fast, and gives the same drafts and scores to the bit.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

ROOT = -1  # parent of the nodes that follow the pattern
BORDER = -1  # stands in the text before each segment; no token
DEPTH = 24  # tokens


class Limits(NamedTuple):
    """How far a draft goes. A match of m tokens earns ⌊m · factor + offset⌋ nodes."""

    max_nodes: int
    factor: float = 1.0
    offset: float = 0.0
    min_prob: float = 0.1  # in (0, 1]; of a whole path, not of its last step
    tree: bool = False  # False: the likeliest token of each step only


class Guess(NamedTuple):
    """A draft; parents stand before their children."""

    tokens: list[int]
    parents: list[int]
    probabilities: list[float]  # of a node given its parent
    score: float  # tokens expected to be right: the sum of P(path) over the nodes


NO_GUESS = Guess([], [], [], 0.0)


class Window(NamedTuple):
    """How much text a tree keeps: at most max_tokens, dropped by the segment, oldest first."""

    max_tokens: int = 1 << 17
    segment_tokens: int = 1 << 13  # longer texts are cut here, their counts are not


WINDOW = Window()


class SuffixTree(Protocol):
    """Counts over one window of text."""

    def start(self, context: Sequence[int] = ()) -> None:
        """A new text: nothing before it counts as its context but the end of `context`."""

    def push(self, tokens: Sequence[int]) -> None:
        """Lengthens the text that was started last."""

    def propose(self, pattern: Sequence[int], limits: Limits) -> Guess:
        """What may follow text that ends with `pattern`."""

    @property
    def num_tokens(self) -> int:
        """Of text kept, borders and contexts included."""

    @property
    def num_bytes(self) -> int:
        """Of memory taken."""


class Query(NamedTuple):
    """What may follow one sequence? The first tree holds its text and is lengthened by `added`,
    which brings it to the sequence's end; of equal guesses the first tree's is taken.
    """

    trees: tuple[SuffixTree, ...]
    added: Sequence[int]
    end: Sequence[int]  # the sequence's last tokens, `depth` or more if there are
    max_nodes: int


def answer_all(queries: Sequence[Query], limits: Limits) -> list[Guess]:
    """A guess per query, in order; `limits.max_nodes` is the queries' own."""
    guesses = []
    for query in queries:
        query.trees[0].push(query.added)
        best = NO_GUESS
        for tree in query.trees:
            guess = tree.propose(query.end, limits._replace(max_nodes=query.max_nodes))
            best = guess if guess.score > best.score else best
        guesses.append(best)
    return guesses


@dataclass(slots=True)
class _Follower:
    count: int = 0
    last: int = 0  # position of the newest occurrence


@dataclass(slots=True)
class _Context:
    """One context that was followed by something."""

    count: int = 0
    last: int = 0  # position of what followed it last
    followers: dict[int, _Follower] = field(default_factory=dict)  # by token


class _Segment(NamedTuple):
    begin: int  # position of its border
    first: int  # of its first counted token


class _Step(NamedTuple):
    """A node that may be drafted; orders by probability, then by age."""

    minus_p: float  # of the path
    order: int
    token: int
    probability: float
    parent: int
    copied: int  # position of the token if its context occurs once only, else -1


class PythonSuffixTree:
    """The truth. Some kilobytes per token of text: for short texts and for tests."""

    def __init__(self, depth: int = DEPTH, window: Window = WINDOW) -> None:
        assert window.max_tokens >= 2 * (window.segment_tokens + depth + 1), "two segments fit"
        self._depth = depth
        self._window = window
        self._contexts: dict[tuple[int, ...], _Context] = {}
        self._text: deque[int] = deque()
        self._begin = 0  # position of the first token kept
        self._segments: deque[_Segment] = deque()

    @property
    def num_tokens(self) -> int:
        return len(self._text)

    @property
    def num_bytes(self) -> int:
        """A rough number: a context weighs some 500 bytes."""
        return 500 * len(self._contexts) + 8 * len(self._text)

    def start(self, context: Sequence[int] = ()) -> None:
        need = self._window.segment_tokens + self._depth + 1
        while self._segments and len(self._text) + need > self._window.max_tokens:
            self._drop_segment()
        begin = self._end
        self._text.append(BORDER)
        self._text.extend(context[-self._depth :])
        self._segments.append(_Segment(begin, self._end))

    def push(self, tokens: Sequence[int]) -> None:
        assert self._segments, "start comes first"
        for token in tokens:
            if self._end - self._segments[-1].first >= self._window.segment_tokens:
                count = min(self._depth, self._end - self._segments[-1].begin - 1)
                self.start([self._token(at) for at in range(self._end - count, self._end)])
            self._count(token, self._end, self._segments[-1].begin)
            self._text.append(token)

    def propose(self, pattern: Sequence[int], limits: Limits) -> Guess:
        """Tries a match length for each set of occurrences, longest first; it also wins ties."""
        pattern = list(pattern[-self._depth :])
        best = NO_GUESS
        counts = self._match(pattern)
        for length in range(len(counts), 0, -1):
            if length < len(counts) and counts[length - 1] == counts[length]:
                continue  # the same occurrences as of the longer match
            budget = min(limits.max_nodes, int(length * limits.factor + limits.offset))
            if budget <= best.score:
                break  # a score is at most the number of nodes
            guess = _Walk(self, pattern[-length:], limits).draft(budget, best.score)
            if guess.score > best.score:
                best = guess
        return best

    @property
    def _end(self) -> int:
        return self._begin + len(self._text)

    def _token(self, position: int) -> int:
        return self._text[position - self._begin]

    def _contexts_at(self, position: int, begin: int) -> list[tuple[int, ...]]:
        """Of the token at `position`, shortest first."""
        longest = min(self._depth, position - begin - 1)
        recent = tuple(self._token(at) for at in range(position - longest, position))
        return [recent[-length:] for length in range(1, longest + 1)]

    def _count(self, token: int, position: int, begin: int) -> None:
        for key in self._contexts_at(position, begin):
            context = self._contexts.setdefault(key, _Context())
            follower = context.followers.setdefault(token, _Follower())
            for counted in (context, follower):
                counted.count += 1
                counted.last = position

    def _drop_segment(self) -> None:
        begin, first = self._segments.popleft()
        end = self._segments[0].begin if self._segments else self._end
        for position in range(first, end):
            for key in self._contexts_at(position, begin):
                self._uncount(key, self._token(position))
        for _ in range(end - begin):
            self._text.popleft()
        self._begin = end

    def _uncount(self, key: tuple[int, ...], token: int) -> None:
        context = self._contexts[key]
        context.count -= 1
        context.followers[token].count -= 1
        if not context.followers[token].count:
            del context.followers[token]
        if not context.count:
            del self._contexts[key]

    def _match(self, pattern: list[int]) -> list[int]:
        """How often each end of the pattern occurs, shortest first, as long as it does."""
        counts = []
        for length in range(1, len(pattern) + 1):
            context = self._contexts.get(tuple(pattern[-length:]))
            if context is None:
                break
            counts.append(context.count)
        return counts

    def steps(self, context: Sequence[int], copied: int) -> list[tuple[int, float, int]]:
        """Tokens that followed, likeliest first, newest first among equals: token, probability,
        and its position when the context occurs once only. Then what is `copied` from there is
        all there is to say, to the end of the segment.
        """
        after = copied + 1
        if copied >= 0 and after < self._end and self._token(after) != BORDER:
            return [(self._token(after), 1.0, after)]
        found = self._contexts.get(tuple(context[-self._depth :]))
        if found is None:
            return []
        ranked = sorted(found.followers.items(), key=lambda f: (-f[1].count, -f[1].last))
        once = found.last if found.count == 1 else -1
        return [(token, follower.count / found.count, once) for token, follower in ranked]


class _Walk:
    """Best first from one match: the likeliest node that is left is drafted next."""

    def __init__(self, source: PythonSuffixTree, match: list[int], limits: Limits) -> None:
        self._source = source
        self._match = match
        self._limits = limits
        self._heap: list[_Step] = []
        self._num_steps = 0

    def draft(self, budget: int, to_beat: float) -> Guess:
        """Gives up once the score cannot exceed `to_beat`: no later node is likelier."""
        guess = Guess([], [], [], 0.0)
        score = 0.0
        self._offer(guess, ROOT, 1.0, -1)
        while self._heap and len(guess.tokens) < budget:
            step = heapq.heappop(self._heap)
            if score + (budget - len(guess.tokens)) * -step.minus_p <= to_beat:
                return NO_GUESS
            guess.tokens.append(step.token)
            guess.parents.append(step.parent)
            guess.probabilities.append(step.probability)
            score += -step.minus_p
            self._offer(guess, len(guess.tokens) - 1, -step.minus_p, step.copied)
        return guess._replace(score=score)

    def _offer(self, guess: Guess, parent: int, p: float, copied: int) -> None:
        """What may follow a drafted node whose path has the probability p."""
        path: list[int] = []
        node = parent
        while node != ROOT:
            path.append(guess.tokens[node])
            node = guess.parents[node]
        steps = self._source.steps(self._match + path[::-1], copied)
        for token, probability, at in steps if self._limits.tree else steps[:1]:
            if p * probability >= self._limits.min_prob:
                step = _Step(-(p * probability), self._num_steps, token, probability, parent, at)
                heapq.heappush(self._heap, step)
                self._num_steps += 1

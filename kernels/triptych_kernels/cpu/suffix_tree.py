"""The native suffix tree: the twin of `triptych_kernels.suffix_tree`, equal to the bit."""

from __future__ import annotations

import ctypes
import functools
import weakref
from array import array
from collections.abc import Callable, Sequence

from triptych_kernels.cpu.native import Library, native
from triptych_kernels.suffix_tree import (
    DEPTH,
    NO_GUESS,
    WINDOW,
    Guess,
    Limits,
    PythonSuffixTree,
    Query,
    SuffixTree,
    Window,
    answer_all,
)

# The Python twin takes this many times the memory, so it gets that much less text to keep.
_TWIN_WEIGHT = 64

MakeTree = Callable[[int, Window], SuffixTree]


@functools.cache
def best_suffix_tree() -> MakeTree:
    """Makes native trees where there is a library, and small Python ones elsewhere."""
    library = native()
    return small_python_tree if library is None else NativeSuffixTrees(library).make


def small_python_tree(depth: int, window: Window) -> SuffixTree:
    segment = max(window.segment_tokens // _TWIN_WEIGHT, 1)
    tokens = max(window.max_tokens // _TWIN_WEIGHT, 2 * (segment + depth + 1))
    return PythonSuffixTree(depth, Window(tokens, segment))


class NativeSuffixTrees:
    """The suffix tree functions of one library."""

    def __init__(self, library: Library) -> None:
        int32, int64, double = ctypes.c_int, ctypes.c_int64, ctypes.c_double
        pointer = ctypes.c_void_p
        limits = (int32, double, double, double, int32)
        self.new = library.bind("tk_suffix_new", pointer, int32, int32, int32)
        self.free = library.bind("tk_suffix_free", None, pointer)
        self.start = library.bind("tk_suffix_start", None, pointer, pointer, int32)
        self.push = library.bind("tk_suffix_push", None, pointer, pointer, int32)
        self.propose = library.bind(
            "tk_suffix_propose", int32, pointer, pointer, int32, *limits, pointer, pointer, pointer
        )
        self.propose_all = library.bind(
            "tk_suffix_propose_all", None, int32, *[pointer] * 5, *limits[1:], int32, *[pointer] * 4
        )
        self.tokens = library.bind("tk_suffix_tokens", int64, pointer)
        self.bytes = library.bind("tk_suffix_bytes", int64, pointer)

    def make(self, depth: int = DEPTH, window: Window = WINDOW) -> SuffixTree:
        return NativeSuffixTree(self, depth, window)


def propose_all(queries: Sequence[Query], limits: Limits) -> list[Guess]:
    """`answer_all`, for native trees in one call: 32 calls cost more than what they ask for."""
    trees = [tree for query in queries for tree in query.trees]
    if not trees or not all(isinstance(tree, NativeSuffixTree) for tree in trees):
        return answer_all(queries, limits)
    return _answer_natively(queries, [t for t in trees if isinstance(t, NativeSuffixTree)], limits)


def _answer_natively(
    queries: Sequence[Query], trees: Sequence[NativeSuffixTree], limits: Limits
) -> list[Guess]:
    count, stride = len(queries), max(query.max_nodes for query in queries)
    handles = array("Q", [tree.handle for tree in trees])
    added = array("i")
    for query in queries:
        added.extend(query.added)
    sizes = [
        array("i", [len(query.trees) for query in queries]),
        added,
        array("i", [len(query.added) for query in queries]),
        array("i", [query.max_nodes for query in queries]),
    ]
    counts = (ctypes.c_int32 * count)()
    tokens, parents = (ctypes.c_int32 * (count * stride))(), (ctypes.c_int32 * (count * stride))()
    probabilities = (ctypes.c_double * (count * (stride + 1)))()
    trees[0].library.propose_all(
        count,
        handles.buffer_info()[0],
        *[numbers.buffer_info()[0] for numbers in sizes],
        *limits[1:],
        stride,
        counts,
        tokens,
        parents,
        probabilities,
    )
    guesses = []
    for at, nodes in enumerate(counts):
        begin, row = at * stride, at * (stride + 1)
        guesses.append(
            Guess(
                tokens[begin : begin + nodes],
                parents[begin : begin + nodes],
                probabilities[row : row + nodes],
                probabilities[row + stride],
            )
            if nodes
            else NO_GUESS
        )
    return guesses


class NativeSuffixTree:
    """Some 30 to 100 bytes per token of text, and about 1 µs to add one."""

    def __init__(self, library: NativeSuffixTrees, depth: int, window: Window) -> None:
        assert window.max_tokens >= 2 * (window.segment_tokens + depth + 1), "two segments fit"
        self.library = library
        self._depth = depth
        self.handle = library.new(depth, *window)
        self._started = False
        weakref.finalize(self, library.free, self.handle).atexit = False

    @property
    def num_tokens(self) -> int:
        return int(self.library.tokens(self.handle))

    @property
    def num_bytes(self) -> int:
        return int(self.library.bytes(self.handle))

    def start(self, context: Sequence[int] = ()) -> None:
        before = array("i", context[-self._depth :])
        self.library.start(self.handle, before.buffer_info()[0], len(before))
        self._started = True

    def push(self, tokens: Sequence[int]) -> None:
        assert self._started, "start comes first"
        text = array("i", tokens)
        self.library.push(self.handle, text.buffer_info()[0], len(text))

    def propose(self, pattern: Sequence[int], limits: Limits) -> Guess:
        end = array("i", pattern[-self._depth :])
        room = limits.max_nodes
        tokens, parents = (ctypes.c_int32 * room)(), (ctypes.c_int32 * room)()
        probabilities = (ctypes.c_double * (room + 1))()
        count = self.library.propose(
            self.handle, end.buffer_info()[0], len(end), *limits, tokens, parents, probabilities
        )
        if not count:
            return NO_GUESS
        return Guess(tokens[:count], parents[:count], probabilities[:count], probabilities[room])

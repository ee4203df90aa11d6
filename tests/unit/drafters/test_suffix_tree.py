"""The native suffix tree drafts what the Python one drafts, and both what the text says."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Sequence

import pytest

from triptych.testing.native_kernels import libraries
from triptych_kernels.cpu import suffix_tree as native_trees
from triptych_kernels.cpu.suffix_tree import NativeSuffixTrees, best_suffix_tree
from triptych_kernels.suffix_tree import (
    NO_GUESS,
    Limits,
    PythonSuffixTree,
    Query,
    SuffixTree,
    Window,
    answer_all,
)

Make = Callable[..., SuffixTree]
KINDS = ["python", *(library.level.name for library in libraries())]
SMALL = Window(max_tokens=400, segment_tokens=50)


def maker(kind: str) -> Make:
    if kind == "python":
        return PythonSuffixTree
    (library,) = (library for library in libraries() if library.level.name == kind)
    return NativeSuffixTrees(library).make


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Make:
    return maker(request.param)


def tree_of(make: Make, *texts: Sequence[int], depth: int = 24) -> SuffixTree:
    tree = make(depth)
    for text in texts:
        tree.start()
        tree.push(text)
    return tree


def random_limits(source: random.Random) -> Limits:
    return Limits(
        max_nodes=source.randint(1, 12),
        factor=source.choice([0.5, 1.0, 4.0]),
        offset=source.choice([0.0, 0.5, 1.0]),
        min_prob=source.choice([1e-9, 0.05, 0.1, 0.3]),
        tree=source.random() < 0.5,
    )


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("seed", range(20))
def test_both_twins_give_the_same_drafts_and_scores(kind: str, seed: int) -> None:
    source = random.Random(seed)
    depth, segment = source.choice([1, 2, 5, 8]), source.choice([1, 3, 10, 40])
    window = Window(2 * (segment + depth + 1) + source.choice([0, 5, 100]), segment)
    truth, fast = PythonSuffixTree(depth, window), maker(kind)(depth, window)
    num_drafts = 0
    text: list[int] = []
    for step in range(60):
        if step == 0 or source.random() < 0.15:
            context = source.choices(range(3), k=source.randrange(6))
            truth.start(context)
            fast.start(context)
        added = source.choices(range(3), k=source.randrange(12))
        truth.push(added)
        fast.push(added)
        text += added
        assert fast.num_tokens == truth.num_tokens
        for pattern in (text[-9:], source.choices(range(3), k=source.randrange(9))):
            limits = random_limits(source)
            guess = truth.propose(pattern, limits)
            assert fast.propose(pattern, limits) == guess
            num_drafts += bool(guess.tokens)
    assert num_drafts > 30


@pytest.mark.parametrize("kind", KINDS)
def test_many_sequences_are_answered_at_once_as_one_by_one(kind: str) -> None:
    source = random.Random(5)
    window = Window(2 * (10 + 6 + 1), 10)  # texts are cut, and lose their beginnings
    own, twins = ([maker(kind)(6, window) for _ in range(5)] for _ in range(2))
    shared = tree_of(maker(kind), source.choices(range(3), k=80), depth=6)
    texts: list[list[int]] = [[] for _ in own]
    for tree in (*own, *twins):
        tree.start()
    for _ in range(30):
        queries, expected = [], []
        limits = random_limits(source)
        for text, tree, twin in zip(texts, own, twins, strict=True):
            added = source.choices(range(3), k=source.randrange(4))
            text += added
            trees = (shared,) if source.random() < 0.5 else ()
            query = Query((tree, *trees), added, text[-6:], source.randint(1, 12))
            queries.append(query)
            expected += answer_all([query._replace(trees=(twin, *trees))], limits)
        assert native_trees.propose_all(queries, limits) == expected


def test_a_path_follows_the_most_frequent_token(make: Make) -> None:
    tree = tree_of(make, [1, 2, 8, 1, 2, 9, 1, 2, 8])
    guess = tree.propose([1, 2], Limits(max_nodes=1))
    assert guess.tokens == [8]
    assert guess.probabilities == [2 / 3]
    assert guess.score == 2 / 3


def test_of_equals_the_newest_is_followed(make: Make) -> None:
    tree = tree_of(make, [1, 2, 8], [1, 2, 9])
    assert tree.propose([1, 2], Limits(max_nodes=1)).tokens == [9]


def test_a_longer_match_decides_what_a_shorter_one_left_open(make: Make) -> None:
    tree = tree_of(make, [5, 1, 2, 7], [1, 2, 9], [1, 2, 9])
    assert tree.propose([5, 1, 2], Limits(max_nodes=1)).tokens == [7]


def test_a_longer_match_earns_a_longer_draft(make: Make) -> None:
    tree = tree_of(make, range(100))
    lengths = [len(tree.propose(range(50 - m, 50), Limits(16)).tokens) for m in (1, 5, 10, 40)]
    assert lengths == [1, 5, 10, 16]


def test_an_unlikely_path_is_not_drafted(make: Make) -> None:
    tree = tree_of(make, *([1, 2, token] for token in range(10, 20)))
    assert tree.propose([1, 2], Limits(8, min_prob=0.11)) == NO_GUESS
    assert tree.propose([1, 2], Limits(8, min_prob=0.1)).tokens


def test_a_tree_holds_the_likeliest_branches(make: Make) -> None:
    tree = tree_of(make, [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 6, 7])
    guess = tree.propose([1, 2], Limits(4, factor=2.0, tree=True))
    assert guess.tokens == [3, 4, 6, 7]
    assert guess.parents == [-1, 0, -1, 2]
    assert guess.score == pytest.approx(2 / 3 + 2 / 3 + 1 / 3 + 1 / 3)


def test_a_repeated_loop_is_drafted_past_the_end_of_the_text(make: Make) -> None:
    tree = tree_of(make, [1, 2, 3] * 12)
    assert tree.propose([1, 2, 3] * 8, Limits(10)).tokens == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("branches", [False, True])
def test_every_drafted_token_stood_behind_its_path(make: Make, seed: int, branches: bool) -> None:
    source = random.Random(seed)
    text = source.choices(range(3), k=200)
    tree = tree_of(make, text, depth=6)
    written = " ".join(map(str, text))
    for end in range(10, 200, 10):
        pattern = text[:end]
        guess = tree.propose(pattern, Limits(8, min_prob=0.05, tree=branches))
        for node, token in enumerate(guess.tokens):
            path, parent = [token], guess.parents[node]
            while parent >= 0:
                path.insert(0, guess.tokens[parent])
                parent = guess.parents[parent]
            behind = (pattern + path)[-min(len(path) + 1, 7) :]  # a match of one token at least
            assert " ".join(map(str, behind)) in written


def test_text_before_a_new_start_is_not_its_context(make: Make) -> None:
    tree = tree_of(make, [1, 2], [3, 4])
    assert tree.propose([2], Limits(4)) == NO_GUESS


def test_a_given_context_leads_into_the_text_but_is_not_counted(make: Make) -> None:
    tree = make()
    tree.start([1, 2])
    tree.push([3])
    assert tree.propose([1, 2], Limits(4)).tokens == [3]
    assert tree.propose([1], Limits(4)) == NO_GUESS


def test_a_cut_between_segments_leaves_no_gap(make: Make) -> None:
    tree = make(8, Window(max_tokens=200, segment_tokens=10))
    tree.start()
    tree.push(range(100))
    for end in range(50, 99):
        assert tree.propose(range(end - 3, end), Limits(1)).tokens == [end]


def test_text_that_came_in_parts_is_drafted_across_them(make: Make) -> None:
    tree = make()
    for begin in range(0, 100, 10):
        tree.start(range(begin))
        tree.push(range(begin, begin + 10))
    assert tree.propose(range(45), Limits(12)).tokens == list(range(45, 57))


def test_the_oldest_text_goes_first(make: Make) -> None:
    tree = make(8, SMALL)
    for first in range(0, 1000, 50):
        tree.start()
        tree.push(range(first, first + 50))
    assert tree.propose([10, 11], Limits(4)) == NO_GUESS
    assert tree.propose([980, 981], Limits(4)).tokens == [982, 983]


@pytest.mark.parametrize("alphabet", [2, 10**6])
def test_memory_stays_bounded_whatever_is_written(make: Make, alphabet: int) -> None:
    source = random.Random(1)
    tree = make(8, SMALL)
    tree.start()
    tree.push(source.choices(range(alphabet), k=2000))
    most = 0
    for _ in range(20):
        tree.push(source.choices(range(alphabet), k=500))
        assert tree.num_tokens <= SMALL.max_tokens
        most = max(most, tree.num_bytes)
    assert most <= SMALL.max_tokens * 8 * 600


@pytest.mark.skipif(len(KINDS) == 1, reason="no native kernels")
def test_native_memory_is_a_hundred_bytes_a_token_or_two() -> None:
    source = random.Random(1)
    tree = tree_of(maker(KINDS[1]), source.choices(range(1000), k=50_000))
    assert tree.num_bytes < 200 * tree.num_tokens


@pytest.mark.skipif(len(KINDS) == 1, reason="no native kernels")
def test_a_native_tree_is_freed_with_its_last_user() -> None:
    trees = NativeSuffixTrees(libraries()[0])
    freed: list[int] = []
    free = trees.free
    trees.free = lambda tree: (freed.append(tree), free(tree))  # type: ignore[func-returns-value]
    tree = trees.make()
    gone = weakref.ref(tree)
    del tree
    gc.collect()
    assert gone() is None and len(freed) == 1


def test_without_native_kernels_the_python_tree_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_trees, "native", lambda: None)
    best_suffix_tree.cache_clear()
    try:
        tree = best_suffix_tree()(8, Window(1 << 17, 1 << 13))
    finally:
        best_suffix_tree.cache_clear()
    assert isinstance(tree, PythonSuffixTree)
    tree.start()
    tree.push(range(5000))
    assert tree.propose([4000, 4001, 4002], Limits(4)).tokens == [4003, 4004, 4005]
    assert tree.num_tokens < 2500, "it takes more memory, so it keeps less text"
